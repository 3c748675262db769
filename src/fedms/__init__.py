"""fedms: federated fine-tuning of foundation models.

Every client gets a global and a local expert, mixed by a gate.

    config = fedms.load_config("examples/assistant.yaml", ["seed=1"])
    result = fedms.run(config, "runs/first")
    client = fedms.load("runs/first", "lights-0")
    client.predict(["turn on the kitchen lights"])[0].label

Everything heavy is imported when it is first used, so `import fedms` is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedms.core.errors import ConfigError, FedmsError
from fedms.core.reproducibility import request_same_bits

request_same_bits()  # before anything loads torch

if TYPE_CHECKING:
    from fedms.config import Config, load_config
    from fedms.experiments.api import compare, run
    from fedms.federation.aggregation.aggregator import Aggregator
    from fedms.federation.evaluation import Evaluation
    from fedms.federation.method import Method, Stage
    from fedms.federation.prediction import Predictor
    from fedms.federation.registration import register
    from fedms.model.families import Family
    from fedms.runs.client import Client, Explanation, Prediction
    from fedms.runs.frames import Result
    from fedms.runs.predict import load
    from fedms.runs.text_client import Generation, TextClient

__all__ = [
    "Aggregator",
    "Client",
    "Config",
    "ConfigError",
    "Evaluation",
    "Explanation",
    "Family",
    "FedmsError",
    "Generation",
    "Method",
    "Prediction",
    "Predictor",
    "Result",
    "Stage",
    "TextClient",
    "compare",
    "load",
    "load_config",
    "register",
    "run",
]

_HOMES = {
    "Aggregator": "fedms.federation.aggregation.aggregator",
    "Client": "fedms.runs.client",
    "Config": "fedms.config",
    "Evaluation": "fedms.federation.evaluation",
    "Explanation": "fedms.runs.client",
    "Family": "fedms.model.families",
    "Generation": "fedms.runs.text_client",
    "Method": "fedms.federation.method",
    "Prediction": "fedms.runs.client",
    "Predictor": "fedms.federation.prediction",
    "Result": "fedms.runs.frames",
    "Stage": "fedms.federation.method",
    "TextClient": "fedms.runs.text_client",
    "compare": "fedms.experiments.api",
    "load": "fedms.runs.predict",
    "load_config": "fedms.config",
    "register": "fedms.federation.registration",
    "run": "fedms.experiments.api",
}
"""The module of each name that is imported when it is first used."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
