"""Who is let in, and what a site runs: with Flower's real processes on this machine."""

from __future__ import annotations

import datetime
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedms.config.engine import EngineConfig
from fedms.core.errors import ConfigError, FedmsError
from fedms.engines.flower.post import Letter
from fedms.engines.flower.processes import free_port
from fedms.engines.flower.sites import Sites

pytest.importorskip("flwr", reason="needs the extra fedms[flower]: make test-flower")

import httpx  # comes with flwr

from fedms.engines.flower import internal
from fedms.engines.flower.grid import GridPost
from fedms.engines.flower.keys import admit_sites, make_keys
from fedms.experiments.deployment import SECRET, serving

pytestmark = pytest.mark.distributed

LONG = 300.0
"""Seconds that anything here may take: a site begins with loading torch, on however busy a machine."""


@dataclass
class Federation:
    """A SuperLink with TLS and a door, and the keys of `north` and `south`."""

    folder: Path
    port: int
    door: str
    said: list[str] = field(default_factory=list)

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    @property
    def engine(self) -> EngineConfig:
        ca, secret = self.keys / "ca.pem", self.folder / "superlink" / SECRET
        return EngineConfig(
            name="flower", superlink=f"127.0.0.1:{self.port}", certificates=str(ca), secret=str(secret)
        )

    def site(self, name: str, key: Path, ca: Path | None = None) -> subprocess.Popen[str]:
        """`fedms site`, which comes in by the door."""
        data = self.folder / "rows.csv"
        data.write_text("text,label,split\n" + "a,x,train\nb,y,train\nc,x,validation\nd,y,test\n" * 3)
        given = ["--name", name, "--data", data, "--folder", self.folder / "sites" / name]
        given += ["--superlink", self.door, "--tls", ca or self.keys / "ca.pem", "--key", key]
        return subprocess.Popen(
            [sys.executable, "-m", "fedms.cli", "site", *map(str, given)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )


@pytest.fixture(scope="module")
def federation(tmp_path_factory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("federation")
    found = Federation(folder, free_port(), f"127.0.0.1:{free_port()}")
    make_keys(found.keys, ["server.example"], ["north", "south"])
    make_keys(folder / "strangers", ["server.example"], ["north", "east"])
    with serving(folder / "superlink", found.keys, found.port, found.door, found.said.append):
        yield found


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """End a site with its SuperNode."""
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LONG)


def test_private_keys_are_their_owners(federation):
    for path in federation.keys.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0, path
    assert sorted(path.name for path in (federation.keys / "sites" / "north").iterdir()) == [
        "ca.pem",
        "north.key",
    ]
    assert "site north is registered" in federation.said


@pytest.mark.parametrize("sites", [["a", "A"], ["a", "a"], ["../a"], [""]])
def test_names_that_cannot_be_folders_get_no_keys(tmp_path, sites):
    with pytest.raises(ConfigError, match="--sites: "):
        make_keys(tmp_path / "keys", ["localhost"], sites)
    assert not (tmp_path / "keys").exists()


def test_sites_come_later_and_keys_are_taken_away(federation, tmp_path):
    keys, said = tmp_path / "keys", list[str]()
    shutil.copytree(federation.keys, keys)
    address = f"127.0.0.1:{federation.port}"
    make_keys(keys, [], ["west"])
    assert (keys / "sites" / "west" / "ca.pem").read_bytes() == (keys / "ca.pem").read_bytes()
    admit_sites(address, keys, said.append)
    public = keys / "public" / "west.pub"
    (keys / "west").write_bytes(public.read_bytes())
    public.unlink()
    admit_sites(address, keys, said.append)
    stay = ["site north is known already", "site south is known already"]
    assert said == [*stay, "site west is registered", *stay, "site west is let in no more"]
    public.write_bytes((keys / "west").read_bytes())
    with pytest.raises(FedmsError, match="the key of site west was taken away once, and needs a new one"):
        admit_sites(address, keys, said.append)


@pytest.mark.parametrize(
    ("hosts", "sites", "says"),
    [
        (["server.example"], ["east"], "already there and not empty; leave out --server to add sites"),
        ([], ["north"], "site north has a key already"),
        ([], ["North"], "--sites: two sites have one name"),
    ],
)
def test_a_folder_of_keys_is_not_written_over(federation, hosts, sites, says):
    with pytest.raises(FedmsError, match=says):
        make_keys(federation.keys, hosts, sites)


@pytest.mark.parametrize("hosts", [[], ["a b"], [""], ["-x"], ["a..b"], ["bücher.example"]])
def test_a_new_folder_needs_names_of_the_server(tmp_path, hosts):
    with pytest.raises(ConfigError, match="--server: "):
        make_keys(tmp_path / "keys", hosts, ["north"])
    assert not (tmp_path / "keys").exists()


def test_a_site_of_another_authority_ends_in_one_line(federation):
    key, ca = federation.keys / "sites" / "north" / "north.key", federation.folder / "strangers" / "ca.pem"
    assert last_line(federation.site("north", key, ca)).startswith(
        "error: the server's certificate is not of the authority of --tls; see "
    )


def test_a_site_whose_key_nobody_registered_ends_in_one_line(federation):
    key = federation.folder / "strangers" / "sites" / "east" / "east.key"
    assert last_line(federation.site("east", key)).startswith(
        "error: the server does not let this site in: it does not know its key; see "
    )


def last_line(process: subprocess.Popen[str]) -> str:
    """Of a site that ends by itself."""
    try:
        output, _ = process.communicate(timeout=LONG)
    finally:
        process.kill()
    assert process.returncode == 1, output
    assert "Traceback" not in output
    return output.strip().splitlines()[-1]


def signed(federation: Federation, age: float) -> dict[str, str]:
    """A SuperNode's headers as north's key signed them some seconds ago."""
    from cryptography.hazmat.primitives import serialization
    from flwr.common.constant import TIMESTAMP_HEADER
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

    file = federation.keys / "sites" / "north" / "north.key"
    key: Any = serialization.load_ssh_private_key(file.read_bytes(), None)
    at = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age)).isoformat()
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public_key_to_bytes(key.public_key())).decode(),
        TIMESTAMP_HEADER: at,
        FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(key, at.encode())).decode(),
    }


def activated(federation: Federation, headers: dict[str, str]) -> int:
    """The status of a request to be let in as north, by the door."""
    from base64 import b64decode

    from flwr.proto.fleet_pb2 import ActivateNodeRequest
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER

    public = b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER])
    body = ActivateNodeRequest(public_key=public, heartbeat_interval=30).SerializeToString()
    return post(federation.door, "/v1/fleet/activate-node", federation, headers, body)


def post(
    address: str, path: str, federation: Federation, headers: dict[str, str] | None = None, body: bytes = b""
) -> int:
    kind = {"content-type": "application/protobuf", "accept": "application/protobuf"}
    ca = str(federation.keys / "ca.pem")
    url = f"https://{address}{path}"
    return httpx.post(url, headers={**kind, **(headers or {})}, content=body, verify=ca).status_code


def test_a_header_past_its_age_is_refused(federation):
    """Flower signs the time alone, so a younger header could be used again: the connection must be TLS."""
    assert activated(federation, signed(federation, 320.0)) == 401
    assert activated(federation, signed(federation, 0.0)) == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/health",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet//v1/control/start-run",
        "/v1/fleet/pull-messages?x=1",
        "/V1/FLEET/pull-messages",
    ],
)
def test_the_door_passes_what_sites_need_and_nothing_else(federation, path):
    host, _, port = federation.door.rpartition(":")
    assert raw_status(host, int(port), path, federation) == 404
    assert post(federation.door, "/v1/fleet/pull-messages", federation) == 401  # the SuperLink's own answer


def raw_status(host: str, port: int, path: str, federation: Federation) -> int:
    """The status for a path that no client has tidied up."""
    import http.client
    import ssl

    context = ssl.create_default_context(cafile=str(federation.keys / "ca.pem"))
    with closing(http.client.HTTPSConnection(host, port, context=context, timeout=LONG)) as connection:
        connection.putrequest("POST", path, skip_host=False)
        connection.putheader("content-length", "0")
        connection.endheaders()
        return connection.getresponse().status


def test_a_run_without_the_secret_is_refused(federation, tmp_path):
    (tmp_path / "secret").write_text("0" * 64)
    wrong = federation.engine.model_copy(update={"secret": str(tmp_path / "secret")})
    with pytest.raises(FedmsError, match="refused"):
        GridPost.open(wrong)


def test_a_run_over_the_door_is_refused(federation):
    with pytest.raises(FedmsError, match="refused \\(404\\)"):
        GridPost.open(federation.engine.model_copy(update={"superlink": federation.door}))


def test_a_site_runs_no_code_that_was_sent(federation, tmp_path, monkeypatch):
    marker = tmp_path / "marker"
    code = f"open({str(marker)!r}, 'w').close()\n" + internal.APP["fedms_app.py"].decode()
    exec(compile(code.splitlines()[0], "app", "exec"))  # what a stock SuperNode would do
    assert marker.exists()
    marker.unlink()
    monkeypatch.setitem(internal.APP, "fedms_app.py", code.encode())
    key = federation.keys / "sites" / "south" / "south.key"
    with ended(federation.site("south", key)), closing(GridPost.open(federation.engine)) as grid:
        sites = Sites(grid)
        sites.wait(["south"], LONG)
        assert sites.homes.keys() == {"south"}, sites.trouble
        assert sites.hellos["south"].classes == ("x", "y")
        (letter,) = grid.send([Letter(sites.homes["south"], "task", b"no request")])
        time.sleep(5.0)  # a task that is none is not answered; 3 s are between two looks of a SuperNode
        assert not grid.collect([letter])
        assert not marker.exists()
        assert not [*(federation.folder / "sites" / "south" / "flower").rglob("fedms_app.py")]


def test_a_site_cannot_take_another_sites_name(federation):
    key = federation.keys / "sites" / "south" / "south.key"
    with ended(federation.site("north", key)), closing(GridPost.open(federation.engine)) as grid:
        sites, end = Sites(grid), time.monotonic() + LONG
        while not sites.trouble and time.monotonic() < end:
            sites.look()
            time.sleep(0.1)
        assert sites.trouble == {"north": "holds the key of south"}
        assert not sites.homes


def test_no_process_of_ours_tells_flower_anything(federation):
    loads = (
        "from fedms.engines.flower.opening import open_post; from fedms.config import load_config\n"
        "from fedms.core.errors import FedmsError\n"
        "config = load_config({'engine': {'name': 'flower', 'superlink': '127.0.0.1:1', 'secret': 'none'}})\n"
        "try: open_post(config)\n"
        "except FedmsError: pass\n"
        "from flwr.supercore import telemetry; print(telemetry.FLWR_TELEMETRY_ENABLED)"
    )
    env = {name: value for name, value in os.environ.items() if name != "FLWR_TELEMETRY_ENABLED"}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", loads], capture_output=True, text=True, env=env, timeout=LONG
    )
    assert done.stdout.split() == ["0"], done.stderr
