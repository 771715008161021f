"""How a source asks: through the sidecar's own proxy, so that policy, keys, breakers and metrics hold for it too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgspec

from meshd.proxy.errand import send
from meshd.refusal import Refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from meshd.call import Headers
    from meshd.discovery.entry import Entry, Origin
    from meshd.proxy.errand import Answered
    from meshd.proxy.proxy import Proxy

ERRAND: Final = "discovery"
TIMEOUT_S: Final = 15.0
"""For one answer. A server that meshd starts has the time that the policy gives it to start."""
PAGE_BYTES_MAX: Final = 4 << 20
"""Of one answer."""
PAGES_MAX: Final = 64
"""Of one listing."""
LOOK_BYTES_MAX: Final = 16 << 20
"""Of all that one look at a server brings."""


class Failed(Exception):
    """A source did not say what it offers; the message is for an operator. `what` is a word for metrics."""

    def __init__(self, message: str, what: str = "failed") -> None:
        super().__init__(message)
        self.what = what


class Look(NamedTuple):
    """What a source offers at one moment."""

    entries: list[Entry]
    description: str = ""
    """What the server says of itself."""
    version: str = ""
    tells_changes: bool = False
    """`listen` hears of changes, so there is less need to ask."""


class Source(Protocol):
    """One server that can be asked. Methods raise Failed, and Refused where meshd itself refuses to ask."""

    origin: Origin

    async def look(self) -> Look:
        """Return all that it offers now."""
        ...

    async def listen(self, changed: Callable[[], None]) -> None:
        """Call `changed()` whenever it says that what it offers has changed; return where it will say no more."""
        ...

    async def close(self) -> None:
        """Let go of what is open at the server."""
        ...


class Asking:
    """Requests to one upstream, and how much they have brought."""

    def __init__(self, proxy: Proxy, upstream: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self.proxy = proxy
        self.upstream = upstream
        process = proxy.policy.upstreams[upstream].process if upstream in proxy.policy.upstreams else None
        self._timeout_s = timeout_s if process is None else max(timeout_s, process.start_timeout_s)
        self._bytes = 0

    def begin(self) -> None:
        """A look begins: its bytes are counted anew."""
        self._bytes = 0

    async def send(
        self,
        method: str,
        path: str,
        fields: Headers,
        body: bytes | None = None,
        heard: Callable[[int, bytes], bool] | None = None,
    ) -> Answered:
        """Return what is answered, whatever its status. Raises Failed."""
        left = min(PAGE_BYTES_MAX, LOOK_BYTES_MAX - self._bytes)
        if left <= 0:
            raise Failed(f"it says more than {LOOK_BYTES_MAX} bytes of itself", "too_large")
        fields = [*fields, (b"accept-encoding", b"identity")]
        answered = await _sent(
            send(
                self.proxy,
                self.upstream,
                method,
                path,
                fields,
                body,
                errand=ERRAND,
                timeout_s=self._timeout_s,
                bytes_max=left,
                heard=heard,
            )
        )
        self._bytes += len(answered.body)
        return answered


async def _sent(answer: Awaitable[Answered]) -> Answered:
    try:
        return await answer
    except Refused as refused:
        raise Failed(refused.message, refused.reason.value) from None


def object_in(body: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object that a body is; values that are objects or lists are whole. Raises Failed."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Failed(f"{what} is no JSON: {str(error)[:120]}", "malformed") from None
    if not isinstance(found, dict):
        raise Failed(f"{what} is no JSON object", "malformed")
    return found


def text_in(found: dict[str, Any], key: str) -> str:
    """Return a text of an object; empty where there is none, or it is something else."""
    value = found.get(key)
    return value if isinstance(value, str) else ""


def json_of(value: Any) -> bytes:
    """Return a value as JSON text that is the same however its server orders keys; empty for None."""
    return b"" if value is None else msgspec.json.encode(value, order="sorted")
