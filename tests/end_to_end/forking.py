"""`python -m meshd.cli` in processes that are forked from one which has imported meshd, at a tenth of a start's cost.

Each is a process of its own, with the environment, directory, output and arguments that it is given, and ends as any
Python does. Only what its imports have read is there before it begins. MESHD_TESTS_COLD=1 starts each from nothing.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
REQUEST_BYTES_MAX = 200_000
IMPORTED = (
    "uvloop", "meshd.cli.run", "meshd.daemon", "meshd.engines.sqlite", "meshd.engines.redis", "meshd.engines.nats",
    "meshd.engines.bus_sqlite", "meshd.api.services", "meshd.api.pushing", "meshd.api.session", "meshd.admin.app",
    "meshd.api.http_protocol",
)  # fmt: skip
"""What most of them need, and what starts no thread."""
_NURSE = "import sys; from tests.end_to_end import forking; forking.serve(int(sys.argv[1]))"


class Forked:
    """As much of a `subprocess.Popen` as the tests use."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._nursery = nursery

    def poll(self) -> int | None:
        """See Popen."""
        if self.returncode is None:
            self.returncode = self._nursery.ended(self.pid, 0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """See Popen."""
        ends_s = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            if ends_s is not None and time.monotonic() > ends_s:
                raise subprocess.TimeoutExpired(["meshd"], timeout or 0.0)
            self.returncode = self._nursery.ended(self.pid, 0.05)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """See Popen. Until `poll` has told of its end, nobody else has its pid."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """See Popen."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """See Popen."""
        self.send_signal(signal.SIGTERM)


class Nursery:
    """The process that they are forked from, as this one sees it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-c", _NURSE, str(theirs.fileno())]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()]
        )
        theirs.close()
        self._lock = threading.Lock()
        self._codes: dict[int, int] = {}
        atexit.register(self._process.kill)

    def start(self, arguments: list[str], *, environment: dict[str, str], folder: Path, log: Path) -> Forked:
        """Fork one that runs `python -m meshd.cli ARGUMENTS...` in a folder and appends what it says to a file."""
        log.touch()
        asked = {"arguments": arguments, "environment": environment, "folder": str(folder), "log": str(log)}
        with self._lock:
            self._ours.settimeout(None)
            self._ours.send(json.dumps(asked).encode())
            while True:
                told = self._heard()
                if "begun" in told:
                    return Forked(self, told["begun"])

    def ended(self, pid: int, wait_s: float) -> int | None:
        """Return the exit code of a process as Popen has it; None where it has not ended within `wait_s`."""
        with self._lock:
            self._ours.settimeout(wait_s)
            try:
                while pid not in self._codes:
                    self._heard()
            except (BlockingIOError, TimeoutError):
                return None
            return self._codes.pop(pid)

    def _heard(self) -> dict[str, int]:
        message = self._ours.recv(REQUEST_BYTES_MAX)
        if not message:
            raise RuntimeError("the process that forks meshd has ended")
        told: dict[str, int] = json.loads(message)
        if "ended" in told:
            self._codes[told["ended"]] = told["code"]
        return told


@functools.cache
def nursery(python_path: str) -> Nursery | None:
    """Return the one of this process, for one PYTHONPATH; None where each is to start from nothing."""
    if os.environ.get("MESHD_TESTS_COLD", "0") not in ("", "0"):
        return None
    return Nursery({**os.environ, "PYTHONPATH": python_path})


def serve(descriptor: int) -> None:
    """Fork a process for each request, and tell of its end, until nobody asks any more."""
    for name in IMPORTED:
        import_module(name)
    asking = socket.socket(fileno=descriptor)
    selector = selectors.DefaultSelector()
    selector.register(asking, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is not asking:
                pid = key.data
                selector.unregister(key.fileobj)
                os.close(key.fd)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                asking.send(json.dumps({"ended": pid, "code": code}).encode())
                continue
            message = asking.recv(REQUEST_BYTES_MAX)
            if not message:
                return
            pid = os.fork()
            if not pid:
                for watched in list(selector.get_map().values()):
                    os.close(watched.fd)
                selector.close()
                asking.detach()
                _become(json.loads(message))
                return
            selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
            asking.send(json.dumps({"begun": pid}).encode())


def _become(asked: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(log, number)
    os.close(log)
    sys.argv = ["meshd", *asked["arguments"]]
    runpy.run_module("meshd.cli", run_name="__main__", alter_sys=True)
