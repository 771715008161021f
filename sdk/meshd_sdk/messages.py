"""The plain values of `meshd_sdk.link` as messages of the protocol, and back. Imports protobuf."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from meshd_sdk.approvals import Approval, Decision
from meshd_sdk.current import Current
from meshd_sdk.errors import failure
from meshd_sdk.link import Amounts, Balance, Event, Given, Published
from meshd_sdk.v1 import (
    approvals_pb2,
    budget_pb2,
    context_pb2,
    discovery_pb2,
    events_pb2,
    session_pb2,
    status_pb2,
    trace_pb2,
)

if TYPE_CHECKING:
    from meshd_sdk.approvals import Wish
    from meshd_sdk.errors import Failure
    from meshd_sdk.handlers import Subscription, Tool
    from meshd_sdk.link import Ask, Entry, Opening

SECONDS_MAX = 999_999_999.0
TEXT_CHARACTERS_MAX = 4096
_STATE = "APPROVAL_STATE_"


def duration(seconds: float) -> Duration:
    """Return a Duration, to the millisecond and never negative. Raises ValueError for what is no number."""
    if not math.isfinite(seconds):
        raise ValueError(f"a number of seconds, not {seconds!r}")
    made = Duration()
    made.FromMilliseconds(round(min(max(seconds, 0.0), SECONDS_MAX) * 1000))
    return made


def seconds(given: Duration) -> float:
    """Return a Duration in seconds."""
    return float(given.seconds + given.nanos / 1e9)


def text(said: object, characters_max: int = TEXT_CHARACTERS_MAX) -> str:
    """Return a text that a message can hold: cut, and with a `?` for half of a surrogate pair."""
    return str(said)[:characters_max].encode("utf-8", "replace").decode()


def timestamp(unix_s: float) -> Timestamp:
    """Return a Timestamp, to the microsecond."""
    made = Timestamp()
    made.FromMicroseconds(round(unix_s * 1e6))
    return made


def unix_s(given: Timestamp) -> float:
    """Return a Timestamp in unix seconds."""
    return float(given.seconds + given.nanos / 1e9)


def given_of(context: context_pb2.Context) -> Given:
    """Return a context that was handed out."""
    deadline_s = unix_s(context.deadline) if context.HasField("deadline") else None
    return Given(
        Current(context.token, context.workflow, context.agent, context.traceparent, deadline_s=deadline_s),
        context.hops,
        tuple(context.path),
        context.account,
        context.ceiling_tokens if context.HasField("ceiling_tokens") else None,
        tuple(context.memory),
        context.ceiling_microdollars if context.HasField("ceiling_microdollars") else None,
    )


def failure_of(status: status_pb2.Status, call_id: str = "") -> Failure:
    """Return the error of a status that is not success."""
    retry_after_s = seconds(status.retry_after) if status.HasField("retry_after") else None
    return failure(
        status.code,
        status.reason,
        status.message,
        is_retryable=status.is_retryable,
        retry_after_s=retry_after_s,
        metadata=status.metadata,
        call_id=call_id,
    )


def status_of(error: Failure) -> status_pb2.Status:
    """Return the status of an error that a handler ended with, whatever it put into it: the caller is to hear of it."""
    made = status_pb2.Status(
        code=error.number or 2,
        reason=text(error.reason),
        message=text(error.message),
        is_retryable=error.is_retryable,
        metadata={text(name): text(value) for name, value in error.metadata.items()},
    )
    if error.retry_after_s is not None and math.isfinite(error.retry_after_s):
        made.retry_after.CopyFrom(duration(error.retry_after_s))
    return made


def call_of(id: int, ask: Ask) -> session_pb2.Call:
    """Return the frame of a call."""
    return session_pb2.Call(
        id=id,
        target=ask.target,
        operation=ask.operation,
        token=ask.token,
        payload=ask.payload,
        content_type=ask.content_type,
        timeout=None if ask.timeout_s is None else duration(ask.timeout_s),
        delegate_tokens=ask.delegate_tokens,
        idempotency_key=ask.idempotency_key,
    )


def event_of(event: Event) -> events_pb2.Event:
    """Return an event to be published."""
    return events_pb2.Event(
        id=event.id,
        source=event.source,
        type=event.type,
        subject=event.subject,
        time=None if event.time_s is None else timestamp(event.time_s),
        data_content_type=event.content_type,
        data=event.payload,
        data_ref=event.data_ref,
        partition_key=event.key,
        causation_id=event.cause,
        extensions=event.extensions,
        topic=event.topic,
    )


def event_from(delivery: session_pb2.EventDelivery) -> Event:
    """Return an event that was handed over."""
    event = delivery.event
    return Event(
        event.topic,
        event.data,
        event.data_content_type,
        event.id,
        event.source,
        event.type,
        event.subject,
        event.partition_key,
        event.correlation_id,
        event.causation_id,
        event.sequence,
        unix_s(event.time) if event.HasField("time") else None,
        dict(event.extensions),
        max(1, delivery.attempt),
        delivery.may_have_been_handled,
        event.data_ref,
    )


def published_of(response: events_pb2.PublishResponse) -> Published:
    """Return the acknowledgement of an event."""
    return Published(response.event_id, response.sequence, response.is_duplicate)


def subscribe_of(id: int, one: Subscription) -> session_pb2.Subscribe:
    """Return the frame of a subscription."""
    start = one.start
    request = events_pb2.SubscribeRequest(
        topic=one.topic, group=one.group, starts_at_oldest=start.is_oldest, starts_after=start.after
    )
    if start.at_s is not None:
        request.starts_at.CopyFrom(timestamp(start.at_s))
    if one.handling_s is not None:
        request.handling_time.CopyFrom(duration(one.handling_s))
    return session_pb2.Subscribe(id=id, request=request)


def tool_of(tool: Tool) -> discovery_pb2.Tool:
    """Return a tool as others find it."""
    output = tool.output_schema
    return discovery_pb2.Tool(
        name=tool.name,
        description=tool.description,
        input_schema=json.dumps(tool.input_schema, ensure_ascii=False),
        output_schema="" if output is None else json.dumps(output, ensure_ascii=False),
        is_read_only=tool.is_read_only,
        is_idempotent=tool.is_idempotent,
        version=tool.version,
    )


def entry_of(entry: Entry) -> trace_pb2.TraceEntry:
    """Return an entry for the trace."""
    kinds: dict[str, Any] = {
        "step": trace_pb2.ReasoningStep,
        "tool_call": trace_pb2.ToolCall,
        "decision": trace_pb2.Decision,
        "note": trace_pb2.Note,
    }
    made = trace_pb2.TraceEntry(
        id=entry.id,
        parent_id=entry.parent_id,
        began=timestamp(entry.began_s),
        ended=None if entry.ended_s is None else timestamp(entry.ended_s),
        error=entry.error,
        attributes=entry.attributes,
    )
    getattr(made, entry.kind).CopyFrom(kinds[entry.kind](**entry.fields))
    return made


def open_of(opening: Opening) -> context_pb2.OpenRequest:
    """Return the request that opens a workflow."""
    return context_pb2.OpenRequest(
        agent=opening.agent,
        workflow=opening.workflow,
        timeout=None if opening.timeout_s is None else duration(opening.timeout_s),
        ceiling_tokens=opening.tokens,
        ceiling_microdollars=opening.microdollars,
        traceparent=opening.traceparent,
    )


def balance_of(one: budget_pb2.Balance) -> Balance:
    """Return what is left of an account."""
    return Balance(
        one.account,
        one.rule,
        _amounts(one.tokens) if one.HasField("tokens") else None,
        _amounts(one.microdollars) if one.HasField("microdollars") else None,
        unix_s(one.window_ends) if one.HasField("window_ends") else None,
    )


def ask_of(token: str, wish: Wish) -> approvals_pb2.AskApprovalRequest:
    """Return the request that asks people."""
    return approvals_pb2.AskApprovalRequest(
        token=token,
        summary=wish.summary,
        payload=wish.payload,
        operation=wish.operation,
        expires=None if wish.expires_s is None else duration(wish.expires_s),
        quorum=wish.quorum,
    )


def state_of(name: str) -> approvals_pb2.ApprovalState.ValueType:
    """Return a state by its name; empty for any. Raises ValueError for what is none."""
    return approvals_pb2.ApprovalState.Value(f"{_STATE}{(name or 'unspecified').upper()}")


def approval_of(one: approvals_pb2.Approval) -> Approval:
    """Return an approval as it stands."""
    known = approvals_pb2.ApprovalState.DESCRIPTOR.values_by_number.get(one.state)
    return Approval(
        one.id,
        known.name.removeprefix(_STATE).lower() if known is not None else "",
        one.operation,
        one.summary,
        one.agent,
        one.workflow,
        one.kind,
        one.target,
        unix_s(one.asked),
        unix_s(one.expires),
        one.quorum,
        tuple(Decision(made.approver, made.is_approved, made.reason, unix_s(made.decided)) for made in one.decisions),
        one.used_by,
        one.cancelled_for,
    )


def _amounts(one: budget_pb2.Amounts) -> Amounts:
    return Amounts(one.total, one.available, one.reserved, one.spent, one.delegated)
