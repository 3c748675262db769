"""The client's side of an answer that is part of a secure sum."""

from __future__ import annotations

from fedms.config import Config
from fedms.core.errors import ConfigError, FedmsError
from fedms.federation.client_view import ClientView
from fedms.federation.exchanges import find_exchange
from fedms.federation.exchanges.base import Expected
from fedms.federation.exchanges.summing import member_of
from fedms.federation.messages import SUM, Task, Update
from fedms.federation.methods import of
from fedms.federation.secure.ciphers import require_ciphers
from fedms.federation.secure.member import SHARES, Plan

COSTS = ("flops", "once", "evaluation")
"""What stays in the clear: operations, which follow from numbers and lengths of samples."""


def masked(task: Task, view: ClientView, update: Update) -> Update:
    """The answer as its masked addends; as it is where the exchange needs single answers.

    Raises:
        FedmsError: the server asks for a single answer where sums alone are allowed, or for too small a sum.
    """
    exchange = find_exchange(task.kind)
    expected = Expected.of(view)
    ranges = exchange.ranges(task, expected)
    if ranges is None:
        return update
    if SUM not in task.settings:
        raise FedmsError("the server asks for a single answer, and privacy.secure_sum allows sums alone")
    addends = exchange.addends(update, expected)
    arrays = member_of(view).masked(
        Plan.of(task.settings[SUM]),
        exchange.question(task),
        task.arrays[SHARES],
        {name: (addends[name], within) for name, within in ranges.items()},
        view.config.seed,
    )
    costs = {key: update.metrics[key] for key in COSTS if key in update.metrics}
    return Update(update.client, arrays, 0.0, costs)


def check_secure(config: Config) -> None:
    """Raise ConfigError where secure sums are wanted and the method, or this machine, cannot have them."""
    if not config.privacy.secure_sum:
        return
    if any(stage.average == "beside" for stage in of(config).stages):
        others = "all methods whose clients do not subtract their own part from the average"
        raise ConfigError(
            f"method: {config.method} is not possible with privacy.secure_sum; allowed: {others}"
        )
    require_ciphers("privacy.secure_sum")
