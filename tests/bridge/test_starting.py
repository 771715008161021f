"""A server that is given up while it is being started."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from meshd.bridge.stdio import StdioChannel
from meshd.outcome import Fault
from meshd.policy.process import ProcessSection, compile_process
from tests.proxy.harness import until


class Loop:
    """The loop, but for one moment: the process is there, and nobody has been told yet."""

    def __init__(self, meanwhile: Any) -> None:
        self._loop = asyncio.get_running_loop()
        self._meanwhile = meanwhile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def subprocess_exec(self, made: Any, *command: str, **options: Any) -> Any:
        self._meanwhile()
        return await self._loop.subprocess_exec(made, *command, **options)


class Host:
    """As much of the data plane as a channel needs."""

    def __init__(self) -> None:
        self.loop: Any = None
        self.endings: set[asyncio.Task[None]] = set()
        self.hidden: tuple[str, ...] = ()

    def run(self, callback: Any) -> None:
        callback()

    def redact(self, text: str) -> str:
        return text


class Listening:
    def __init__(self) -> None:
        self.told: list[Any] = []

    def received(self, raw: bytes) -> None:
        raise AssertionError(raw)

    def ended(self, ended: Any) -> None:
        self.told.append(ended)


async def test_it_does_not_live_on() -> None:
    host, listening = Host(), Listening()
    command = (sys.executable, "-c", "import sys; sys.stdin.read()")
    process = compile_process(ProcessSection(command=command, sandbox="none"))
    channel = StdioChannel(host, process, listening)  # type: ignore[arg-type]
    host.loop = Loop(lambda: channel.fail(Fault.FIRST_BYTE_TIMEOUT, "took too long"))
    channel.start([])
    await until(lambda: not host.endings)
    assert [one.message for one in listening.told] == ["took too long"]
    assert channel._child is not None
    async with asyncio.timeout(10):
        await channel._child.gone.wait()
