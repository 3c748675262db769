"""The host never waits for a device in the middle of training, and all tensors are on that device.

No accelerator is needed: tensors of the device `meta` have shapes but no values, so every read of one is
seen, and so is every operation on tensors of two devices.
"""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedms.core.errors import FedmsError
from fedms.federation.client import ClientHost, TrainingInStack
from fedms.federation.exchanges import TRAINING
from fedms.federation.world import open_world
from fedms.model.expert import Expert
from fedms.model.heads import zero_head
from fedms.training import batched as stacking
from fedms.training import expert_training as training
from fedms.training import runner
from fedms.training.device import resolved

AWAY = torch.device("meta")


class Watch(TorchDispatchMode):
    """Sees every operation.

    Attributes:
        reads: for each read of a tensor from the device, the number of steps before it; the read gives zeros.
        waited: names of other operations for which the host would wait: blocking copies to the device, also
            inside an operation on tensors of both devices.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[int] = []
        self.waited: list[str] = []
        self.steps = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        away = [each for each in tensors if each.device == AWAY]
        if name == "_local_scalar_dense" and away:
            self.reads.append(self.steps)
            return 0.0
        if name == "_to_copy":
            arrives = torch.device(kwargs.get("device") or tensors[0].device)
            if away and arrives != AWAY:
                self.reads.append(self.steps)
                return torch.zeros(away[0].shape, dtype=kwargs.get("dtype") or away[0].dtype)
            if arrives == AWAY and not away and not kwargs.get("non_blocking"):
                self.waited.append(name)
        elif away and any(each.device != AWAY and each.dim() for each in tensors):
            self.waited.append(name)
        return func(*args, **kwargs)


@pytest.fixture
def watch(monkeypatch):
    """Counts the steps, of the plain AdamW: the fused one does not support this device."""
    seen = Watch()

    class Plain(torch.optim.AdamW):
        def step(self, closure=None):
            seen.steps += 1
            super().step(closure)

    monkeypatch.setattr(
        training,
        "optimizer_of",
        lambda plan, leaves, config: Plain([*leaves, *(leaf for leaf, _ in plan.also)]),
    )
    return seen


@pytest.fixture
def abroad(federation):
    """A federation of this method with its backbone on the device."""

    def make(method, *overrides):
        made = federation(method, *overrides)
        world = open_world(made.world.config)
        world.class_embeddings  # noqa: B018 - while there are numbers
        world.backbone.to_device("meta", made.world.backbone.dtype)
        made.world, made.host = world, ClientHost(world, made.folder)
        return made

    return make


BATCH = 2
# pairs, a pull to the start, phases, a prompt, pairs beside others, and the mixture's loss
CASES = [
    ("fedavg", "precision=bfloat16", "training.epochs=2"),
    ("ditto",),
    ("fedrep",),
    ("promptfl", "precision=bfloat16"),
    ("fedalt", "precision=bfloat16"),
    ("fedms", "gate.objective=likelihood"),
]


def no_waiting(made, watch):
    """Each client trains once in the present stage."""
    config = made.world.config.training
    for task in made.server.tasks(TRAINING, made.server.clients, made.stage, 1, made.server.shared):
        made.host.receive(task)
        view = made.host.view(task)
        begun = TRAINING.begin(view)
        watch.reads, watch.waited, watch.steps = [], [], 0
        training.train_expert(
            made.host.runner,
            begun.expert,
            begun.plan,
            begun.samples,
            view.boundary,
            config,
            begun.order,
        )
        assert watch.steps == config.epochs * -(-len(begun.samples) // BATCH) > 2
        assert watch.reads == [watch.steps], "the loss is read, and only when all is done"
        assert watch.waited == []


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_step_is_waited_for_and_all_stages_and_the_test_find_their_tensors(abroad, watch, case):
    made = abroad(*case)
    with watch:
        for stage in made.method.stages:
            if stage is not made.stage:
                made.next_stage()
            no_waiting(made, watch)
            made.round(1)
        made.finish()


@pytest.mark.parametrize(("method", "precision"), [("fedavg", "float32"), ("ditto", "bfloat16")])
def test_no_step_of_a_stack_is_waited_for(abroad, watch, method, precision):
    made = abroad(method, f"precision={precision}")
    with watch:
        for stage in made.method.stages:
            if stage is not made.stage:
                made.next_stage()
            tasks = made.server.tasks(TRAINING, made.server.clients, made.stage, 1, made.server.shared)
            parts = [TrainingInStack.begin(made.host, task) for task in tasks]
            steps = [part.member.steps(made.world.config.training) for part in parts]
            watch.reads, watch.waited, watch.steps = [], [], 0
            stacking.train_stack(
                made.host.runner, [part.member for part in parts], 0, made.world.config.training
            )
            assert watch.steps == max(steps) > min(steps)
            assert (watch.reads, watch.waited) == ([watch.steps], [])
            made.round(1)


def test_what_an_expert_says_is_read_once_and_not_batch_by_batch(abroad, watch, monkeypatch):
    monkeypatch.setattr(runner, "EVALUATION_BATCH", BATCH)
    made = abroad("fedavg")
    samples = made.world.samples("client-1", "train")
    expert = Expert(zero_head(made.world.classes, made.world.backbone.feature_size), 1.0)
    with watch:
        made.host.runner.outputs(expert, samples, 0)
    assert len(samples) > 2 * BATCH and len(watch.reads) == 1, "the features"


@pytest.mark.parametrize(
    ("cuda", "mps", "found"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_is_the_first_device_that_is_there(monkeypatch, cuda, mps, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolved("auto") == found and resolved("cpu") == "cpu"
    if not cuda:
        with pytest.raises(FedmsError, match="device: cuda is not available here; allowed: auto, "):
            resolved("cuda")


# with a GPU

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")


@cuda
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_gives_the_same_bits_each_time_and_the_cpus_numbers_nearly(federation, precision):
    keys = (f"precision={precision}", "training.epochs=2")
    first, again = (federation("fedavg", "device=cuda", *keys).round(1) for _ in range(2))
    here = federation("fedavg", *keys).round(1)
    for client, update in first.items():
        for name, array in update.arrays.items():
            assert torch.equal(array, again[client].arrays[name])
        assert update.metrics["loss"] == pytest.approx(
            here[client].metrics["loss"], abs=1e-3 if precision == "float32" else 5e-2
        )


@cuda
@pytest.mark.parametrize("many", [1, 4])
def test_cuda_itself_sees_no_wait_between_steps(federation, monkeypatch, many):
    made = federation("fedavg", "device=cuda", "precision=bfloat16")
    parts = [
        TrainingInStack.begin(made.host, task)
        for task in made.server.tasks(TRAINING, made.server.clients[:many], made.stage, 1, made.server.shared)
    ]
    config, taken = made.world.config.training, []
    plain = torch.optim.AdamW.step

    def step(self, *given):
        result = plain(self, *given)
        taken.append(torch.cuda.get_sync_debug_mode())
        torch.cuda.set_sync_debug_mode(
            "error" if len(taken) < max(part.member.steps(config) for part in parts) else "default"
        )
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    try:
        if many == 1:
            begun = parts[0].begun
            training.train_expert(
                made.host.runner, begun.expert, begun.plan, begun.samples, 0, config, begun.order
            )
        else:
            stacking.train_stack(made.host.runner, [part.member for part in parts], 0, config)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert taken.count(2) == len(taken) - 1 > 1
