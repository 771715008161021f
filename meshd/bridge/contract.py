"""What the parts of the bridge ask of one another, and of the data plane above them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import asyncio
    import ssl
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from meshd.call import Headers
    from meshd.outcome import Fault


class Host(Protocol):
    """The data plane, as far as the bridge needs it."""

    loop: asyncio.AbstractEventLoop
    endings: set[asyncio.Task[None]]
    """What still has to end before the sidecar may."""
    hidden: tuple[str, ...]
    """Files and folders of meshd's own, which no program that it starts may see."""

    def now_s(self) -> float: ...

    def run(self, callback: Callable[[], None]) -> None:
        """Make a callback of the loop into one that may write to callers."""
        ...

    def ending(self, exchange: Any) -> AbstractContextManager[None]:
        """Let a fault end one call, and no more than that."""
        ...

    def redact(self, text: str) -> str:
        """Take secrets out of what a server has said."""
        ...

    def ssl_context(self) -> ssl.SSLContext | None: ...


class Ended(NamedTuple):
    """Why a channel has ended."""

    fault: Fault
    message: str
    is_failure: bool = True
    """It was the server's doing, and not ours."""


class Listening(Protocol):
    """Who is told what comes over a channel. Both are called within `Host.run`."""

    def received(self, raw: bytes) -> None:
        """One line or event has come."""
        ...

    def ended(self, ended: Ended) -> None:
        """The channel is of no more use. Called once, and not after `Channel.end`."""
        ...


class Channel(Protocol):
    """The way to one copy of a server, and back."""

    def start(self, headers: Headers) -> None:
        """Begin to open it. What is sent meanwhile waits, within bounds."""
        ...

    def send(self, message: bytes, headers: Headers, failed: Callable[[Fault, str], None]) -> bool:
        """Send one message; False where too much waits already. `failed` is called where it did not arrive."""
        ...

    def pause(self) -> None:
        """Take nothing more from the server for now."""
        ...

    def resume(self) -> None: ...

    def fail(self, fault: Fault, message: str) -> None:
        """End it at once: the server is not what it should be. `Listening.ended` is told."""
        ...

    def end(self) -> None:
        """End it in good order, in a task among `Host.endings`."""
        ...

    def expire(self) -> None:
        """Called about twice a second."""
        ...
