"""A server that was started, as the event loop sees it.

What it writes to standard error is kept, the last of it, to be shown where it fails.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from meshd.bridge import ending
from meshd.outcome import Fault
from meshd.wire.ndjson import Splitter
from meshd.wire.sse import EventTooLarge

if TYPE_CHECKING:
    from meshd.bridge.stdio import StdioChannel

LINE_BYTES_MAX: Final = 16 * 2**20
ERRORS_BYTES_MAX: Final = 64 * 1024
ERRORS_BYTES_A_SWEEP: Final = 2**20
"""Of standard error between two sweeps, before it is read more slowly."""
LINGERING_S: Final = 1.0
"""How long one may live that has closed its output."""


class Child(asyncio.SubprocessProtocol):
    """The process, as the event loop sees it."""

    def __init__(self, channel: StdioChannel, *, is_sandboxed: bool) -> None:
        self._channel = channel
        self._is_sandboxed = is_sandboxed
        self._transport: Any = None
        self._input: Any = None
        self._lines = Splitter(LINE_BYTES_MAX)
        self._errors = bytearray()
        self._errors_taken = 0
        self._is_hushed = False
        self._lingering: asyncio.TimerHandle | None = None
        self.gone = asyncio.Event()

    @property
    def is_connected(self) -> bool:
        """Whether it was started."""
        return self._transport is not None

    @property
    def unread_bytes(self) -> int:
        """What was written, and not read yet."""
        return int(self._input.get_write_buffer_size())

    def write(self, message: bytes) -> None:
        """Write one message, which has no line end within."""
        if not self._input.is_closing():
            self._input.write(message + b"\n")

    def pause(self) -> None:
        """Read no more of its output for now."""
        self._pace(1, is_on=False)

    def resume(self) -> None:
        """Read it again."""
        self._pace(1, is_on=True)

    def _pace(self, number: int, *, is_on: bool) -> None:
        pipe = self._transport.get_pipe_transport(number) if self._transport is not None else None
        if pipe is None or pipe.is_closing() or pipe.is_reading() == is_on:
            return
        if is_on:
            pipe.resume_reading()
        else:
            pipe.pause_reading()

    def close_input(self) -> None:
        """Say that nothing more comes: a server of MCP then ends by itself."""
        self._input.close()
        # What it still has to say is for nobody, and must not keep it from ending.
        self.resume()

    def ask(self) -> None:
        """Ask it to end."""
        if not self.gone.is_set():
            ending.ask(self._transport.get_pid(), is_sandboxed=self._is_sandboxed)

    def kill(self) -> None:
        """End it at once."""
        if self._transport is not None and not self.gone.is_set():
            ending.kill(self._transport.get_pid())

    def expire(self) -> None:
        """Called about twice a second."""
        self._errors_taken = 0
        if self._is_hushed:
            self._is_hushed = False
            self._pace(2, is_on=True)

    # ------------------------------------------------------------------ from the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._input = self._transport.get_pipe_transport(0)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self._errors += data
            del self._errors[:-ERRORS_BYTES_MAX]
            self._errors_taken += len(data)
            if self._errors_taken > ERRORS_BYTES_A_SWEEP and not self._is_hushed:
                self._is_hushed = True
                self._pace(2, is_on=False)
            return
        try:
            lines = self._lines.feed(data)
        except EventTooLarge:
            self._lines = Splitter(LINE_BYTES_MAX)
            self._channel.fail(Fault.GARBAGE, f"wrote a line of more than {LINE_BYTES_MAX >> 20} MB")
            return
        for line in lines:
            self._channel.line(line)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1 and self._lingering is None and not self.gone.is_set():
            # Nearly always it has ended, and that is told in a moment, with its status.
            self._lingering = asyncio.get_running_loop().call_later(LINGERING_S, self._lingers)

    def _lingers(self) -> None:
        self._channel.fail(Fault.RESET, "closed its standard output, and did not end")
        self.kill()

    def process_exited(self) -> None:
        if self._lingering is not None:
            self._lingering.cancel()
        # A process that it has left behind may hold the pipes open: what comes of it is not waited for.
        self._lingering = asyncio.get_running_loop().call_later(LINGERING_S, self._left)

    def _left(self) -> None:
        if not self.gone.is_set():
            self._transport.close()
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish()

    def _finish(self) -> None:
        if self._lingering is not None:
            self._lingering.cancel()
        if not self.gone.is_set():
            self.gone.set()
            code = self._transport.get_returncode()
            self._channel.gone(code, self._errors.decode("utf-8", "replace"))
