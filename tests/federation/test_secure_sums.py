"""The protocol of secure sums without an engine: what comes out and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedms.core.errors import ConfigError, FedmsError
from fedms.federation.secure import shamir
from fedms.federation.secure.coordinator import SecureSum
from fedms.federation.secure.encoding import Range, between, decode, encode, quantum
from fedms.federation.secure.member import Member

pytest.importorskip("cryptography")

NAMES = [f"client-{number}" for number in range(5)]
BLOCKS = {name: ("low", "high") if number < 3 else ("high",) for number, name in enumerate(NAMES)}


class Sum:
    """One sum up to the masked answers, in which the first three clients also train a lower block."""

    def __init__(self, folder: Path, names=NAMES, members=None):
        self.members = members or {name: Member(name, folder / name, 3) for name in names}
        self.server = SecureSum(3)
        session = self.server.session
        order = self.server.introduced({name: self.members[name].introduce(session) for name in names})
        keys = self.server.keys_of(order)
        self.server.shared({name: self.members[name].share(session, order, keys) for name in order})
        draw = torch.Generator().manual_seed(0)
        self.values = {
            name: {array: torch.rand(3, 2, generator=draw) * 2 - 1 for array in BLOCKS[name]}
            for name in names
        }
        self.ranges = {name: {each: between((3, 2), -1, 1) for each in BLOCKS[name]} for name in names}
        self.plan = self.server.plan(self.ranges)

    def masked(self, name: str):
        addends = {each: (self.values[name][each], self.ranges[name][each]) for each in BLOCKS[name]}
        shares = self.server.shares_for(name)
        return self.members[name].masked(self.plan, "train 1", shares, addends, 0)

    def finish(self, masked, revealing):
        survivors = sorted(masked)
        revealed = {name: self.members[name].reveal(self.server.session, survivors) for name in revealing}
        return self.server.total(self.plan, self.ranges, masked, revealed)


@pytest.mark.parametrize(("lost", "silent"), [([], []), ([4], []), ([4], [3]), ([3, 4], []), ([], [1, 2])])
def test_the_sum_is_that_of_the_clients_whose_answers_came(tmp_path, lost, silent):
    made = Sum(tmp_path)
    masked = {name: made.masked(name) for number, name in enumerate(NAMES) if number not in lost}
    totals = made.finish(masked, [name for name in masked if NAMES.index(name) not in silent])
    for array, total in totals.items():
        parts = [made.values[name][array].double() for name in masked if array in BLOCKS[name]]
        assert torch.allclose(total, torch.stack(parts).sum(0), rtol=0, atol=1e-8) and total.shape == (3, 2)


def test_a_late_answer_cannot_be_unmasked(tmp_path):
    made = Sum(tmp_path)
    late = made.masked(NAMES[4])
    masked = {name: made.masked(name) for name in NAMES[:4]}
    made.finish(masked, NAMES[:4])
    for name in NAMES:
        with pytest.raises(FedmsError):
            made.members[name].reveal(made.server.session, NAMES) if name != NAMES[4] else made.finish(
                masked | {NAMES[4]: late}, NAMES[:4]
            )


def test_a_client_refuses_a_sum_of_too_few(tmp_path):
    made = Sum(tmp_path)
    for name in NAMES:
        made.masked(name)
    with pytest.raises(FedmsError, match=r"fewer than privacy\.least"):  # the lower block has two left
        made.members[NAMES[0]].reveal(made.server.session, [*NAMES[:2], *NAMES[3:]])
    with pytest.raises(FedmsError, match="a sum of 2 clients"):
        Sum(tmp_path / "few", NAMES[:2])


def test_a_sum_has_one_answer_and_a_new_sum_has_new_masks(tmp_path):
    first = Sum(tmp_path)
    answer = first.masked(NAMES[0])["high"]
    with pytest.raises(FedmsError, match="out of its turn"):
        first.masked(NAMES[0])
    again = Sum(tmp_path, members=first.members)
    assert (again.masked(NAMES[0])["high"] != answer).all()
    with pytest.raises(FedmsError, match="is over"):
        first.members[NAMES[0]].reveal(first.server.session, NAMES)


def test_two_sums_of_one_question_do_not_differ_by_one_client(tmp_path):
    first = Sum(tmp_path)
    first.finish({name: first.masked(name) for name in NAMES}, NAMES)
    same = Sum(tmp_path, members=first.members)
    same.finish({name: same.masked(name) for name in NAMES}, NAMES)
    other = Sum(tmp_path, members=first.members)
    with pytest.raises(FedmsError, match="would show single clients"):
        other.finish({name: other.masked(name) for name in NAMES[:4]}, NAMES[:4])


@pytest.mark.parametrize("once", [False, True])
def test_where_noise_is_shared_a_question_has_a_sum_of_one_group_alone(tmp_path, once):
    made = Sum(tmp_path, members={name: Member(name, tmp_path / name, 3, once) for name in NAMES})
    masked = {name: made.masked(name) for name in NAMES}
    for name, member in made.members.items():
        held = json.loads((tmp_path / name / "secrets.json").read_text())["sum"]
        member._write(held, {"train 1": [*NAMES, "three", "others", "before"]})
    if not once:
        assert made.finish(masked, NAMES)
        return
    with pytest.raises(FedmsError, match="would show single clients"):
        made.finish(masked, NAMES)


def test_false_shares_are_told(tmp_path):
    made = Sum(tmp_path)
    masked = {name: made.masked(name) for name in NAMES}
    revealed = {name: made.members[name].reveal(made.server.session, NAMES) for name in NAMES}
    revealed[NAMES[0]][1, -1] ^= 1
    with pytest.raises(FedmsError, match="mask of client-1 cannot be removed"):
        made.server.total(made.plan, made.ranges, masked, revealed)


def test_fewer_shares_than_the_threshold_say_nothing():
    secret = bytes(range(32))
    shares = dict(enumerate(shamir.split(secret, 5, 3), start=1))
    for some in ((1, 2, 3), (2, 4, 5), (5, 3, 1)):
        assert shamir.join({x: shares[x] for x in some}) == secret
    assert shamir.join({1: shares[1], 2: shares[2]}) != secret


def test_rounding_has_no_bias_and_whole_numbers_are_exact():
    within, unit = between((20_000,), 0, 1), 0.5
    counted = encode("x", torch.full((20_000,), 0.3), within, unit, np.random.default_rng(0))
    assert float(decode("x", counted, {"a": within}, unit).mean()) == pytest.approx(0.3, abs=0.01)
    whole = between((2,), 0, 1000, whole=True)
    assert quantum([whole] * 3) == 1
    assert encode("n", torch.tensor([7.0, 999.0]), whole, 1.0, np.random.default_rng(0)).tolist() == [7, 999]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5])
def test_a_client_sends_no_number_that_no_honest_client_has(value):
    with pytest.raises(FedmsError, match="x is"):
        encode("x", torch.tensor([value]), Range(torch.zeros(1), 1.0), 0.1, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("federation.robust=median", "federation.robust: must be none"),
        ("federation.aggregation=exact", "must be average or freeze-a"),
        ("statistics.rank=4", "statistics.rank: must be null"),
        ("privacy.least=4", "federation.cohort: must be at least privacy.least"),
        ("privacy.least=2", "privacy.least"),
    ],
)
def test_what_needs_single_answers_is_refused_in_one_line(settings, override, line):
    with pytest.raises(ConfigError, match=line):
        settings("privacy.secure_sum=true", "federation.cohort=3", override)
