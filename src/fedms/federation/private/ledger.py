"""A client's ledger: what it has released, what that cost, and what it refuses.

`privacy.json` in the client's own folder, which only its owner can read, and beside it each release as it was
sent. A question that is asked again, as after a crash, gets the same answer: noise drawn anew would be a
second release. The release is written before its event, and both before anything is sent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from fedms.config.privacy import PrivacyConfig
from fedms.core.errors import FedmsError
from fedms.core.files import read_arrays, read_json, write_arrays, write_bytes
from fedms.federation.private.accountant import epsilon_of

FILE, RELEASES = "privacy.json", "releases"
SLACK = 1e-6
"""By how much of the budget a sum of rounded numbers may pass it."""


@dataclass(frozen=True)
class Event:
    """One release."""

    question: str
    """What was asked, in words."""
    multiplier: float
    """Deviation of the noise, in sensitivities."""


class PrivacyLedger:
    """The ledger of one client."""

    def __init__(self, client: str, folder: Path, privacy: PrivacyConfig) -> None:
        self.client = client
        self.privacy = privacy
        self._folder = folder

    @property
    def spent(self) -> float:
        """The epsilon of all events."""
        return self._epsilon(self.events())

    def events(self) -> list[Event]:
        """All releases so far."""
        path = self._folder / FILE
        return [Event(**each) for each in read_json(path)["events"]] if path.exists() else []

    def released(self, event: Event, draw: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The answer to the event's question: as it was sent before, or drawn now and booked.

        Raises:
            FedmsError: it is beyond the budget, or what was sent before is lost.
        """
        events = self.events()
        booked = next((each for each in events if each.question == event.question), None)
        path = self._folder / RELEASES / f"{hashlib.sha256(event.question.encode()).hexdigest()}.safetensors"
        if path.exists():
            arrays, meta = read_arrays(path)
            if booked is None:  # the process ended between the two files
                self._write([*events, Event(**meta)])
            return arrays
        if booked is not None:
            raise FedmsError(f"{path}: the release is gone, and drawing it again would reveal more")
        cost, budget = self._epsilon([*events, event]), self.privacy.epsilon or 0.0
        if cost > budget * (1 + SLACK):
            raise FedmsError(
                f"{self.client} refuses {event.question!r}: its epsilon would be {cost:.4g}, "
                f"and privacy.epsilon is {budget:g}"
            )
        arrays, _ = write_arrays(path, draw(), asdict(event), mode=0o600)
        self._write([*events, event])
        return arrays

    def _epsilon(self, events: list[Event]) -> float:
        return epsilon_of([each.multiplier for each in events], self.privacy.delta)

    def _write(self, events: list[Event]) -> None:
        privacy = self.privacy
        content = {
            "unit": privacy.unit,
            "epsilon": privacy.epsilon,
            "delta": privacy.delta,
            "noise": privacy.noise,
            "spent": self._epsilon(events),
            "events": [asdict(each) for each in events],
        }
        write_bytes(self._folder / FILE, (json.dumps(content, indent=2) + "\n").encode(), mode=0o600)
