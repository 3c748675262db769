"""The ClientApp over Flower's public interface: under stock SuperNodes, and in Flower's own simulation."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedms.engines.flower import opening
from fedms.engines.flower.processes import Child, free_port
from fedms.experiments.deployment import Deployment
from fedms.experiments.experiment import run
from flower.test_engine_without_flwr import without_times

pytest.importorskip("flwr", reason="needs the extra fedms[flower]: make test-flower")

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedms.engines.flower import app
from fedms.engines.flower.grid import GridPost

pytestmark = pytest.mark.distributed
FEW = ("method=local", "head.kind=linear", "partition.clients=2", "federation.cohort=2")
"""With these, two sites train once and are tested, and nothing else is asked."""
LONG = "engine.patience_seconds=600"
"""Each message begins with loading torch, on however busy a machine."""


class Stock(Deployment):
    """Its sites are SuperNodes as Flower has them: they install the app, and start a process a message."""

    def start_site(self, name: str) -> None:
        program = Path(sys.executable).with_name("flower-supernode")
        site = ["--node-config", f'site="{self.write_settings(name)}"', "--port", str(free_port())]
        command = [str(program), "--insecure", "--superlink", self.address, *site]
        log = self.place / "logs" / f"{name}.log"
        self.children[name] = Child(name, command, self.place / "flower" / name, log)


def test_stock_supernodes_come_to_the_same_bits(settings, tmp_path, monkeypatch):
    wanted = run(settings(*FEW, "engine.workers=1"), tmp_path / "local")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    with Stock(settings(*FEW, LONG), tmp_path / "run").started() as config:
        found = run(config, tmp_path / "run")
    assert without_times(found) == without_times(wanted)


def simulated(folder: Path) -> ClientApp:
    """The ClientApp, whose nodes are numbered and have no configs of their own."""

    def placed(context: Any) -> Any:
        context.node_config["site"] = str(folder / f"{context.node_config['partition-id']}.yaml")
        return context

    made = ClientApp()
    made.query()(lambda message, context: app.hello(message, placed(context)))
    made.train()(lambda message, context: app.task(message, placed(context)))
    return made


def test_a_simulation_of_flower_comes_to_the_same_bits(fleet, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="needs Ray: pip install 'flwr[simulation]' -c constraints-flower.txt")
    from flwr.simulation import run_simulation

    made = fleet(*FEW, "engine.workers=1")
    wanted = run(made.local, tmp_path / "local")
    for number, name in enumerate(made.files):
        settings = made.site_config(name).model_dump(mode="json")
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    found: list[dict[str, Any]] = []
    server = ServerApp()

    @server.main()
    def main(grid: Any, context: Any) -> None:
        monkeypatch.setattr(opening, "open_post", lambda config: GridPost(grid))
        found.append(run(made.with_keys(LONG), tmp_path / "server"))

    resources = {
        "init_args": {"num_cpus": 2, "include_dashboard": False},
        "client_resources": {"num_cpus": 1},
    }
    run_simulation(server, simulated(tmp_path), num_supernodes=2, backend_config=resources)  # type: ignore[arg-type]
    assert without_times(found[0]) == without_times(wanted)
