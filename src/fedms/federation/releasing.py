"""The client's side of an answer under differential privacy: what leaves it, and what the ledger says of it.

What leaves a private client: sums with noise; in the clear its numbers of samples, and at the end the test of
the simulation. Neither losses, hits and likelihoods nor operations do, which follow from the texts' lengths.
"""

from __future__ import annotations

from dataclasses import replace

from fedms.config import Config
from fedms.core.errors import ConfigError, FedmsError
from fedms.federation.client_view import ClientView
from fedms.federation.exchanges import FINAL_TEST, INTRODUCE, REVEAL, SHARE, TRAINING, find_exchange
from fedms.federation.exchanges.base import Expected
from fedms.federation.messages import Task, Update
from fedms.federation.private.accountant import require_accountant
from fedms.federation.private.ledger import Event, PrivacyLedger
from fedms.federation.private.noise import clipped, deviations, multiplier_of, noise_seed, noisy
from fedms.federation.recipe import recipe_for
from fedms.federation.secure.ciphers import require_ciphers
from fedms.model.gate import shared_names


def released(task: Task, view: ClientView, update: Update) -> Update:
    """The answer as its private release. A question that was asked before gets the same bits.

    Raises:
        FedmsError: it has no private release, or the client's budget is spent.
    """
    exchange, privacy = find_exchange(task.kind), view.config.privacy
    ledger = PrivacyLedger(view.client, view.folder.path, privacy)
    if exchange in (INTRODUCE, SHARE, REVEAL):
        return update
    if exchange is FINAL_TEST:
        return replace(update, metrics={**update.metrics, "epsilon": ledger.spent})
    if exchange is TRAINING and not update.arrays:
        return Update(update.client, {}, update.weight)
    spreads = exchange.spreads(Expected.of(view))
    if spreads is None or spreads.keys() != update.arrays.keys():
        raise FedmsError(f"the answer to {task.kind} has no private release, so privacy.unit forbids it")
    question = exchange.question(task)
    event = Event(question, multiplier_of(view.recipe))
    arrays = update.arrays
    if privacy.unit == "client":
        arrays = clipped(arrays, spreads, privacy.clip)
    noise = deviations(view.recipe, spreads)
    sent = ledger.released(
        event, lambda: noisy(arrays, noise, noise_seed(view.config, question, view.client))
    )
    return Update(update.client, sent, update.weight)


def check_private(config: Config) -> None:
    """Raise ConfigError where differential privacy is wanted and the method, or this machine, cannot have
    it.
    """
    if config.privacy.unit is None:
        return
    recipe, gate = recipe_for(config), config.gate
    for stage in recipe.stages:
        shares = {*stage.shares}
        if not (gate.network and shared_names(gate.share)):
            shares.discard("gate")
        if shares and recipe.rounds(stage):
            also = " or gate.share: none" if shares == {"gate"} else ""
            raise ConfigError(
                f"method: the {stage.name} stage of {config.method} shares {', '.join(sorted(shares))}, "
                "which has no private release; "
                f"allowed with privacy.unit: federation.rounds_{stage.budget}: 0{also}"
            )
    require_ciphers("privacy.unit")
    require_accountant()
