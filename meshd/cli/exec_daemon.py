"""The daemon that `meshd exec` uses: the one that runs already, or a private one that ends with the command.

A private daemon has a state directory of its own below the state directory: `exec-<random>`, removed at the end, or
`workflow-<name>`, kept, so that a named workflow finds its account again. Each run holds a shared lock in it; who
leaves last stops the daemon. What a killed run left behind is swept away by the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from typing import TYPE_CHECKING

from meshd import running as registry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from meshd.config import Config
    from meshd.running import Running

_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 8.0
_POLL_S = 0.02
_LOG = "daemon.log"
_LOG_TAIL_BYTES = 4000
_LOCK = "exec.lock"
_PR_SET_PDEATHSIG = 1


class DaemonError(Exception):
    """No daemon can be had; the message says why."""


class Place:
    """A daemon to use, and the state directory that holds its mesh key."""

    def __init__(self, running: Running, home: Path, *, is_private: bool) -> None:
        self.running = running
        self.home = home
        self.is_private = is_private
        """It was started for this run, or for another of the same named workflow."""


def find(config: Config, environ: Mapping[str, str]) -> Place | None:
    """Return the daemon that runs already: at MESHD_LISTEN where that is set, else as daemon.json says."""
    found = registry.find(config.home)
    if environ.get("MESHD_LISTEN"):
        listen = str(config.listen)
        if found is not None and found.listen == listen:
            return Place(found, config.home, is_private=False)
        if not registry.accepts(listen):
            return None
        # Not of this state directory, or of a container that shares the host's loopback: only its address is known.
        known = registry.Running(pid=0, listen=listen, admin=str(config.admin), agent=config.agent or "agent")
        return Place(known, config.home, is_private=False)
    return None if found is None else Place(found, config.home, is_private=False)


@contextlib.contextmanager
def private(config: Config, policies: Sequence[str], workflow: str | None) -> Iterator[Place]:
    """Start a private daemon, or join that of the same named workflow, and stop it when its last user leaves.

    Raises DaemonError where it does not get ready.
    """
    directory, lock = _take_directory(config.home, workflow)
    child: subprocess.Popen[bytes] | None = None
    try:
        found = registry.find(directory)
        if found is None:
            child = _start(directory, policies, config.store, is_shared=workflow is not None)
            found = _wait_ready(directory, child)
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield Place(found, directory, is_private=True)
    finally:
        _leave(directory, lock, child, is_kept=workflow is not None)


def _take_directory(home: Path, workflow: str | None) -> tuple[Path, int]:
    """Return a state directory and its lock, held alone."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        # One run at a time sweeps and makes directories: a new one is never seen without its lock held.
        with _locked(home / _LOCK):
            _sweep(home)
            directory = home / (f"exec-{secrets.token_hex(6)}" if workflow is None else _named(workflow))
            directory.mkdir(mode=0o700, exist_ok=workflow is not None)
            lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if workflow is None:
                fcntl.flock(lock, fcntl.LOCK_EX)
        # Of a named workflow another run may hold it while it starts the daemon that both will use.
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        raise DaemonError(f"the state directory {home} cannot be used: {error.strerror}") from error
    return directory, lock


def _named(workflow: str) -> str:
    return f"workflow-{re.sub(r'[^A-Za-z0-9._-]', '_', workflow)[:60]}-{sha256(workflow.encode()).hexdigest()[:8]}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sweep(home: Path) -> None:
    """Remove the directories of runs that were killed: their locks are free."""
    for directory in home.glob("exec-*/"):
        with contextlib.suppress(OSError):
            lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(lock)


def _start(directory: Path, policies: Sequence[str], store: str, *, is_shared: bool) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-m", "meshd.cli", "run", "--listen", "127.0.0.1:0"]
    for policy in policies:
        arguments += ["--policy", policy]
    environ = dict(os.environ, MESHD_HOME=str(directory))
    if store:
        environ["MESHD_STORE"] = store  # not an argument: everybody on the machine can read those
    environ |= dict.fromkeys(("MESHD_INBOUND", "MESHD_API", "MESHD_ADMIN", "MESHD_METRICS"), "127.0.0.1:0")
    with (directory / _LOG).open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - our own interpreter and module
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environ,
            # A Ctrl-C at the terminal is for the command; the daemon must outlive it by a little.
            start_new_session=True,
            # One that other runs may have joined must not end with the run that started it.
            preexec_fn=None if is_shared else _end_with_parent,
        )


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_ready(directory: Path, child: subprocess.Popen[bytes]) -> Running:
    ends_s = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < ends_s:
        found = registry.find(directory)
        if found is not None and found.pid == child.pid:
            return found
        if child.poll() is not None:
            raise DaemonError(f"the private daemon ended with status {child.returncode}\n{_log_tail(directory)}")
        time.sleep(_POLL_S)
    raise DaemonError(f"the private daemon was not ready in {_START_TIMEOUT_S:.0f} s\n{_log_tail(directory)}")


def _log_tail(directory: Path) -> str:
    try:
        return (directory / _LOG).read_bytes()[-_LOG_TAIL_BYTES:].decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _leave(directory: Path, lock: int, child: subprocess.Popen[bytes] | None, *, is_kept: bool) -> None:
    """Let go of the directory; where nobody else holds it, stop the daemon and remove what is not to be kept."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return
    _stop(directory, child)
    if not is_kept:
        shutil.rmtree(directory, ignore_errors=True)
    os.close(lock)


def _stop(directory: Path, child: subprocess.Popen[bytes] | None) -> None:
    if child is not None:
        child.terminate()
        try:
            child.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        return
    # Another run started it and has left: it is nobody's child any more.
    found = registry.find(directory)
    if found is not None and found.pid > 1:  # What a run starts is never the first process.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(found.pid, signal.SIGTERM)
