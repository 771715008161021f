"""A call's span: who its parent is, whether it is kept, and what it says in the end.

The decision is made before anything is built: the parent's flag where there is one, else a throw of the dice. Ids
are made when they are first asked for. A refused, failed or cut call is kept whatever was decided. No attribute
holds the content of a message.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from meshd.call import Direction
from meshd.telemetry import names
from meshd.telemetry.span_attributes import attributes, span_name
from meshd_sdk.context import parent_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call
    from meshd.dialects.contract import Meter
    from meshd.outcome import Outcome
    from meshd.refusal import Refused

SAMPLED: Final = 0x01
# Kinds as OTLP numbers them.
KIND_INTERNAL: Final = 1
KIND_SERVER: Final = 2
KIND_CLIENT: Final = 3
STATUS_ERROR: Final = 2


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

    __slots__ = ("_bytes", "_span_id", "_trace_id", "is_sampled", "is_shadowed", "loop", "parent", "parent_id")

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
        self._bytes = b""  # what `parent_bytes` has returned

    @property
    def trace_id(self) -> int:
        """128 bits, never 0."""
        if not self._trace_id:
            self._trace_id = random.getrandbits(128) or 1
        return self._trace_id

    @property
    def span_id(self) -> int:
        """64 bits, never 0."""
        if not self._span_id:
            self._span_id = random.getrandbits(64) or 1
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
            self._bytes = self.trace_id.to_bytes(16, "big") + self.span_id.to_bytes(8, "big") + flags
        return self._bytes

    def join(self, sibling: bytes) -> bytes:
        """Return what a context token holds of a call that begins a trace which is not kept: all of one second hold
        the same, so that one token serves them. `sibling` is what the others hold, empty for the first.

        They become one trace; where one of them fails, and is kept all the same, it stands in that.
        """
        if sibling and not self._trace_id:
            self._trace_id = int.from_bytes(sibling[:16], "big")
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
        self._bytes = b""
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


class _TraceFlags:
    sampled: ClassVar[bool] = True


class _Sampled:
    """All that the SDK's batch processor asks of a span's context."""

    trace_flags: ClassVar[type[_TraceFlags]] = _TraceFlags


class FinishedSpan:
    """What the exporter's thread needs of one span, and nothing that keeps the call or its body alive."""

    context: ClassVar[type[_Sampled]] = _Sampled

    __slots__ = ("attributes", "end_ns", "is_error", "kind", "name", "parent_id", "span_id", "start_ns", "trace_id")

    def __init__(
        self, span: Span, name: str, kind: int, start_ns: int, end_ns: int, attributes: dict[str, Any], is_error: bool
    ) -> None:
        self.trace_id = span.trace_id
        self.span_id = span.span_id
        self.parent_id = span.parent_id
        self.name = name
        self.kind = kind
        self.start_ns = start_ns
        self.end_ns = end_ns
        self.attributes = attributes
        """Values are str, bool, int, float or tuples of str."""
        self.is_error = is_error


class SpanSink(Protocol):
    """Where finished spans go. `put` never blocks and never raises."""

    def put(self, span: FinishedSpan) -> None: ...

    def close(self, timeout_s: float) -> None: ...


class Tracer:
    """Begins and ends spans. With no sink it only passes the caller's parent through."""

    __slots__ = ("_random", "_sink", "events", "ratio")

    def __init__(self, sink: SpanSink | None, ratio: float = 0.1, chance: Callable[[], float] = random.random) -> None:
        self._sink = sink
        self.ratio = ratio
        self._random = chance
        self.events = ""
        """How the ids of events in the trace begin; empty where none is kept."""

    @property
    def has_sink(self) -> bool:
        """Whether spans go anywhere."""
        return self._sink is not None

    def begin(self, call: Call) -> Span:
        """Return the handle for a call, its parent read from the call's own header."""
        is_kept = self._sink is not None
        made = Span if is_kept else PassedThrough
        for name, value in call.governed:
            if name == b"traceparent":
                parent = value.decode("latin-1")
                parsed = parse_traceparent(parent)
                if parsed is not None:
                    return made(is_kept and bool(parsed[2] & SAMPLED), parent, parsed[0], parsed[1])
                break
        return made(is_kept and self._random() < self.ratio)

    def end(
        self,
        call: Call,
        status: int,
        outcome: Outcome | None,
        refused: Refused | None,
        meter: Meter | None,
        result: int,
        duration_s: float,
    ) -> None:
        """Hand a span on where it is kept. `result` is an index into `names.RESULTS`."""
        span, sink = call.span, self._sink
        if sink is None or span is None:
            return
        is_error = result in (names.FAILED, names.REFUSED, names.CUT)
        if not (span.is_sampled or is_error or span.is_shadowed):
            return
        start_ns = int(call.wall_s * 1e9) or time.time_ns()
        found = attributes(call, status, outcome, refused, meter, result)
        if self.events and call.event:
            found[names.MESHD_EVENT] = f"{self.events}{call.event}"
        kind = KIND_SERVER if call.direction is Direction.INBOUND else KIND_CLIENT
        end_ns = start_ns + max(int(duration_s * 1e9), 0)
        sink.put(FinishedSpan(span, span_name(call), kind, start_ns, end_ns, found, is_error))

    def put(self, span: FinishedSpan) -> None:
        """Hand on a span that is not a call's, where any are kept."""
        if self._sink is not None:
            self._sink.put(span)

    def close(self, timeout_s: float) -> None:
        """Send what is queued, for at most `timeout_s`. Blocks."""
        if self._sink is not None:
            self._sink.close(timeout_s)
