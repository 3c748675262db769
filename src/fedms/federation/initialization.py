"""From where a client trains: what it was sent, what it kept, and the start of the rest."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from fedms.federation.client_view import ClientView
from fedms.federation.method import LORA, Stage
from fedms.federation.recipe import HEADS_FROM_NAMES
from fedms.model.arrays import Arrays, block_of, prefixed, strip
from fedms.model.discriminant import posterior_mean
from fedms.model.expert import Expert
from fedms.model.heads import nearest_head, statistics_head, zero_head
from fedms.model.parts import fresh_lora, fresh_parts, group, part_of, trained_names
from fedms.model.statistics import FeatureSums

ARRIVED = "arrived/"
"""How the names of arrays begin that a client keeps as the server has them, where they were rounded on their
way (`federation.uplink`)."""


def expert_at_start(view: ClientView, stage: Stage) -> Expert:
    """The expert as this round's training finds it."""
    shared = {name: array for name, array in view.arrays.items() if part_of(name)}
    if stage.expert == "global":
        known = strip(view.received, "global/") | shared
        return _expert(view, _fresh(view, stage, known=known) | known)
    own = strip(view.kept, "local/")
    if not own or view.config.start_from is not None:  # more blocks may be active than in the run before
        own = local_start(view, stage) | own
    beside = _others(view, stage, own, shared) if stage.average == "beside" else shared
    return _expert(view, own | beside)


def local_start(view: ClientView, stage: Stage) -> Arrays:
    """A local expert before its first training.

    It starts from the global expert, or from what else everybody starts from, or from the client's data
    alone.
    """
    # matrices that are averaged apart from each other must begin alike everywhere
    alike = any(matrix in stage.shares for matrix in LORA)
    sent = strip(view.received, "global/")
    fresh = _fresh(view, stage, *(() if alike else (view.client,)))
    if view.recipe.of_text:
        return fresh | (sent if view.config.mixture.local_start == "global" else {})
    if "head.weight" not in sent:
        return fresh | _own_head(view)
    start = fresh | (sent if view.config.mixture.local_start == "global" else _heads(sent))
    if view.situation.label_prior is None:
        return start
    shift = label_prior_shift(view, view.situation.label_prior)
    return start | {"head.bias": start["head.bias"] + shift / start["head.log_scale"].exp()}


def training_names(view: ClientView, stage: Stage) -> list[str]:
    """The arrays that train in this stage."""
    return trained_names(view.backbone, stage.trains, view.blocks, view.config.head.kind)


def _fresh(view: ClientView, stage: Stage, *purpose: str, known: Collection[str] = ()) -> Arrays:
    config, active = view.config, view.situation.active
    pairs = fresh_lora(view.backbone, active, view.rank, config.seed, *purpose, known=known)
    return pairs | fresh_parts(view.backbone, stage.trains, active, config.model.prompt_tokens, config.seed)


def _expert(view: ClientView, arrays: Arrays) -> Expert:
    return Expert(arrays, view.recipe.scale).to(view.backbone.device)


def _others(view: ClientView, stage: Stage, own: Arrays, average: Arrays) -> Arrays:
    """The average over the other clients: the average over all, without this client if it took part."""
    # what nobody trains is everybody's
    rest = {name: array.clone() for name, array in own.items() if group(name) in LORA} | average
    averaged = view.situation.averaged
    if averaged and view.kept_at == {"stage": averaged["stage"], "round": averaged["round"]}:
        weight, in_average = len(view.samples("train")), own | strip(view.kept, ARRIVED)
        for name in average.keys() & training_names(view, stage):
            share = weight / averaged["weights"][str(block_of(name))]
            # a client that trained it alone has no others, and zeros in their place change nothing
            alone = torch.zeros_like(own[name])
            rest[name] = (average[name] - share * in_average[name]) / (1 - share) if share < 1 else alone
    return prefixed(rest, "beside.")


def label_prior_shift(view: ClientView, samples: float) -> Tensor:
    """log p_k(c) - log q(c), [C]: how much likelier each class is here than with everyone.

    p_k is a posterior mean in which everyone's shares q count as `samples`.
    """
    counts = torch.bincount(view.samples("train").labels, minlength=view.classes).float()
    everyone = view.received.get("everyone.prior", torch.full_like(counts, 1 / len(counts)))
    return posterior_mean(counts, everyone, samples).log() - everyone.log()


def _own_head(view: ClientView) -> Arrays:
    """A head from the client's own data alone, of the configured kind."""
    kind = view.config.head.kind
    if kind == "linear":
        return zero_head(view.classes, view.backbone.feature_size)
    if kind in HEADS_FROM_NAMES:
        assert view.class_embeddings is not None
        return nearest_head(view.class_embeddings, frozen=kind == "text")
    found = {}
    for split in ("train", "validation"):
        samples = view.samples(split)
        features = view.runner.frozen_outputs("backbone", None, samples, view.boundary).features
        found[split] = features, samples.labels
    second = view.config.statistics.second_moment is not False  # nothing of it leaves the client
    own = FeatureSums.of(*found["train"], view.classes, second).discriminant()
    if kind == "means":
        return nearest_head(own.means)
    shrinkages = view.recipe.shrinkages
    return statistics_head(own.calibrated(own.log_likelihood(*found["validation"], shrinkages), shrinkages))


def _heads(arrays: Arrays) -> Arrays:
    return {name: array for name, array in arrays.items() if name.startswith("head.")}
