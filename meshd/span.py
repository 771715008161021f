"""The handle on a call's span: who its parent is, whether it is kept, and which ids it has.

Ids are made when they are first asked for. `meshd.telemetry.spans` decides and tells; what is here every filter may
read.
"""

from __future__ import annotations

import random
from typing import ClassVar, Final

from meshd_sdk.context import parent_bytes

SAMPLED: Final = 0x01
"""Among the flags of a `traceparent`."""

_bits: Final = random.getrandbits
_HEX: Final = frozenset("0123456789abcdef")


def parse_traceparent(value: str) -> tuple[int, int, int] | None:
    """Return (trace id, parent's span id, flags), or None for what W3C Trace Context calls invalid.

    A version above 00 may be longer; only its first four fields are read. An invalid one begins a new trace: unlike
    our own headers it decides nothing but where a span is shown.
    """
    if len(value) < 55 or value[2] != "-" or value[35] != "-" or value[52] != "-":
        return None
    version, trace_id, span_id, flags = value[:2], value[3:35], value[36:52], value[53:55]
    if version == "ff" or (version == "00" and len(value) != 55) or (len(value) > 55 and value[55] != "-"):
        return None
    if not _HEX.issuperset(version + trace_id + span_id + flags):
        return None
    trace, span = int(trace_id, 16), int(span_id, 16)
    return (trace, span, int(flags, 16)) if trace and span else None


class Span:
    """The handle on `call.span`. Cheap: two words until somebody asks for its ids."""

    is_own: ClassVar[bool] = True
    """meshd made it; False for the caller's, that is passed on."""

    __slots__ = (
        "_bytes", "_sibling", "_span_id", "_trace_id", "is_sampled", "is_shadowed", "loop", "parent", "parent_id",
    )  # fmt: skip

    def __init__(
        self, is_sampled: bool, parent: str = "", trace_id: int = 0, parent_id: int = 0, span_id: int = 0
    ) -> None:
        self.is_sampled = is_sampled
        self.is_shadowed = False
        self.loop = ""  # what found that the workflow goes in circles; empty where nothing did
        self.parent = parent
        """The valid traceparent that came with the call; empty where none did."""
        self.parent_id = parent_id
        self._trace_id = trace_id
        self._span_id = span_id
        self._sibling = b""  # what begins with the id of its trace, where that is shared
        self._bytes = b""  # what `parent_bytes` has returned

    @property
    def trace_id(self) -> int:
        """128 bits, never 0."""
        if not self._trace_id:
            sibling = self._sibling
            self._trace_id = int.from_bytes(sibling[:16], "big") if sibling else _bits(128) or 1
        return self._trace_id

    @property
    def span_id(self) -> int:
        """64 bits, never 0."""
        if not self._span_id:
            self._span_id = _bits(64) or 1
        return self._span_id

    @property
    def traceparent(self) -> str:
        """The W3C header value to forward, with this span as parent."""
        digits = self.parent_bytes.hex()
        return f"00-{digits[:32]}-{digits[32:48]}-{digits[48:]}"

    @property
    def parent_bytes(self) -> bytes:
        """The same as a context token holds it: 16, 8 and 1 bytes; none where there is nothing to forward."""
        if not self._bytes:
            flags = b"\x01" if self.is_sampled else b"\x00"
            trace_id = self._sibling[:16] or self.trace_id.to_bytes(16, "big")
            self._bytes = trace_id + self.span_id.to_bytes(8, "big") + flags
        return self._bytes

    def join(self, sibling: bytes) -> bytes:
        """Return what a context token holds of a call that begins a trace which is not kept: all of one second hold
        the same, so that one token serves them. `sibling` is what the others hold, empty for the first.

        They become one trace; where one of them fails, and is kept all the same, it stands in that.
        """
        if sibling and not self._trace_id:
            self._sibling = sibling
        return sibling or self.parent_bytes

    def adopt(self, traceparent: str) -> bool:
        """Take a parent that was found later (in the context token, say), unless the call brought its own.

        Returns whether it was taken. Call it before `traceparent` is first read.
        """
        if self.parent or not traceparent:
            return False
        parsed = parse_traceparent(traceparent)
        if parsed is None:
            return False
        self.parent = traceparent
        self._bytes = self._sibling = b""
        self._trace_id, self.parent_id, flags = parsed
        self.is_sampled = bool(flags & SAMPLED)
        return True


class PassedThrough(Span):
    """The handle where no collector is set: meshd adds no span, so the caller's own parent is forwarded as it came."""

    is_own: ClassVar[bool] = False

    __slots__ = ()

    @property
    def traceparent(self) -> str:
        """What the call brought, or empty: whoever comes next decides for itself."""
        return self.parent

    @property
    def parent_bytes(self) -> bytes:
        """See `traceparent`; of a later version of it, the fields that this one knows (section 4.3)."""
        return parent_bytes("00" + self.parent[2:55]) if self.parent else b""

    def join(self, sibling: bytes) -> bytes:
        """Nothing: no trace is begun here."""
        return b""

    def adopt(self, traceparent: str) -> bool:
        taken = super().adopt(traceparent)
        self.is_sampled = False
        return taken
