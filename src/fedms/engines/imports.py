"""The import path of this process, as a worker process takes it over."""

from __future__ import annotations

import json
import os
import sys


def describe_imports() -> str:
    """One line of JSON: `path`, which is `sys.path`, and `homes`, the folder of each top-level module in use.

    The homes matter where the path alone would mislead a worker. A notebook has its own folder first on the
    path, but it has loaded `random` from the standard library before that: so must the worker, though there
    may be a `random.py` beside the notebook.
    """
    return json.dumps({"path": [each for each in sys.path if isinstance(each, str)], "homes": _homes()})


def _homes() -> dict[str, str]:
    found = {}
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        if "." in name or spec is None or spec.name != name or not (spec.has_location and spec.origin):
            continue
        folder = os.path.dirname(os.path.abspath(spec.origin))  # noqa: PTH100, PTH120 (hundreds of them)
        is_package = spec.submodule_search_locations is not None
        found[name] = os.path.dirname(folder) if is_package else folder  # noqa: PTH120
    return found
