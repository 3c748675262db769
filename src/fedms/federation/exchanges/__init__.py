"""The questions that a server asks its clients, each in a file of its own."""

from __future__ import annotations

from typing import Any

from fedms.core.errors import FedmsError
from fedms.federation.exchanges.base import Exchange
from fedms.federation.exchanges.evaluation import EvaluationExchange
from fedms.federation.exchanges.local_training import TrainingExchange
from fedms.federation.exchanges.selection import InterpolationExchange, WeightsExchange
from fedms.federation.exchanges.settling import HeadExchange, LabelPriorExchange
from fedms.federation.exchanges.statistics import CalibrationExchange, StatisticsExchange
from fedms.federation.exchanges.summing import IntroduceExchange, RevealExchange, ShareExchange
from fedms.federation.exchanges.testing import FinalTestExchange

STATISTICS = StatisticsExchange()
CALIBRATION = CalibrationExchange()
TRAINING = TrainingExchange()
EVALUATION = EvaluationExchange()
HEAD = HeadExchange()
LABEL_PRIOR = LabelPriorExchange()
INTERPOLATION = InterpolationExchange()
WEIGHTS = WeightsExchange()
FINAL_TEST = FinalTestExchange()
INTRODUCE = IntroduceExchange()
SHARE = ShareExchange()
REVEAL = RevealExchange()

EXCHANGES: dict[str, Exchange[Any, Any, Any]] = {
    exchange.kind: exchange
    for exchange in (
        STATISTICS,
        CALIBRATION,
        TRAINING,
        EVALUATION,
        HEAD,
        LABEL_PRIOR,
        INTERPOLATION,
        WEIGHTS,
        FINAL_TEST,
        INTRODUCE,
        SHARE,
        REVEAL,
    )
}
"""By kind, as tasks name them."""


def find_exchange(kind: str) -> Exchange[Any, Any, Any]:
    """The exchange of this kind.

    Raises:
        FedmsError: there is none.
    """
    if kind not in EXCHANGES:
        raise FedmsError(f"no question {kind!r:.80}; known: {', '.join(EXCHANGES)}")
    return EXCHANGES[kind]
