"""Each choice that a config offers runs end to end, and those that promise something keep it."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from fedms.config import load_config
from fedms.core.errors import ConfigError, FedmsError
from fedms.experiments import experiment
from fedms.federation.assembly import finished_model
from fedms.federation.client import ClientHost
from fedms.federation.exchanges import INTERPOLATION, WEIGHTS
from fedms.federation.exchanges.base import Asked, behind
from fedms.federation.exchanges.selection import InterpolationAsked
from fedms.federation.personal_model import UNSCALED
from fedms.federation.prediction import INTERPOLATIONS, PRIORS, SCALES, MixtureOutputs
from fedms.federation.world import open_world
from fedms.model.arrays import strip
from fedms.model.expert import Expert
from fedms.runs.folder import read_arrays
from fedms.training.prefix_cache import PrefixCache
from fedms.training.runner import Runner

pytestmark = pytest.mark.integration

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


@pytest.mark.parametrize(
    "overrides",
    [
        ("federation.aggregation=exact",),
        ("federation.aggregation=freeze-a",),
        ("head.kind=text-init",),
        ("head.kind=text",),
        ("head.kind=linear",),
        ("method=local", "head.kind=text"),
        ("method=local", "head.kind=linear"),
        ("gate.features=backbone",),
        ("gate.evidence=counts",),
        ("gate.evidence=none",),
        ("gate.network=false",),
        ("gate.objective=likelihood",),
        ("gate.objective=likelihood", "mixture.on=logits"),
        ("mixture.on=logits",),
        ("mixture.local_start=scratch",),
        ("statistics.rank=4",),
        ("activation.order=bottom-up",),
        ("activation.blocks=all", "activation.rule=fixed"),
        ("training.weight_decay=0.1", "training.epochs=2"),
        ("lora.targets=[query, key, value, intermediate.dense]",),
        ("partition.rule=column", "partition.column=home"),
        ("partition.rule=equal",),
        ("evaluation.every=2", "evaluation.everyone=7"),
        ("model.pooling=cls",),
        ("federation.rounds_global=0",),
        ("federation.rounds_local=0",),
        ("method=mixture-constant", "federation.rounds_local=0"),
        ("method=fedavg-finetune", "federation.cohort_local=2"),
        ("federation.cohort_local=1",),
        ("partition.clients=1", "federation.cohort=1"),
    ],
    ids=lambda overrides: " ".join(overrides).replace("federation.", "").replace("partition.", ""),
)
def test_a_choice_runs(finished, overrides):
    run = finished(*overrides)
    result = run.result
    assert all(line["failures"] == [] for line in run.lines)
    assert len(result["per_client"]) == result["clients"]
    assert all(0 <= result[key] <= 1 for key in ("accuracy_local", "accuracy_global", "accuracy_base"))
    assert all(math.isfinite(line["train_loss"]) for line in run.lines if line["train_loss"] is not None)


@pytest.mark.parametrize(
    "overrides",
    [
        ("gate.evidence=none",),
        ("gate.objective=likelihood",),
        ("method=local", "federation.cohort=1"),
        (),
        ("method=fedavg-finetune",),
    ],
)
def test_a_client_that_was_never_asked_has_a_model_too(finished, overrides):
    run = finished("federation.cohort_local=1", "federation.rounds_local=1", *overrides)
    assert run.rounds("end")[0]["failures"] == []
    assert len(run.result["per_client"]) == 4


def test_each_choice_of_a_head_is_another_start(finished):
    kinds = ("statistics", "text-init", "text", "linear")
    runs = [finished(f"head.kind={kind}") if kind != "statistics" else finished() for kind in kinds]
    assert len({run.rounds("global")[0]["train_loss"] for run in runs}) == 4


def test_exact_aggregation_differs_from_the_average(finished):
    losses = [
        [line["train_loss"] for line in finished(*more).rounds("global")]
        for more in ((), ("federation.aggregation=exact",))
    ]
    assert losses[0][0] == losses[1][0], "the first round starts alike"
    assert losses[0][1] != losses[1][1]


def test_the_gate_knows_its_own_from_everyones(finished):
    result = finished(
        "partition.rule=classes",
        "partition.classes_per_client=1",
        "head.kind=linear",
        "statistics.second_moment=true",
    ).result
    own, everyone = 1 - result["gate_global_share"], 1 - result["gate_global_share_everyone"]
    assert own > everyone + 0.2
    assert own > 0.5


def test_the_gate_knows_nothing_where_all_clients_are_alike(finished):
    result = finished("partition.rule=equal").result
    assert abs(result["gate_global_share"] - result["gate_global_share_everyone"]) < 0.15


def test_a_training_that_diverges_is_one_line(perform):
    with pytest.raises(
        FedmsError, match=r"training diverged: the loss is not finite; lower training\.learning_rate \("
    ):
        perform(
            "training.learning_rate=1e30", "training.head_learning_rate=1e30", "federation.rounds_global=3"
        )


# pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Sixty pictures in a folder for each of three classes."""
    folder = tmp_path_factory.mktemp("pictures")
    for label, (red, green, blue) in COLOURS.items():
        (folder / label).mkdir()
        for number in range(20):
            image = Image.new("RGB", (40, 32), (red - number, green - number, blue + number))
            image.paste((number * 12, 128, 255 - number * 12), (number, 4, number + 12, 20))
            image.save(folder / label / f"{number}.png")
    return folder


@pytest.mark.parametrize("method", ["fedms", "local"])
def test_pictures_are_learned_as_texts_are(image_model, pictures, tmp_path, method):
    config = {
        "method": method,
        "model": {"name": str(image_model)},
        "data": {"source": str(pictures)},
        "partition": {"clients": 3, "alpha": 1.0},
        "federation": {"cohort": 2, "rounds_global": 1, "rounds_local": 1},
        "engine": {"workers": 1},
    }
    with pytest.raises(ConfigError, match=r"head\.kind: text-init needs a text model"):
        experiment.run(load_config(config, ["head.kind=text-init"]), tmp_path / "run")
    result = experiment.run(load_config(config), tmp_path / "run")
    assert len(result["per_client"]) == 3
    assert result["accuracy_base"] > 0.6, "the nearest federated class mean tells plain colours apart"
    assert 0 <= result["accuracy_global"] <= 1


@pytest.fixture
def unpruned(monkeypatch):
    """A finished run keeps what its clients' answers can be given from again."""
    monkeypatch.setattr("fedms.experiments.ending.prune", lambda folder: 0)


def test_the_local_expert_goes_as_far_as_validation_says_from_its_start_to_where_training_took_it(
    unpruned, perform, finished, tiny, traffic
):
    run = perform()
    exchanges = [(task, update) for task, update in traffic.exchanges if task.kind == "interpolate"]
    summed = sum(update.arrays["interpolate.log_likelihood"].double() for _, update in exchanges)
    assert run.result["interpolation"] == INTERPOLATIONS[int(summed.argmax())]
    ends = {at: finished(f"mixture.interpolation={at}") for at in (0.0, 0.5, 1.0)}
    assert all(other.result["interpolation"] == at for at, other in ends.items())
    world = open_world(tiny())
    host = ClientHost(world, run.folder)
    for task, update in exchanges:
        kept = {
            at: strip(read_arrays(other.folder / "clients" / task.client / "model.safetensors")[0], "local/")
            for at, other in ends.items()
        }
        shared = strip(read_arrays(run.folder / "clients" / task.client / "model.safetensors")[0], "global/")
        moved = [name for name, array in kept[1.0].items() if not torch.equal(array, kept[0.0][name])]
        assert "head.weight" in moved and any(name.endswith(".lora_B") for name in moved)
        for name, array in kept[0.5].items():
            torch.testing.assert_close(array, (kept[0.0][name] + kept[1.0][name]) / 2)
        assert all(torch.equal(kept[0.0][name], shared[name]) for name in shared if name != "head.bias"), (
            "it starts from the global expert"
        )
        found = INTERPOLATION.answer(host.view(task), Asked())
        assert torch.equal(update.arrays["interpolate.log_likelihood"], behind(found.log_likelihood))
        samples = world.samples(task.client, "validation")
        for at, arrays in kept.items():
            logits = (
                Runner(world.backbone, uncached(world)).outputs(Expert(arrays, 16.0 / 2), samples, 0).logits
            )
            assert logits is not None
            expected = -torch.nn.functional.cross_entropy(logits, samples.labels, reduction="sum")
            answer = found.log_likelihood[INTERPOLATIONS.index(at)]
            torch.testing.assert_close(answer, expected, atol=1e-3, rtol=1e-3)


def uncached(world):
    return PrefixCache(world.backbone, world.inputs, 0, 0, Path(), enabled=False)


@pytest.mark.parametrize(
    ("method", "found"),
    [
        ("mixture-constant", INTERPOLATIONS),
        ("pfl-moe", [1.0]),
        ("feddpa", [None]),
        ("fedavg-finetune", [None]),
    ],
)
def test_whose_local_expert_is_interpolated(perform, traffic, method, found):
    run = perform(f"method={method}")
    assert any(task.kind == "interpolate" for task, _ in traffic.exchanges) == (method == "mixture-constant")
    assert run.result["interpolation"] in found


def test_a_client_weighs_its_validation_labels_at_every_prior_and_scale(unpruned, perform, tiny, traffic):
    run = perform()
    task, update = next((task, update) for task, update in traffic.exchanges if task.kind == "weigh")
    host = ClientHost(open_world(tiny()), run.folder)
    samples = host.world.samples(task.client, "validation")
    view = host.view(task)
    answer = WEIGHTS.answer(view, InterpolationAsked.of(task)).log_likelihood
    answer = answer.view(len(UNSCALED), len(SCALES))
    assert torch.equal(update.arrays["weigh.log_likelihood"], behind(answer).flatten())
    model = finished_model(view, task.settings["interpolation"], UNSCALED)
    judged = host.recipe.predictor.judge(model, host.runner, samples, view.boundary)
    assert isinstance(judged, MixtureOutputs) and judged.evidence is not None
    for prior, scale in ((0.2, 2.0), (0.5, 0.6), (0.9, 0.1)):
        weight = torch.sigmoid(scale * judged.evidence + torch.tensor(prior).logit())
        mixed = (1 - weight)[:, None] * judged.global_logits.softmax(1) + weight[
            :, None
        ] * judged.local_logits.softmax(1)
        expected = mixed[torch.arange(len(samples)), samples.labels].log().sum()
        torch.testing.assert_close(
            answer[PRIORS.index(prior) - 1, SCALES.index(scale)], expected, atol=1e-4, rtol=1e-4
        )
    summed = sum(
        update.arrays["weigh.log_likelihood"].double()
        for task, update in traffic.exchanges
        if task.kind == "weigh"
    )
    chosen = [SCALES[best] for best in summed.view(len(UNSCALED), len(SCALES)).argmax(1).tolist()]
    assert run.result["evidence_scales"] == chosen
