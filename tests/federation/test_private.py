"""Differential privacy: budgets, ledgers, noise, and what a private client does not answer."""

import json
import math
import stat
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedms.config.privacy import PrivacyConfig
from fedms.core.errors import ConfigError, FedmsError
from fedms.federation.exchanges import CALIBRATION, EVALUATION, STATISTICS
from fedms.federation.exchanges.base import Expected
from fedms.federation.exchanges.statistics import FeaturesAsked
from fedms.federation.private.ledger import Event, PrivacyLedger
from fedms.federation.private.noise import clipped, deviations, noisy
from fedms.federation.recipe import recipe_for
from fedms.federation.releasing import check_private
from fedms.model.noisy_sums import NoisySums
from fedms.model.statistics import FeatureSums, normalise
from small_world import federation, opened, settings  # noqa: F401 (fixtures)

dp_accounting = pytest.importorskip("dp_accounting")
pytest.importorskip("cryptography")

PRIVATE = ("privacy.unit=record", "privacy.epsilon=2", "gate.features=backbone")
SEED = bytes(32)


def ledger(folder, **keys):
    return PrivacyLedger("anna", folder, PrivacyConfig(unit="record", **{"epsilon": 2.0, **keys}))


def by_hand(multipliers, delta=1e-5):
    accountant = dp_accounting.pld.PLDAccountant()
    for each in multipliers:
        accountant.compose(dp_accounting.GaussianDpEvent(each))
    return accountant.get_epsilon(delta)


def drawn():
    return noisy({"x": torch.zeros(3)}, {"x": 1.0}, bytes(range(32)))


def spreads_of(size: int) -> dict[str, float]:
    """Of counts and sums of features of this size."""
    recipe: Any = None
    backbone: Any = SimpleNamespace(feature_size=size)
    return STATISTICS.spreads(Expected(recipe, backbone, 3, 1, 1, {}))


# the ledger


def test_the_ledger_says_what_dp_accounting_says(tmp_path):
    kept = ledger(tmp_path)
    for question, multiplier in (("one", 4.0), ("two", 2.7)):
        kept.released(Event(question, multiplier), drawn)
    said = json.loads((tmp_path / "privacy.json").read_text())
    assert said["spent"] == pytest.approx(by_hand([4.0, 2.7]), rel=1e-3)
    assert [each["question"] for each in said["events"]] == ["one", "two"]


def test_the_planned_releases_spend_the_budget_and_no_more(settings):  # noqa: F811
    recipe = recipe_for(settings("privacy.unit=record", "privacy.epsilon=2"))
    multiplier = deviations(recipe, {"x": 1.0})["x"]
    assert recipe.releases == 2  # of the frozen features, and of the global expert's for the gate
    assert by_hand([multiplier] * 2) == pytest.approx(2, rel=1e-3)


def test_beyond_its_budget_a_client_refuses_in_one_line_and_books_nothing(tmp_path):
    kept = ledger(tmp_path)
    kept.released(Event("one", 2.2), drawn)
    before = kept.spent
    with pytest.raises(FedmsError, match=r"anna refuses 'two'.*privacy\.epsilon is 2") as refusal:
        kept.released(Event("two", 2.2), drawn)
    assert "\n" not in str(refusal.value)
    assert kept.spent == before < 2
    assert len(list((tmp_path / "releases").iterdir())) == 1


def test_what_is_asked_again_is_sent_again_and_not_drawn_again(tmp_path):
    first = ledger(tmp_path).released(
        Event("one", 2.2), lambda: noisy({"x": torch.zeros(3)}, {"x": 1.0}, SEED)
    )
    kept = ledger(tmp_path)
    again = kept.released(Event("one", 2.2), drawn)
    assert torch.equal(first["x"], again["x"])
    assert len(kept.events()) == 1


def test_a_kill_between_release_and_ledger_spends_nothing_twice(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PrivacyLedger, "_write", killed)
        ledger(tmp_path).released(Event("one", 2.2), drawn)
    kept = ledger(tmp_path)
    assert kept.events() == []
    kept.released(Event("one", 2.2), lambda: pytest.fail("drawn again"))
    assert kept.events() == [Event("one", 2.2)]


def test_a_release_that_is_gone_is_not_drawn_again(tmp_path):
    kept = ledger(tmp_path)
    kept.released(Event("one", 2.2), drawn)
    for path in (tmp_path / "releases").iterdir():
        path.unlink()
    with pytest.raises(FedmsError, match="the release is gone"):
        kept.released(Event("one", 2.2), drawn)


def test_only_the_owner_reads_ledger_and_releases(tmp_path):
    ledger(tmp_path).released(Event("one", 2.2), drawn)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


# the noise


def test_noise_is_normal_with_the_stated_deviation():
    zeros = {name: torch.zeros(20_001) for name in ("x", "y")}
    found = noisy(zeros, {"x": 3.0, "y": 3.0}, SEED)
    for array in found.values():
        assert float(array.std()) == pytest.approx(3, rel=0.02)
        assert abs(float(array.mean())) < 0.08
        assert float((array.abs() < 3).float().mean()) == pytest.approx(0.6827, abs=0.01)
    assert abs(float(torch.corrcoef(torch.stack([*found.values()]))[0, 1])) < 0.03


@pytest.mark.parametrize(
    ("keys", "share"),
    [
        ({"noise": "own"}, 1),
        ({"noise": "seeded"}, 1),
        ({"noise": "shared", "secure_sum": True, "least": 5}, 1 / 2),
        ({"noise": "seeded", "secure_sum": True, "least": 5}, 1 / 2),
    ],
)
def test_of_shared_noise_each_client_adds_what_the_least_sum_needs(keys, share):
    config = PrivacyConfig(unit="record", epsilon=1.0, **keys)
    assert config.noise_share == pytest.approx(share)
    assert config.protects == (keys["noise"] != "seeded")


def test_one_sample_moves_the_answer_by_a_norm_of_one(generator: torch.Generator):
    x, labels = normalise(torch.randn(20, 16, generator=generator)), torch.arange(20) % 3
    spreads = spreads_of(16)
    whole, less = (FeatureSums.of(x[at:], labels[at:], 3, False).to_arrays() for at in (0, 1))
    moved = sum(float(((whole[name] - less[name]) / spreads[name]).square().sum()) for name in spreads)
    assert math.sqrt(moved) == pytest.approx(1, abs=1e-5)
    most = clipped(whole, spreads, 5.0)
    assert sum(float((most[name] / spreads[name]).square().sum()) for name in spreads) == pytest.approx(25)


@pytest.mark.parametrize(("multiplier", "holds"), [(3.7306, True), (0.3, False)])
def test_membership_is_told_no_better_than_the_budget_allows(generator, multiplier, holds):
    """The best test there is, for epsilon 1: how far an answer lies towards the answer with the sample."""
    x, labels = normalise(torch.randn(20, 16, generator=generator)), torch.arange(20) % 3
    spreads = spreads_of(16)
    arrays = [FeatureSums.of(x[at:], labels[at:], 3, False).to_arrays() for at in (0, 1)]
    towards = {name: (arrays[0][name] - arrays[1][name]).double() / spreads[name] ** 2 for name in spreads}
    noise = {name: multiplier * spread for name, spread in spreads.items()}

    def scores(which, draws=1500):
        seeds = (number.to_bytes(31, "big") + bytes([which]) for number in range(draws))
        answers = (noisy(arrays[which], noise, seed) for seed in seeds)
        return torch.tensor(
            [sum(float((answer[name] * towards[name]).sum()) for name in spreads) for answer in answers]
        )

    member, other = scores(0), scores(1)
    bound, slack = math.exp(1.0), 3 * math.sqrt(0.25 / len(member)) * (1 + math.exp(1.0))
    worst = max(
        float((member > at).float().mean()) - bound * float((other > at).float().mean())
        for at in torch.cat([member, other])[::20]
    )
    assert (worst <= 1e-5 + slack) == holds


# what becomes of it


@pytest.fixture
def asked(federation):  # noqa: F811
    """A private world of these settings, and every client's answer to the question for its statistics."""

    def ask(*overrides: str):
        world = federation("fedms", *PRIVATE, *overrides)
        return world, world.ask(STATISTICS, world.server.clients, world.stage, 0, FeaturesAsked("backbone"))

    return ask


def test_a_client_answers_with_noise_that_no_seed_of_the_run_gives(asked):
    (one, first), (_, second) = asked(), asked()
    for here, there in zip(first, second, strict=True):
        assert not torch.equal(here.arrays["statistics.sums"], there.arrays["statistics.sums"])
        assert here.metrics == {}
    assert isinstance(STATISTICS.result(first, one.server.recipe), NoisySums)
    again = one.ask(STATISTICS, one.server.clients, one.stage, 0, FeaturesAsked("backbone"))
    for here, there in zip(first, again, strict=True):
        assert torch.equal(here.arrays["statistics.sums"], there.arrays["statistics.sums"])


def test_seeded_noise_is_that_of_the_run(asked):
    (_, first), (_, second) = asked("privacy.noise=seeded"), asked("privacy.noise=seeded")
    for here, there in zip(first, second, strict=True):
        assert torch.equal(here.arrays["statistics.sums"], there.arrays["statistics.sums"])


def test_a_second_release_that_was_not_planned_is_refused(asked):
    world, _ = asked()
    with pytest.raises(FedmsError, match=r"refuses .* its epsilon would be 2\.9"):
        world.ask(STATISTICS, world.server.clients[:1], world.stage, 1, FeaturesAsked("backbone"))


@pytest.mark.parametrize("exchange", [EVALUATION, CALIBRATION])
def test_what_has_no_private_release_is_not_answered(asked, exchange):
    world, answers = asked()
    world.server.learn(STATISTICS.result(answers, world.server.recipe).discriminant())
    arrays = world.server.shared | world.server.discriminant.to_arrays()
    asks = FeaturesAsked("backbone") if exchange is CALIBRATION else None
    [task] = world.server.tasks(exchange, ["client-0"], world.stage, 1, arrays, asks)
    with pytest.raises(FedmsError, match=f"the answer to {exchange.kind} has no private release"):
        world.host.handle(task)


def test_a_client_s_whole_answer_is_clipped_where_clients_are_protected(asked):
    quiet = ("privacy.noise=seeded", "privacy.epsilon=1000", "privacy.unit=client")
    world, answers = asked(*quiet, "privacy.clip=0.5")
    size = world.world.backbone.feature_size
    for answer in answers:
        assert float(answer.arrays["statistics.sums"].norm()) < 0.8 * math.sqrt(size)


def test_class_means_are_found_below_the_noise_with_the_help_of_names(generator: torch.Generator):
    classes, size, count, z = 20, 64, 60, 6.0
    true = normalise(torch.randn(classes, size, generator=generator))
    names = normalise(true + 1.2 * normalise(torch.randn(classes, size, generator=generator)))
    labels = torch.arange(classes * count) % classes
    x = normalise(true[labels] + 1.5 * normalise(torch.randn(len(labels), size, generator=generator)))
    sums = FeatureSums.of(x, labels, classes, second=False)
    spread = z * math.sqrt(size)
    noise = spread * torch.randn(classes, size, generator=generator)
    private = NoisySums(sums.counts, sums.sums + noise, None, z, spread)

    def accuracy(means):
        return float(
            ((x @ torch.nn.functional.normalize(means.float(), dim=1).T).argmax(1) == labels).float().mean()
        )

    found = private.discriminant(None, names)
    assert accuracy(found.means) > max(accuracy(names), accuracy(private.sums)) + 0.02
    share = float(found.means[0].square().sum()) / size
    assert share == pytest.approx(float((sums.sums / count).square().sum(1).mean()) / size, abs=0.1)
    exact = replace(private, sums=sums.sums, sums_deviation=1e-9, counts_deviation=1e-9)
    assert accuracy(exact.discriminant(None, None).means) == accuracy(sums.sums)
    assert torch.allclose(exact.discriminant(None, None).prior, torch.full((classes,), 1 / classes))


# what is refused


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("privacy.unit=record",), "epsilon: needed with"),
        (("privacy.epsilon=1",), "unit: needed with"),
        (("privacy.noise=shared",), "needs `secure_sum: true`"),
        ((*PRIVATE, "statistics.second_moment=true"), r"statistics\.second_moment: does not go with privacy"),
        ((*PRIVATE, "statistics.least=5"), r"statistics\.least: does not go with privacy"),
        ((*PRIVATE, "start_from=runs/before"), "start_from: does not go with privacy"),
        ((*PRIVATE, "task=text", "partition.rule=equal"), "task: does not go with privacy"),
    ],
)
def test_keys_that_contradict_privacy_are_refused_in_one_line(settings, overrides, line):  # noqa: F811
    with pytest.raises(ConfigError, match=line) as refusal:
        settings(*overrides)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("method=fedavg",), r"stage of fedavg shares A, B, head.* federation\.rounds_global: 0$"),
        (("federation.rounds_global=0",), r"local stage of fedms shares gate.* or gate\.share: none$"),
        (("federation.rounds_global=0", "gate.share=none"), None),
        (("federation.rounds_global=0", "gate.network=false"), None),
        (("method=statistics",), None),
    ],
)
def test_a_method_that_shares_what_it_trains_is_refused(settings, overrides, line):  # noqa: F811
    config = settings(*PRIVATE, *overrides)
    if line is None:
        return check_private(config)
    with pytest.raises(ConfigError, match=line):
        check_private(config)
