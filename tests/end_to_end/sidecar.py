"""`meshd run` in a process of its own, on ports and in a state directory of its own."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshd.config import ALIASES
from tests.end_to_end.forking import Forked, nursery

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 30.0
"""A guard against a hang: no test depends on it."""
_PORTS = ("MESHD_LISTEN", "MESHD_INBOUND", "MESHD_API", "MESHD_ADMIN", "MESHD_METRICS")
_STEERING = ("MESHD_", *ALIASES, "OPENAI_", "ANTHROPIC_", "OTEL_")
_STEERING += ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy")


def until(is_so: Callable[[], Any], what: str = "") -> Any:
    """Return the first true value of `is_so()`."""
    ends_s = time.monotonic() + PATIENCE_S
    while not (found := is_so()):
        assert time.monotonic() < ends_s, f"never came: {what or is_so}"
        time.sleep(0.01)
    return found


def environ(**more: str) -> dict[str, str]:
    """This process's environment, without what would steer meshd or an SDK.

    A tree that stands in PYTHONPATH already goes first: so the same tests hold for a compiled one.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_STEERING)}
    trees = [*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT), str(ROOT / "sdk")]
    return kept | {"PYTHONPATH": os.pathsep.join(trees)} | more


class Sidecar:
    """A daemon. Use `start`, then `url`; what is not stopped by a test is killed by its fixture."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.policy = home.parent / f"{home.name}.yaml"
        self.log_path = home.parent / f"{home.name}.log"
        self.process: subprocess.Popen[bytes] | Forked | None = None

    def spawn(
        self, document: str | None, *arguments: str, before: Callable[[], None] | None = None, **env: str
    ) -> subprocess.Popen[bytes] | Forked:
        """Start the process, and wait for nothing. `before` runs in the child before it becomes meshd."""
        command = ["run", *arguments]
        if document is not None:
            self.policy.write_text(document)
            command += ["--policy", str(self.policy)]
        ports = dict.fromkeys(_PORTS, "127.0.0.1:0")
        environment, folder = environ(MESHD_HOME=str(self.home), **(ports | env)), self.home.parent
        is_own = before is not None or any(name.startswith(("PYTHON", "LD_", "MALLOC_")) for name in env)
        forking = None if is_own else nursery(environment["PYTHONPATH"])
        if forking is not None:
            self.process = forking.start(command, environment=environment, folder=folder, log=self.log_path)
            return self.process
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "meshd.cli", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                preexec_fn=before,
                env=environment,
            )
        return self.process

    def start(
        self, document: str | None, *arguments: str, before: Callable[[], None] | None = None, **env: str
    ) -> Sidecar:
        """Start the process and wait until it takes the agent's calls, whatever its budgets say."""
        self.spawn(document, *arguments, before=before, **env)
        return self.wait_ready()

    def wait_ready(self) -> Sidecar:
        """Wait until the process says where it listens and answers there."""
        try:
            until(self._is_ready)
        except AssertionError:
            raise AssertionError(f"meshd was never ready:\n{self.log}") from None
        return self

    def _is_ready(self) -> bool:
        process = self.process
        assert process is not None
        assert process.poll() is None, f"meshd ended with {process.returncode}:\n{self.log}"
        running = self.running
        return running is not None and running["pid"] == process.pid and self.get("/readyz")[0] in (200, 503)

    @property
    def running(self) -> dict[str, Any] | None:
        """What daemon.json says."""
        try:
            return dict(json.loads((self.home / "daemon.json").read_text()))
        except (OSError, ValueError):
            return None

    @property
    def log(self) -> str:
        """All that it printed and logged."""
        return self.log_path.read_text("utf-8", "replace")

    @property
    def url(self) -> str:
        """Where agents call, without a slash at its end."""
        assert self.running is not None
        return f"http://{self.running['listen']}"

    @property
    def said(self) -> str:
        """The same as it printed it last, for one that could not write daemon.json."""
        return re.findall(r"meshd is ready at (\S+)", self.log)[-1]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def inbound(self) -> str:
        """Where other sidecars call."""
        found = re.findall(r"Inbound calls for \S+: (\S+)", self.log)
        return f"http://{found[-1]}"

    def get(self, path: str) -> tuple[int, str]:
        """Ask the metrics port."""
        assert self.running is not None
        return fetch(f"http://{self.running['metrics']}{path}")

    def admin(self, path: str, method: str = "GET") -> Any:
        """Ask the admin port, with its token."""
        assert self.running is not None
        token = (self.home / "admin.token").read_text().strip()
        status, body = fetch(f"http://{self.running['admin']}{path}", method, {"authorization": f"Bearer {token}"})
        return json.loads(body) | {"http_status": status}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all series of a name that carry these labels."""
        return sum(value for found, value in self.series(name) if labels.items() <= found.items())

    def series(self, name: str) -> list[tuple[dict[str, str], float]]:
        """Every series of a name: (labels, value)."""
        found = []
        for line in self.get("/metrics")[1].splitlines():
            match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if match is not None and match[1] == name:
                labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""))
                found.append((labels, float(match[3])))
        return found

    def accounts(self) -> dict[str, tuple[int, int, int]]:
        """Every account in the books: id -> (total, used, reserved)."""
        page = self.admin("/v1/accounts?limit=1000")
        return {one["id"]: (one["total"], one["used"], one["reserved"]) for one in page["accounts"]}

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        assert self.process is not None
        return self.process.wait(PATIENCE_S)

    def stop(self) -> int:
        """Drain, as Kubernetes would."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """End it at once, whatever it does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(PATIENCE_S)


def fetch(url: str, method: str = "GET", headers: dict[str, str] | None = None, body: bytes | None = None) -> Any:
    """Return (status, text) of one request, whatever the status; status 0 where no whole answer came."""
    request = urllib.request.Request(url, data=body, headers=headers or {}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=PATIENCE_S) as reply:
            return reply.status, reply.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("utf-8", "replace")
    except (urllib.error.URLError, ConnectionError, http.client.HTTPException):
        return 0, ""
