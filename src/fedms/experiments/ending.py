"""The end of an experiment: what validation data choose for the finished models, and the test of all clients.

No checkpoint: it is soon done again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from fedms.experiments.rounds import Line, Rounds
from fedms.federation.exchanges import FINAL_TEST, INTERPOLATION, WEIGHTS
from fedms.federation.exchanges.selection import InterpolationAsked, Selection
from fedms.federation.exchanges.testing import BASE_MEANS, FinalTestAsked
from fedms.federation.sites import ServerSide
from fedms.runs.cleaning import prune
from fedms.runs.result import make_result


def finish(
    rounds: Rounds, world: ServerSide, base_means: Tensor | None, chosen: Selection | None
) -> dict[str, Any]:
    """Test every client's final model on own and everyone's data; the content of result.json, now written.

    What only a resumption would need is removed.

    Args:
        base_means: the class means that judge pictures before any training.
        chosen: what was chosen before; None to choose it now.
    """
    server, recipe = rounds.server, rounds.server.recipe
    line = Line("end", 0, 0, len(server.active(recipe.last_stage)), server.clients)
    selection = chosen or _selected(rounds, line)
    arrays = dict(server.shared)
    if base_means is not None:
        arrays[BASE_MEANS] = base_means
    asked = FinalTestAsked(selection.prior, selection.interpolation, list(selection.evidence_scales))
    updates = rounds.ask(
        line,
        FINAL_TEST,
        server.clients,
        None,
        needed=len(server.clients),  # a result is about every client
        evaluation=True,
        arrays=arrays,
        asked=asked,
    )
    record = line.record()
    rounds.folder.append_metrics(record)
    answers, lines = FINAL_TEST.result(updates, recipe), rounds.folder.metrics()
    result = make_result(world, server, selection, answers, lines, rounds.engine.peak_memory())
    rounds.folder.write_result(result)
    prune(rounds.folder.path)
    rounds.observer.round_done(record)
    rounds.observer.end(result)
    return result


def _selected(rounds: Rounds, line: Line) -> Selection:
    """What all clients' validation data choose for the finished models."""
    server, recipe = rounds.server, rounds.server.recipe
    selection, arrays, clients = Selection.before(recipe), dict(server.shared), server.sampling.validators
    if recipe.chooses_interpolation:
        updates = rounds.ask(line, INTERPOLATION, clients, None, arrays=arrays)
        selection = replace(selection, interpolation=INTERPOLATION.result(updates, recipe))
    if recipe.chooses_weights:
        asked = InterpolationAsked(selection.interpolation)
        updates = rounds.ask(line, WEIGHTS, clients, None, arrays=arrays, asked=asked)
        selection = WEIGHTS.result(updates, recipe).applied(selection)
    return selection
