"""Processes that the demo starts, each in a group of its own, and that are gone when it ends, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT = Path(__file__).resolve().parent.parent
_STOP_TIMEOUT_S = 5.0
_START_TIMEOUT_S = 30.0
_DRAIN_TIMEOUT_S = 1.0
_TAIL_LINES = 30
_PR_SET_PDEATHSIG = 1


class ProcessError(RuntimeError):
    """A process did not start, or ended before its time; the message holds the end of what it wrote."""


def hold_port() -> socket.socket:
    """Return a socket bound to a free port of loopback, which stays taken until the socket is closed."""
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    return holder


def _die_with_parent() -> None:
    # The last resort: a demo that is killed outright cannot tidy up, so the kernel ends its children.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def _begun(
    arguments: list[str], environ: Mapping[str, str], before: Callable[[], None] | None
) -> asyncio.subprocess.Process:
    """Begin `python ARGUMENTS`, in a session of its own, so that Ctrl-C is the demo's to pass on."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=dict(environ),
        start_new_session=True,
        preexec_fn=before,
    )


async def ended(arguments: list[str], environ: Mapping[str, str]) -> tuple[int, str, str]:
    """Run `python ARGUMENTS`, which ends by itself soon; return its exit code, and what it wrote (output, error)."""
    # Nothing is run in the child before it is python: so there is no fork, which the threads of gRPC do not survive.
    child = await _begun(arguments, environ, None)
    try:
        out, err = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    assert child.returncode is not None
    return child.returncode, out.decode(), err.decode()


async def output_of(arguments: list[str], environ: Mapping[str, str]) -> str:
    """Run `python ARGUMENTS` to its end and return what it printed. Raises RuntimeError where it fails."""
    code, out, err = await ended(arguments, environ)
    if code:
        raise RuntimeError(f"{' '.join(arguments)} ended with status {code}: {err[-500:]}")
    return out


class Process:
    """One child: its events as they come (lines of JSON on standard output), the end of its log kept for errors."""

    def __init__(self, name: str, on_event: Callable[[dict[str, Any]], None]) -> None:
        self.name = name
        self.ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._on_event = on_event
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._child: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int:
        """Process id; also that of its group."""
        return self._child.pid if self._child is not None else 0

    @property
    def is_running(self) -> bool:
        """The process has not ended yet."""
        return self._child is not None and self._child.returncode is None

    @property
    def tail(self) -> str:
        """The last lines that it wrote, events aside."""
        return "\n".join(self._tail)

    async def start(self, arguments: list[str], environ: Mapping[str, str]) -> None:
        """Start `python ARGUMENTS`. Its first event `ready` resolves `ready`."""
        self._child = await _begun(arguments, environ, _die_with_parent)
        assert self._child.stdout is not None
        assert self._child.stderr is not None
        self._readers = [
            asyncio.create_task(self._read(self._child.stdout)),
            asyncio.create_task(self._read(self._child.stderr)),
        ]

    async def wait_ready(self) -> dict[str, Any]:
        """Return the event `ready`. Raises ProcessError where the process ends, or is silent, instead."""
        assert self._child is not None
        ended = asyncio.ensure_future(self._child.wait())
        both: list[asyncio.Future[Any]] = [self.ready, ended]
        done, _ = await asyncio.wait(both, timeout=_START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if self.ready in done:
            return self.ready.result()
        state = f"ended with status {self._child.returncode}" if done else "did not get ready in time"
        await self._drain()
        raise ProcessError(f"{self.name} {state}\n{self.tail}")

    async def stop(self) -> None:
        """End the whole group: SIGTERM, then SIGKILL for what is left after a few seconds."""
        if self._child is None:
            return
        if self.is_running:
            self._signal_group(signal.SIGTERM)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._child.wait(), _STOP_TIMEOUT_S)
        self._signal_group(signal.SIGKILL)
        await self._child.wait()
        await self._drain()

    async def _drain(self) -> None:
        if self._readers:
            await asyncio.wait(self._readers, timeout=_DRAIN_TIMEOUT_S)
        for reader in self._readers:
            reader.cancel()

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def _read(self, stream: asyncio.StreamReader) -> None:
        async for raw in stream:
            line = raw.decode("utf-8", "replace").rstrip()
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if not isinstance(event, dict) or "event" not in event:
                self._tail.append(line)
            elif event["event"] == "ready" and not self.ready.done():
                self.ready.set_result(event)
            else:
                self._on_event(event)
