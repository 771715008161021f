"""Two connections that are one: what comes on either goes out on the other, no faster than it is taken there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

LINGER_S: Final = 5.0
"""How long what is left may take to go out where the other side has closed."""


class End(asyncio.Protocol):
    """One end of a splice. `joined` makes two of them one."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.other: End | None = None
        self.is_closed = False
        self.ended: Callable[[], None] | None = None
        """Is told when this end has closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        other = self.other
        if other is not None and not other.is_closed:
            other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None and not self.other.is_ending:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and not self.other.is_ending:
            self.other.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_closed = True
        if self.ended is not None:
            self.ended()
        if self.other is not None:
            self.other.close()

    @property
    def is_ending(self) -> bool:
        """It is closed, or will be once all has gone out."""
        return self.is_closed or self.transport is None or self.transport.is_closing()

    def close(self) -> None:
        """Close once what was written has gone out, or after LINGER_S: who never reads holds nothing for good."""
        if not self.is_ending:
            self.transport.close()
            asyncio.get_running_loop().call_later(LINGER_S, self.abort)

    def abort(self) -> None:
        """Close now."""
        if not self.is_closed and self.transport is not None:
            self.transport.abort()


def joined(one: End, other: End) -> None:
    """Let two ends be one connection."""
    one.other, other.other = other, one
