"""What is kept of a call's head and of its span."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshd.trace.record import callers

if TYPE_CHECKING:
    from meshd.call import Call
    from meshd.trace.writer import Writer


def head_of(call: Call, writer: Writer, *rest: Any) -> tuple[Any, ...]:
    """Return what is kept of a call's head: enough to ask another policy about it, and nothing of its body. `rest` is
    what else its event says."""
    ask, rpc, target, context = call.ask, call.rpc, call.target, call.context
    shown = writer.shown
    path = call.path
    if "?" in path:
        # What follows may hold a key, and grows without end.
        path = path.partition("?")[0]
    head = (
        call.direction,
        target.kind,
        shown(call.method),
        shown(path) if ask is None else "",
        "" if ask is None else ask.operation,
        shown(target.model if ask is None else ask.model_sent),
        0 if ask is None else ask.input_bound,
        None if ask is None else ask.output_cap,
        0 if ask is None else ask.choices,
        ask is not None and ask.is_stream,
        "" if rpc is None else shown(rpc.tool),
        "" if rpc is None else shown(rpc.method),
        0 if context is None else context.hops,
        call.evidence,
        call.attempt,
    )
    return head + rest


def span_of(call: Call) -> bytes:
    """Return a call's trace id, span id and flags, where it has a span that somebody keeps; else nothing."""
    span = call.span
    if span is None or not (span.is_sampled or span.parent):
        return b""
    found: bytes = span.parent_bytes
    return found if span.is_own else callers(found)
