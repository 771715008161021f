"""Whether a call's span is kept, and what it says in the end; `meshd.span` is the handle on it.

The decision is made before anything is built: the parent's flag where there is one, else a throw of the dice. What was
refused, failed or cut is kept whatever was decided. No attribute holds the content of a message.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from meshd.call import Direction
from meshd.span import SAMPLED, PassedThrough, Span, parse_traceparent
from meshd.telemetry import names
from meshd.telemetry.span_attributes import attributes, span_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call
    from meshd.dialects.contract import Meter
    from meshd.outcome import Outcome
    from meshd.refusal import Refused

# Kinds as OTLP numbers them.
KIND_INTERNAL: Final = 1
KIND_SERVER: Final = 2
KIND_CLIENT: Final = 3


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
