"""The official A2A test kit against the sample agent, directly and through meshd: the results must be the same.

    python -m tests.a2a.conformance KIT [--python PYTHON] [--transport jsonrpc]...

KIT is a checkout of a2aproject/a2a-tck, PYTHON an interpreter that has what it needs (`pip install KIT`; not all of it
is in its requirements.txt). The kit fetches cards from a host's root, and calls REST there, so through meshd the agent
is `agent.localhost`. Each column has an agent of its own, since the kit counts tasks. What differs is run again, both
ways, before it counts: the kit measures times. Exits with 1 where something differs, or the tests did not run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.sidecar import Sidecar, environ
from tests.ports import free_port

TRANSPORTS = ("jsonrpc", "rest", "grpc")
AGAIN = 2
KIT_S = 1200.0
PLUGIN = Path(__file__).with_name("kit")
NAMES = "names_below_localhost"
DOCUMENT = """
upstreams:
  agent: {{url: "http://127.0.0.1:{port}", kind: agent, dialect: a2a, timeouts: {{gap: 60s}}}}
  agent-grpc: {{url: "http://127.0.0.1:{grpc_port}", kind: agent, dialect: a2a}}
limits: {{turns: {{edge: 100000, connected: 100000, workflow: 100000, periods: 100}}}}
"""
"""Nothing is refused: what is compared is what meshd does to messages, not what a policy does to a kit that sends the
same call a hundred times."""


class Column:
    """A way to the agent, with an agent of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        self._agent: subprocess.Popen[bytes] | None = None
        self._sidecar: Sidecar | None = None

    def start(self) -> str:
        """Return the agent's URL."""
        port, grpc_port = free_port(), free_port()
        command = [sys.executable, "-m", "tests.a2a.sample_agent", "--port", str(port), "--grpc-port", str(grpc_port)]
        log = (self._folder / f"{self.name}-agent.log").open("wb")
        self._agent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environ())
        assert self._agent.stdout is not None
        if not self._agent.stdout.readline():
            raise SystemExit(f"the sample agent did not start: see {log.name}")
        if self.name == "directly":
            return f"http://127.0.0.1:{port}"
        home = self._folder / f"home-{port}"
        self._sidecar = Sidecar(home).start(DOCUMENT.format(port=port, grpc_port=grpc_port))
        return f"http://agent.localhost:{self._sidecar.port}"

    def stop(self) -> None:
        for process in (self._agent, self._sidecar.process if self._sidecar is not None else None):
            if process is not None:
                process.terminate()
                process.wait(30)
        self._agent = self._sidecar = None


def run(kit: Path, python: str, column: Column, transport: str, folder: Path, only: list[str]) -> dict[str, str]:
    """Run the kit over one transport, or some tests of it; return how each test ended."""
    url = column.start()
    report = folder / f"{column.name}-{transport}.json"
    report.unlink(missing_ok=True)
    command = [
        python, "-m", "pytest", *(only or ["tests/mandatory", "tests/optional"]), f"--sut-url={url}",
        "--test-scope=all", f"--transports={transport}", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", NAMES,
        "--json-report", f"--json-report-file={report}",
    ]  # fmt: skip
    kept = {key: value for key, value in os.environ.items() if "proxy" not in key.lower() and key != "PYTHONPATH"}
    try:
        subprocess.run(
            command, cwd=kit, env=kept | {"TCK_STREAMING_TIMEOUT": "1.0", "PYTHONPATH": str(PLUGIN)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=KIT_S, check=False,
        )  # fmt: skip
    finally:
        column.stop()
    if not report.exists():
        raise SystemExit(f"the kit left no report: run `{' '.join(command)}` in {kit} to see why")
    try:
        return outcomes(json.loads(report.read_text()))
    except ValueError as error:
        raise SystemExit(f"{error}; the kit was run as `{' '.join(command)}` in {kit}") from None


def outcomes(report: dict[str, Any]) -> dict[str, str]:
    """Return how each test of the kit ended.

    Raises ValueError where they were not run to their end: two columns that say nothing are the same too.
    """
    if report["exitcode"] in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and report["tests"]:
        return {test["nodeid"]: test["outcome"] for test in report["tests"]}
    broken = [one for one in report.get("collectors", ()) if one["outcome"] == "failed"]
    why = "".join(f"\n{one['nodeid']}: {one.get('longrepr', '').strip().rpartition(chr(10))[2]}" for one in broken)
    raise ValueError(f"the kit did not run its tests (exit code {report['exitcode']}){why}")


def compared(kit: Path, python: str, transport: str, folder: Path) -> bool:
    """Print both columns for one transport; return whether they are the same."""
    columns = (Column("directly", folder), Column("through", folder))
    found = [run(kit, python, column, transport, folder, []) for column in columns]
    for _ in range(AGAIN):
        differing = _differing(found)
        if not differing:
            break
        for one, column in zip(found, columns, strict=True):
            one.update(run(kit, python, column, transport, folder, differing))
    counts = [Counter(one.values()) for one in found]
    print(f"\n{transport:<10}{'directly':>10}{'through':>10}")
    for outcome in sorted({*counts[0], *counts[1]}):
        print(f"{outcome:<10}{counts[0][outcome]:>10}{counts[1][outcome]:>10}")
    for name in (differing := _differing(found)):
        print(f"  {name}: {found[0].get(name)} directly, {found[1].get(name)} through meshd")
    sys.stdout.flush()
    return not differing


def _differing(found: list[dict[str, str]]) -> list[str]:
    return sorted(name for name in {**found[0], **found[1]} if found[0].get(name) != found[1].get(name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kit", type=Path, help="a checkout of the kit")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs it")
    parser.add_argument("--transport", action="append", choices=TRANSPORTS, help="unset: all three")
    asked = parser.parse_args()
    if not (asked.kit / "run_tck.py").exists():
        raise SystemExit(f"{asked.kit} is no checkout of the kit: clone a2aproject/a2a-tck there")
    with tempfile.TemporaryDirectory() as folder:
        same = [compared(asked.kit, asked.python, one, Path(folder)) for one in asked.transport or TRANSPORTS]
    print("\nthe same everywhere" if all(same) else "\nthey differ")
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
