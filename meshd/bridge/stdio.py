"""A channel to a program that the policy starts: one message a line on its standard input, and back."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any, Final

from meshd.bridge import sandbox
from meshd.bridge.child import Child
from meshd.bridge.contract import Ended
from meshd.outcome import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.bridge.contract import Host, Listening
    from meshd.call import Headers
    from meshd.upstream import Process

WAITING_BYTES_MAX: Final = 64 * 2**20
"""Of what the server has not read yet. One message is always taken."""
CLOSED_S: Final = 1.0
TOLD_S: Final = 1.0
"""How long a server has to end after its input was closed, and after SIGTERM: then it is killed."""
SHOWN_CHARACTERS: Final = 400
NOT_FOUND: Final = 127
_SIGNALS_FROM: Final = 128


class StdioChannel:
    """See the module, and `meshd.bridge.contract.Channel`."""

    def __init__(self, host: Host, process: Process, listening: Listening) -> None:
        self._host = host
        self._process = process
        self._listening: Listening | None = listening
        self._child: Child | None = None
        self._waiting: list[bytes] = []
        self._why: tuple[Fault, str] | None = None
        self._is_ending = False
        self._is_paused = False

    def start(self, headers: Headers) -> None:
        """See `Channel.start`."""
        self._keep(self._start())

    def _keep(self, coroutine: Any) -> None:
        task = self._host.loop.create_task(coroutine)
        self._host.endings.add(task)
        task.add_done_callback(self._host.endings.discard)

    async def _start(self) -> None:
        host = self._host
        try:
            launch = await host.loop.run_in_executor(None, sandbox.prepare, self._process, host.hidden)
            if self._is_ending or self._why is not None:
                self._tell(Fault.CONNECT, "was ended before it was started", is_failure=False)
                return
            child = self._child = Child(self, is_sandboxed=launch.is_sandboxed)
            await host.loop.subprocess_exec(
                lambda: child,
                *launch.command(os.getpid()),
                env=launch.environ,
                cwd=launch.cwd or "/",
                start_new_session=True,
            )
        except sandbox.Unusable as error:
            # Not its doing: it need not be left alone, and each call is told why.
            self._tell(Fault.CONNECT, f"cannot be started: {error}", is_failure=False)
        except (OSError, ValueError) as error:
            self._tell(Fault.CONNECT, f"cannot be started: {error}")
        else:
            for message in self._waiting:
                child.write(message)
            self._waiting.clear()
            if self._why is not None:
                child.kill()  # It was given up while it was being started, when there was nothing to kill.
            if self._is_paused:
                child.pause()
            if self._is_ending:
                await self._end()

    def send(self, message: bytes, headers: Headers, failed: Callable[[Fault, str], None]) -> bool:
        """See `Channel.send`."""
        child = self._child
        if child is None or not child.is_connected:
            if self._waiting and sum(map(len, self._waiting)) + len(message) > WAITING_BYTES_MAX:
                return False
            self._waiting.append(message)
            return True
        if child.unread_bytes and child.unread_bytes + len(message) > WAITING_BYTES_MAX:
            return False
        child.write(message)
        return True

    def pause(self) -> None:
        """See `Channel.pause`."""
        self._is_paused = True
        if self._child is not None:
            self._child.pause()

    def resume(self) -> None:
        """See `Channel.resume`."""
        self._is_paused = False
        if self._child is not None:
            self._child.resume()

    def fail(self, fault: Fault, message: str) -> None:
        """See `Channel.fail`."""
        if self._why is None:
            self._why = (fault, message)
            if self._child is not None:
                self._child.kill()
            self._tell(fault, message)

    def end(self) -> None:
        """See `Channel.end`."""
        self._listening = None
        if not self._is_ending:
            self._is_ending = True
            if self._child is not None and self._child.is_connected:
                self._keep(self._end())

    async def _end(self) -> None:
        child = self._child
        assert child is not None
        child.close_input()
        for wait_s, step in ((CLOSED_S, child.ask), (TOLD_S, child.kill)):
            try:
                async with asyncio.timeout(wait_s):
                    await child.gone.wait()
                    return
            except TimeoutError:
                step()
        await child.gone.wait()

    def expire(self) -> None:
        """See `Channel.expire`."""
        if self._child is not None:
            self._child.expire()

    # ------------------------------------------------------------------ from the child

    def line(self, raw: bytes) -> None:
        """The server has written a line."""
        listening = self._listening
        if listening is not None and self._why is None and raw.strip():
            self._host.run(lambda: listening.received(raw))

    def gone(self, code: int | None, last_words: str) -> None:
        """The server has ended."""
        if self._why is not None:
            return
        self._why = (Fault.RESET, "ended")
        fault = Fault.CONNECT if code == NOT_FOUND else Fault.RESET
        how = "with an unknown exit status" if code is None else _how(code)
        # Before it is cut: half of a key may not look like one.
        said = self._host.redact(last_words)[-SHOWN_CHARACTERS:].strip()
        told = f". Its last words: {said}" if said else " and said nothing of it on its standard error"
        self._tell(fault, f"ended {how}{told}", is_failure=code != 0)

    def _tell(self, fault: Fault, message: str, *, is_failure: bool = True) -> None:
        listening, self._listening = self._listening, None
        self._waiting.clear()
        if listening is not None:
            self._host.run(lambda: listening.ended(Ended(fault, message, is_failure)))


def _how(code: int) -> str:
    number = -code if code < 0 else code - _SIGNALS_FROM
    if code < 0 or number in signal.valid_signals():
        try:
            return f"by {signal.Signals(number).name}"
        except ValueError:
            pass
    return f"with exit status {code}"
