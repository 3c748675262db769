"""The process from which the tests' workers are forked: see quick_workers.py. It imports nothing of fedms."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import socket
import sys
import traceback
from typing import Any

IMPORTS = ("torch", "transformers.models.bert.modeling_bert", "safetensors.torch", "PIL.Image")


def main() -> None:
    """Fork a worker for each message, until the other end is closed."""
    line = socket.socket(fileno=int(sys.argv[1]))
    for name in IMPORTS:
        importlib.import_module(name)
    while True:
        data, handles, _, _ = socket.recv_fds(line, 2**20, 4)
        if not data:
            return
        told, tells = os.pipe()
        if not (between := os.fork()):
            if pid := os.fork():
                os.write(tells, str(pid).encode())
                os._exit(0)
            line.close()
            os.close(told)
            os.close(tells)
            work(json.loads(data), handles)
        os.waitpid(between, 0)
        line.send(os.read(told, 100))
        for handle in (*handles, told, tells):
            os.close(handle)


def work(said: dict[str, Any], handles: list[int]) -> None:
    """Be the worker, as Python would run its file."""
    code = 1
    try:
        os.setsid()
        for place, handle in enumerate(handles[:3]):
            os.dup2(handle, place)
            os.close(handle)
        os.environ.clear()
        os.environ.update(said["environment"])
        sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        sys.modules.pop("sitecustomize", None)
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module("sitecustomize")
        sys.argv = [said["worker"], str(handles[3]), *said["places"]]
        runpy.run_path(said["worker"], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
