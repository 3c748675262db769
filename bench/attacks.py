"""Attack what leaves a client, and write into docs/privacy.md what a curious server finds.

    python bench/attacks.py                           # the embedded corpus: about ten minutes of one core
    python bench/attacks.py banking77 --data DIR      # BANKING77
    python bench/attacks.py --seeds 0                 # one seed
    python bench/attacks.py --render                  # only write the tables, from the figures that exist

The server follows the protocol and knows the frozen encoder. It has a list of candidates with their labels:
all samples of the corpus. Each attack is made on what a client really sends, before and after each
protection. A run of the example is trained first and stays in runs/attacks. Figures stay there, too, one file
a seed: delete it to attack anew.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common import attacks
from common.attacks import Sent, auc
from common.pages import ROOT, markdown_table, splice, spread
from fedms import run as run_one
from fedms.config import load_config
from fedms.config.federation import Uplink
from fedms.config.schema import changed
from fedms.core import seeds
from fedms.core.files import read_arrays, write_json
from fedms.data.federated import Samples
from fedms.federation.client import ClientHost
from fedms.federation.client_view import ClientView
from fedms.federation.exchanges import STATISTICS, TRAINING, uplink
from fedms.federation.exchanges.base import behind
from fedms.federation.exchanges.statistics import FeaturesAsked
from fedms.federation.personal_model import PersonalModel
from fedms.federation.prediction import MixtureOutputs
from fedms.federation.recipe import recipe_for
from fedms.federation.server import Server
from fedms.federation.world import open_world
from fedms.model.discriminant import Discriminant
from fedms.model.expert import Expert
from fedms.model.statistics import FeatureSums, normalise

PAGE = ROOT / "docs" / "privacy.md"
RUNS = ROOT / "runs" / "attacks"
EXAMPLES: dict[str, list[str]] = {
    "assistant": [],
    "banking77": ["data.source=DATA/banking77", "data.limit=3000"],
}
"""Example -> the keys in which the attacked run differs (DATA stands for --data)."""
TRIALS = 20
"""Splits of one and of two samples that are to be named."""
FEW = 200
"""Candidates among which a split of two is to be named, and of other clients where a score is costly."""
GRIDS: dict[str, Sent] = {
    "exact sums": lambda sums: sums.float().double(),
    "as sent": lambda sums: behind(sums).double(),
}
FORMS: tuple[Uplink, ...] = ("float32", "bfloat16", "int8", "int4")
SUMS: dict[str, dict[str, object]] = {
    "second_moment: true": {"statistics.second_moment": True},
    "second_moment: true, rank 16": {"statistics.second_moment": True, "statistics.rank": 16},
    "default": {},
    "least: 5": {"statistics.least": 5},
}
"""How feature sums are sent."""
Figures = dict[str, list[float]]
"""By name, one a client or a trial."""


class Watched:
    """Server and clients of one run, in this process.

    Attributes:
        x, labels: features [n, d] and labels [n] of all candidates.
        owner, split: whose each candidate is, and which split it is in.
    """

    def __init__(self, run: Path, folder: Path) -> None:
        self.run, config = run, load_config(run / "config.yaml")
        self.world = world = open_world(config)
        self.host, recipe = ClientHost(world, folder), recipe_for(config)
        self.server = Server(recipe, world.backbone, list(world.clients), world.ranks)
        self.stage = recipe.stages[0]
        self.views = dict(self._views())
        self.boundary = self.server.boundary(self.stage)
        held = [
            (name, split, samples, self._features(samples))
            for name in world.clients
            for split in ("train", "validation", "test")
            if len(samples := world.samples(name, split))
        ]
        self.x = torch.cat([x for *_, x in held])
        self.labels = torch.cat([samples.labels for _, _, samples, _ in held])
        self.owner = np.concatenate([[name] * len(samples) for name, _, samples, _ in held])
        self.split = np.concatenate([[split] * len(samples) for _, split, samples, _ in held])
        self.generator = seeds.torch_generator(config.seed, "attacks")

    def _features(self, samples: Samples) -> Tensor:
        return self.host.runner.frozen_outputs("backbone", None, samples, self.boundary).features

    def _views(self) -> Iterator[tuple[str, ClientView]]:
        asked = FeaturesAsked("backbone")
        for task in self.server.tasks(STATISTICS, self.server.clients, self.stage, 0, {}, asked):
            self.host.receive(task)
            yield task.client, self.host.view(task)

    def members(self, name: str, split: str) -> Tensor:
        """Which candidates are in this split of a client."""
        return torch.from_numpy((self.owner == name) & (self.split == split))

    def sums(self, keys: dict[str, object]) -> dict[str, FeatureSums]:
        """What the server has of each client's features, with these keys."""
        found = {}
        for name, view in self.views.items():
            recipe = recipe_for(changed(self.world.config, keys))
            answer = STATISTICS.answer(replace(view, recipe=recipe), FeaturesAsked("backbone"))
            found[name] = FeatureSums.from_arrays(answer.arrays())
        return found

    def discriminant(self) -> Discriminant:
        """What the server makes of the sums, and sends to all."""
        anchor = self.world.config.statistics.anchor
        names = normalise(self.world.class_embeddings) if anchor else None
        return FeatureSums.estimated(self.sums({}).values()).discriminant(None, names, anchor)


def both(figures: Figures, row: str, scores: Tensor, members: Tensor, watched: Watched, name: str) -> None:
    """Note how well scores tell a client's members from all other candidates, and from its own others."""
    own = torch.from_numpy(watched.owner == name) & ~members
    figures[f"{row}|all"].append(auc(scores[members], scores[~members]))
    figures[f"{row}|own"].append(auc(scores[members], scores[own]))


def attack_sums(watched: Watched, figures: Figures) -> None:
    """Membership in the training split, and classes of few samples."""
    everyone = watched.discriminant()
    for row, keys in SUMS.items():
        for name, sums in watched.sums(keys).items():
            members = watched.members(name, "train")
            if sums.second is not None:
                score = attacks.leverage(sums.second, watched.x)
                both(figures, f"second moment|{row}", score, members, watched, name)
                continue
            score = attacks.share_of_mean(sums, everyone, watched.x, watched.labels)
            both(figures, f"class sums|{row}", score, members, watched, name)
            own = FeatureSums.of(watched.x[members], watched.labels[members], watched.world.classes, False)
            for size in (1, 2, 3):
                found = attacks.recovered(sums, watched.x, watched.labels, size)
                for label in (own.counts == size).nonzero().flatten().tolist():
                    right = label in found and torch.allclose(
                        watched.x[found[label]].sum(0).double(), own.sums[label], atol=attacks.CLOSE
                    )
                    figures[f"class of {size}|{row}|found"].append(float(right))


def attack_grids(watched: Watched, figures: Figures) -> None:
    """Membership in the validation split by the calibration numbers, and splits of one and two samples."""
    shrinkages = watched.server.recipe.shrinkages
    each = watched.discriminant().log_likelihoods(watched.x, watched.labels, shrinkages)
    numbers = each.flatten(0, 1).T.double()
    for row, sent in GRIDS.items():
        for name in watched.views:
            members, own = watched.members(name, "validation"), torch.from_numpy(watched.owner == name)
            few = own | (torch.rand(len(own), generator=watched.generator) < FEW / len(own))
            inside, size = members[few], int(members.sum())
            score = attacks.in_split(
                sent(numbers[members].sum(0)), numbers[few], sent, size, watched.generator
            )
            figures[f"calibration|{row}|all"].append(auc(score[inside], score[~inside]))
            figures[f"calibration|{row}|own"].append(auc(score[inside], score[own[few] & ~inside]))
        for trial in range(TRIALS):
            picks = torch.randperm(len(numbers), generator=watched.generator)
            one, two = numbers[picks[0]], numbers[picks[:2]].sum(0)
            figures[f"split of 1|{row}|found"].append(attacks.named(sent(one), numbers, sent, 1))
            if trial % 4 == 0:
                among = numbers[picks[:FEW]]
                figures[f"split of 2|{row}|found"].append(attacks.named(sent(two), among, sent, 2))


def attack_update(watched: Watched, figures: Figures) -> None:
    """Membership, and which classes a client holds, from the head that it sends after its first round."""
    server, config = watched.server, watched.world.config
    server.learn(watched.discriminant())
    server.start_head(watched.world.classes, watched.world.class_embeddings)
    server.begin(watched.stage)
    start = {name: array.clone() for name, array in (server.frozen | server.shared).items()}
    logits = Expert(start, server.recipe.scale).logits(watched.x)
    for task in server.tasks(TRAINING, server.clients, watched.stage, 1, server.shared):
        arrays, name = watched.host.handle(task).arrays, task.client
        starts = {key: start[key] for key in arrays}
        members = watched.members(name, "train")
        held = torch.bincount(watched.labels[members], minlength=watched.world.classes) > 0
        for form in FORMS:

            def draw(key: str, form: str = form, name: str = name) -> torch.Generator:
                return seeds.torch_generator(config.seed, "attacks", form, name, key)

            came = uplink.unpacked(uplink.packed(arrays, starts, form, draw), starts, form)
            score = attacks.alignment(
                start["head.weight"], came["head.weight"], watched.x, logits, watched.labels
            )
            both(figures, f"update|{form}", score, members, watched, name)
            moved = came["head.bias"] - start["head.bias"]
            figures[f"classes held|{form}|all"].append(auc(moved[held], moved[~held]))


def attack_experts(watched: Watched, figures: Figures) -> None:
    """Membership by the loss of finished experts, against the client's own test samples."""
    world, config = watched.world, watched.world.config
    recipe = watched.server.recipe
    for name in world.clients:
        arrays, facts = read_arrays(watched.run / "clients" / name / "model.safetensors")
        model = PersonalModel(
            arrays, recipe.method, config, facts["network_kept"], tuple(facts["evidence_scales"])
        )
        scores: dict[str, list[Tensor]] = defaultdict(list)
        for split in ("train", "test"):
            samples = world.samples(name, split)
            outputs = recipe.predictor.judge(model, watched.host.runner, samples, facts["boundary"])
            assert isinstance(outputs, MixtureOutputs)
            for row, logits in (
                ("local expert", outputs.local_logits),
                ("global expert", outputs.global_logits),
                ("mixture", outputs.log_probabilities(config.gate.prior)),
            ):
                scores[row].append(attacks.likeliness(F.log_softmax(logits, dim=1), samples.labels))
        for row, (members, others) in scores.items():
            figures[f"{row}|finished|own"].append(auc(members, others))


def figures_of(example: str, seed: int, data: Path | None) -> Path:
    """The file of one seed's figures, which are made where they are missing."""
    run, path = RUNS / f"{example}-{seed}", RUNS / f"{example}-{seed}.json"
    if path.exists():
        return path
    if not (run / "result.json").exists():
        keys = [key.replace("=DATA/", f"={data}/") for key in EXAMPLES[example]]
        config = load_config(
            ROOT / "examples" / f"{example}.yaml", [f"seed={seed}", "engine.workers=1", *keys]
        )
        run_one(config, run, resume=run.exists())
    figures: Figures = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        watched = Watched(run, Path(folder))
        for attack in (attack_sums, attack_grids, attack_update, attack_experts):
            attack(watched, figures)
            print(f"{example}, seed {seed}: {attack.__name__}", flush=True)
    write_json(path, figures)
    return path


def tables(example: str) -> str:
    """What all seeds that were attacked have found."""
    found = [json.loads(path.read_text()) for path in sorted(RUNS.glob(f"{example}-[0-9]*.json"))]
    rows: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for line in found[0]:
        attack, sent, column = line.split("|")
        rows[attack, sent][column] = spread([float(np.mean(each[line])) for each in found if each.get(line)])
    counts = {
        line: sum(len(each.get(line, [])) for each in found) for line in found[0] if line.endswith("|found")
    }
    membership = [
        [attack, sent, cells.get("all", ""), cells.get("own", "")]
        for (attack, sent), cells in rows.items()
        if "found" not in cells
    ]
    named = [
        [attack, sent, cells["found"], str(counts[f"{attack}|{sent}|found"])]
        for (attack, sent), cells in rows.items()
        if "found" in cells
    ]
    return "\n\n".join(
        [
            f"{len(found)} seed{'s' * (len(found) > 1)}:",
            markdown_table(["attack", "as it is sent", "AUC, all others", "AUC, own others"], membership),
            markdown_table(["samples of", "as they are sent", "named", "tried"], named),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("examples", nargs="*", metavar="EXAMPLE", help="default: assistant")
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--render", action="store_true", help="only write the tables")
    given = parser.parse_args()
    if unknown := [name for name in given.examples if name not in EXAMPLES]:
        parser.error(f"{unknown[0]}: no such example; there are {', '.join(EXAMPLES)}")
    for example in given.examples or ["assistant"]:
        for seed in [] if given.render else given.seeds.split(","):
            figures_of(example, int(seed), given.data.resolve() if given.data else None)
        made = tables(example)
        print(f"{example}\n{made}\n")
        splice(PAGE, f"attacks {example}", made)


if __name__ == "__main__":
    main()
