"""Starts what is measured and what measures, each on its core, and ends all of it whatever happens."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_RUNNING: list[subprocess.Popen[bytes]] = []


class NotReadyError(RuntimeError):
    """A process ended, or did not answer, before it was ready. The message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core runs the proxy under test and which the load and the upstream; the same one where there is one."""

    proxy: int
    load: int
    upstream: int

    @classmethod
    def of_this_machine(cls) -> Cores:
        """The proxy alone on the first core that we may use, load and upstream on the next ones."""
        allowed = sorted(os.sched_getaffinity(0))
        load = allowed[1 % len(allowed)]
        return cls(proxy=allowed[0], load=load, upstream=allowed[2] if len(allowed) > 2 else load)


@dataclass(slots=True)
class Child:
    """One process that we started, and its whole group."""

    process: subprocess.Popen[bytes]
    log: Path
    started_s: float = field(default_factory=time.monotonic)

    @property
    def pid(self) -> int:
        return self.process.pid

    def tail(self) -> str:
        """The end of what it said, for a message."""
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace")[-1500:]
        return ""


def _before_exec(core: int) -> Callable[[], None]:
    def prepare() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # even a killed bench leaves nothing behind
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {core})
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    return prepare


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours without proxies (they would stand between load and proxy), with the repository importable.

    What stands in PYTHONPATH already goes first: `make bench` puts the compiled copy there.
    """
    env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    paths = [*filter(None, [env.get("PYTHONPATH")]), str(ROOT), str(ROOT / "sdk")]
    env["PYTHONPATH"] = os.pathsep.join(paths)
    env.update(extra or {})
    return env


def start(command: Sequence[str | Path], *, core: int, log: Path, env: Mapping[str, str] | None = None) -> Child:
    """Start a process pinned to `core`, in its own group, its output in `log`. Raises OSError where it cannot run."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(env),
            start_new_session=True,
            preexec_fn=_before_exec(core),
        )
    _RUNNING.append(process)
    return Child(process, log)


def run(command: Sequence[str | Path], *, core: int, timeout_s: float, env: Mapping[str, str] | None = None) -> str:
    """Run a load generator to its end on `core` and return what it printed.

    Raises NotReadyError where it failed or hung; its group is ended then.
    """
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(env),
        start_new_session=True,
        preexec_fn=_before_exec(core),
    )
    _RUNNING.append(process)
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        end_process(process, now=True)
        raise NotReadyError(f"{command[0]} did not end within {timeout_s:.0f} s") from None
    finally:
        if process.poll() is not None and process in _RUNNING:
            _RUNNING.remove(process)
    if process.returncode:
        raise NotReadyError(f"{command[0]} ended with {process.returncode}: {errors.decode(errors='replace')[-800:]}")
    return output.decode(errors="replace")


def end_process(process: subprocess.Popen[bytes], *, now: bool = False) -> None:
    """End a process and its group: politely, then not."""
    for sign, patience_s in ((signal.SIGKILL, 5.0),) if now else ((signal.SIGTERM, 3.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
            break
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # whoever was left in the group
    if process in _RUNNING:
        _RUNNING.remove(process)


def end_all() -> None:
    """End everything that we started."""
    for process in _RUNNING:
        end_process(process, now=True)


def end_all_on_signals() -> None:
    """Leave nothing behind on Ctrl-C, SIGTERM or a normal exit."""
    atexit.register(end_all)

    def stop(number: int, _frame: object) -> None:
        end_all()
        sys.exit(128 + number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)


_PORTS = iter(range(21_000 + os.getpid() % 50 * 200, 32_700))


def free_port() -> int:
    """Return a loopback port that nobody listens on, below the range from which the kernel takes source ports.

    Raises NotReadyError where none is left.
    """
    for port in _PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise NotReadyError("no free port is left")


def wait_until(is_ready: Callable[[], bool], child: Child, *, what: str, timeout_s: float = 20.0) -> float:
    """Poll every 2 ms until `is_ready`; return the seconds since the process was started. Raises NotReadyError."""
    deadline_s = time.monotonic() + timeout_s
    while not is_ready():
        if child.process.poll() is not None:
            raise NotReadyError(f"{what} ended with {child.process.returncode} before it was ready:\n{child.tail()}")
        if time.monotonic() > deadline_s:
            raise NotReadyError(f"{what} was not ready within {timeout_s:.0f} s:\n{child.tail()}")
        time.sleep(0.002)
    return time.monotonic() - child.started_s


def is_listening(port: int) -> bool:
    """Say whether something accepts connections on a loopback port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return True
    except OSError:
        return False
