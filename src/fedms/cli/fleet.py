"""The commands of a federation of sites: `site`, `serve`, `keys`, `deploy`; and `join`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from fedms.cli.failures import resumable
from fedms.cli.streams import line_width, print_table
from fedms.core.errors import ConfigError

SuperLink = Annotated[str, typer.Option("--superlink", metavar="HOST:PORT", help="Address of the SuperLink.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a key, as in gate.prior=0.3. Repeatable."),
]


def site(
    superlink: SuperLink,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Name of the client.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="PLACE", help="File or folder of the site's samples.")
    ] = None,
    folder: Annotated[
        str | None,
        typer.Option("--folder", metavar="DIR", help="Folder in which the site keeps everything."),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option("--settings", metavar="FILE", help="YAML file of the site: the same, and more."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="MODEL", help="A model that runs may use. Repeatable."),
    ] = None,
    public: Annotated[
        str | None,
        typer.Option("--public", metavar="FILE", help="The site's copy of the public evaluation file."),
    ] = None,
    tls: Annotated[
        Path | None,
        typer.Option("--tls", metavar="FILE", help="Certificate by which the SuperLink is known (ca.pem)."),
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", metavar="FILE", help="The site's private key.")] = None,
) -> None:
    """Take part in a federation as one client, with samples that stay here.

    The command runs until it is stopped, and takes part in every run of that server. It runs no code that is
    sent to it. Beyond this machine it needs --tls and --key.
    """
    from fedms.config.site import load_site

    given = {"name": name, "data": data, "folder": folder, "models": model, "public": public}
    checked = load_site(settings, given)

    from fedms.engines.flower.processes import is_loopback

    if not is_loopback(superlink) and (tls is None or key is None):
        raise ConfigError(f"--superlink {superlink}: beyond this machine, --tls and --key are needed")
    if key is not None and tls is None:
        raise ConfigError("--key: needs --tls")
    for option, file in (("--tls", tls), ("--key", key)):
        if file is not None and not file.is_file():
            raise ConfigError(f"{option} {file}: no such file")
    os.umask(0o077)
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("fedms").setLevel(logging.INFO)

    from fedms.experiments.site import run_site

    run_site(checked, superlink, tls, key)


def serve(
    folder: Annotated[
        Path, typer.Option("--folder", metavar="DIR", help="Folder of the SuperLink's database and log.")
    ],
    keys: Annotated[
        Path | None,
        typer.Option("--keys", metavar="DIR", help="Folder that `fedms keys` wrote. Needed for a door."),
    ] = None,
    door: Annotated[
        str | None,
        typer.Option("--door", metavar="HOST:PORT", help="Where sites on other machines reach it."),
    ] = None,
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", help="Its own port, on this machine alone.")
    ] = 8000,
) -> None:
    """Run the SuperLink, which passes messages between `fedms run` and the sites.

    With --keys it uses TLS and lets in the sites whose keys are there. It listens on this machine alone; a
    door passes on what sites need, and nothing else. Run `fedms run CONFIG` beside it, on the same machine.
    """
    if door is not None:
        if keys is None:
            raise ConfigError(f"--door {door}: needs --keys")
        host, _, number = door.rpartition(":")
        if not host or not number.isdecimal() or not 0 < int(number) < 2**16:
            raise ConfigError(f"--door {door}: must be HOST:PORT, as in 0.0.0.0:8443")
    os.umask(0o077)

    from fedms.experiments.deployment import serve

    serve(folder, keys, port, door, typer.echo)


def keys(
    folder: Annotated[
        Path, typer.Option("--folder", metavar="DIR", help="A new folder, or one of this command's.")
    ],
    sites: Annotated[str, typer.Option("--sites", metavar="NAME,...", help="The sites.")],
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="HOST,...",
            help="Names and addresses by which sites reach the server; needed for a new folder.",
        ),
    ] = None,
) -> None:
    """Make the certificates and keys of a federation, or, without --server, the keys of further sites.

    Each folder in `sites/` goes to its site; the rest stays at the server.
    """
    from fedms.engines.flower.keys import make_keys

    hosts, names = ([each.strip() for each in (given or "").split(",")] for given in (server, sites))
    for path in make_keys(folder, [] if server is None else hosts, names):
        typer.echo(path)


def deploy(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file; see examples/.")],
    nodes: Annotated[
        int | None,
        typer.Option("--nodes", metavar="N", help="Number of sites; default: partition.clients."),
    ] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Run folder; default: runs/CONFIG-METHOD-SEED-deployed."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run in the folder, or start one if there is none.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the result.")] = False,
) -> None:
    """Run one experiment as a federation of sites, all on this machine.

    It divides the data into a folder a site, and starts the SuperLink, and of each site its SuperNode and its
    executor. In the end it shows the commands for a federation on real machines.
    """
    from fedms.config import load_config

    wanted = [*(overrides or []), *([f"partition.clients={nodes}"] if nodes is not None else [])]
    checked = load_config(config, wanted, config.parent)
    folder = out or Path("runs") / f"{config.stem}-{checked.method}-{checked.seed}-deployed"

    from fedms.cli.interrupt import Interruptible
    from fedms.experiments.console import observer
    from fedms.experiments.deployment import Deployment, real_commands
    from fedms.runs.report.tables import result_table

    with (
        resumable("deploy", config, wanted, "--out", str(folder), "--resume"),
        Interruptible(observer(quiet)) as watcher,
    ):
        result = Deployment(checked, folder).run(watcher, resume)

    print_table(result_table([result], width=line_width()))
    typer.echo(f"run     {folder}\nreport  {folder / 'report.html'}\nsites   {folder}-sites")
    for line in real_commands(config, checked, overrides or [], result["partition"]["clients"]):
        typer.echo(line)


def join(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the new client.")],
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="PLACE", help="Its samples; none for a site, which has its own."),
    ] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run folder; default: RUN-NAME.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with joining that was stopped.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the result.")] = False,
) -> None:
    """Have a new client join a finished run.

    It gets the global expert and the gate adapter, and trains a local expert and a gate of its own. The run
    and its clients stay as they are.
    """
    from fedms.experiments.before import joining

    checked = joining(run, name, data, overrides or [])
    whole = run if run.name not in ("", "..") else run.resolve()
    folder = out or whole.with_name(f"{whole.name}-{name}")

    from fedms.cli.interrupt import Interruptible
    from fedms.experiments.api import run as run_experiment
    from fedms.experiments.console import observer
    from fedms.runs.report.tables import result_table

    given = ("--name", name, *(() if data is None else ("--data", data)))
    with (
        resumable("join", run, overrides or [], *given, "--out", str(folder), "--resume"),
        Interruptible(observer(quiet)) as watcher,
    ):
        result = run_experiment(checked, folder, observer=watcher, resume=resume)

    print_table(result_table([result], width=line_width()))
    typer.echo(f"run     {folder}\nreport  {folder / 'report.html'}")
