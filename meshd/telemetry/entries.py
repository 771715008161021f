"""What agents say of themselves, as spans and counts: steps, tools in their own process, decisions, notes, usage."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshd.span import SAMPLED, Span, parse_traceparent
from meshd.telemetry import metrics, names, span_attributes, spans

if TYPE_CHECKING:
    from meshd.call import Usage
    from meshd.telemetry.series import Series
    from meshd.telemetry.spans import Tracer

_FRACTION: Final = 2**64


class Place(NamedTuple):
    """Where in which trace a span of an agent stands."""

    trace_id: int
    span_id: int
    parent_id: int
    is_sampled: bool

    @property
    def as_bytes(self) -> bytes:
        """Trace id, span id and flags, as a record of the trace has them."""
        flags = b"\x01" if self.is_sampled else b"\x00"
        return self.trace_id.to_bytes(16, "big") + self.span_id.to_bytes(8, "big") + flags


class Told(NamedTuple):
    """One thing that an agent says of itself, or does with shared state, its texts without secrets."""

    entry: str
    """One of `names.ENTRIES`; `names.STATE` for shared state."""
    name: str
    start_ns: int
    """Unix nanoseconds."""
    end_ns: int
    is_error: bool
    attributes: dict[str, Any]


def trace_of(workflow: str, parent: str, ratio: float) -> Place:
    """Return the span under which a workflow's entries stand: that of `parent` (a traceparent), where there is one.

    Without it the trace follows from the workflow's name, so that all sidecars put its entries into one, and so does
    whether it is sampled.
    """
    found = parse_traceparent(parent) if parent else None
    if found is not None:
        return Place(found[0], found[1], 0, bool(found[2] & SAMPLED))
    digest = sha256(b"meshd trace 1\0" + workflow.encode("utf-8", "replace")).digest()
    chance = int.from_bytes(digest[16:24], "big") / _FRACTION
    return Place(int.from_bytes(digest[:16], "big") or 1, 0, 0, chance < ratio)


def span_id_of(workflow: str, entry: str) -> int:
    """Return the span id of an entry that has none of its own: a child that comes before its parent finds it so."""
    digest = sha256(f"meshd entry 1\0{workflow}\0{entry}".encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") or 1


def tell(tracer: Tracer, told: Told, place: Place) -> None:
    """Hand the span of an entry on, where it is sampled or tells of a failure."""
    if not place.is_sampled and not told.is_error:
        return
    attributes = {key: _cut(value) for key, value in told.attributes.items()}
    span = Span(place.is_sampled, "", place.trace_id, place.parent_id, place.span_id)
    tracer.put(
        spans.FinishedSpan(
            span,
            told.name[: span_attributes.TEXT_LENGTH_MAX],
            spans.KIND_INTERNAL,
            told.start_ns,
            max(told.end_ns, told.start_ns),
            attributes,
            told.is_error,
        )
    )


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return value[: span_attributes.TEXT_LENGTH_MAX]
    if isinstance(value, int):
        return value
    return tuple(text[: span_attributes.TEXT_LENGTH_MAX] for text in value[: span_attributes.FINISH_REASONS_MAX])


def count_reported(series: Series, model: str, usage: Usage, microdollars: int) -> None:
    """Count usage that an agent reports, in the metrics of tokens. `model` is empty for one that nobody else knows:
    agents may invent names, and they are labels."""
    found = series.of_model(names.CHAT, names.REPORTED, model or metrics.OTHER)
    found.observe_tokens(usage.input_tokens, usage.output_tokens)
    found.microdollars += microdollars
