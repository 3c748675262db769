"""fedms: federated fine-tuning of foundation models with a global and a local expert per client, mixed by a gate.

The commands' Python face: `run` an experiment, `compare` methods, `load` one of its clients and let it predict.

    config = fedms.load_config("examples/assistant.yaml", ["seed=1"])
    result = fedms.run(config, "runs/first")
    client = fedms.load("runs/first", "lights-0")
    client.predict(["turn on the kitchen lights"])[0].label

Whatever is heavy is imported when it is first used, so `import fedms` is instant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedms.core.reproducibility import request_same_bits
from fedms.errors import ConfigError, FedmsError

request_same_bits()  # before anything loads torch

if TYPE_CHECKING:
    from fedms.config import Config
    from fedms.config import load as load_config
    from fedms.predict import Client, Prediction
    from fedms.progress import Observer

__all__ = ["Client", "Config", "ConfigError", "FedmsError", "Prediction", "compare", "load", "load_config", "run"]

_LATER = {
    "Client": ("fedms.predict", "Client"),
    "Config": ("fedms.config", "Config"),
    "Prediction": ("fedms.predict", "Prediction"),
    "load_config": ("fedms.config", "load"),
}


def run(
    config: Config | str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    observer: Observer | None = None,
    reuse: str | Path | None = None,
    resume: bool = False,
    report: bool = True,
) -> dict[str, Any]:
    """Run one experiment into a folder; return what its result.json says.

    Args:
        config: the experiment: a `Config`, a YAML file, or a mapping of its keys.
        out: the run folder, which must not hold anything yet, but for `resume`.
        observer: hears of the progress; default: nobody.
        reuse: a finished run of the same experiment's first stage alone, which is then not trained again.
        resume: go on with the run that is in the folder, to the result that it would have come to; where there is none, begin.
        report: write report.html and its figures, too.

    Raises:
        ConfigError: a wrong key, type, range or combination. Nothing has been written then.
        FedmsError: data, model or folder are not as needed.
    """
    from fedms.config import Config, load

    checked = config if isinstance(config, Config) else load(config)

    from fedms import experiment

    result = experiment.run(checked, Path(out), observer, None if reuse is None else Path(reuse), resume)
    if report:
        from fedms.report.html import write_report

        write_report(Path(out))
    return result


def compare(
    config: Config | str | Path | Mapping[str, Any],
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    out: str | Path | None = None,
    *,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Compare methods on the same partitions and the same budget; return what comparison.json says.

    Args:
        config: the experiment, whose section `compare` names rows, seeds and what is tuned: as for `run`.
        methods: these methods, or variants that the config names; default: what the config says.
        seeds: default: what the config says.
        out: the comparison's folder; what an interrupted comparison has left there is kept. Default: runs/NAME-compare, after the file.
        observer: hears of the progress; default: nobody.

    Raises:
        ConfigError: a wrong key, type, range or combination, also in a variant. Nothing has been written then.
        FedmsError: data, model or folder are not as needed, or a run failed. What has finished stays.
    """
    from fedms.comparison.rows import narrowed
    from fedms.config import Config, load

    checked = narrowed(config if isinstance(config, Config) else load(config), methods, seeds)
    folder = (
        Path(out) if out is not None else Path("runs") / (f"{Path(config).stem}-compare" if isinstance(config, str | Path) else "compare")
    )

    from fedms.comparison.compare import compare

    return compare(checked, folder, observer)


def load(run: str | Path, client: str) -> Client:
    """Open one client of a finished run, ready to predict; the data set is not needed.

    Raises:
        FedmsError: no finished run is there, it has no such client, or its model cannot be loaded.
    """
    from fedms import predict

    return predict.load(run, client)


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LATER[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
