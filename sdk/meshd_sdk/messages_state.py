"""The plain values of shared state as messages of the protocol, and back. Imports protobuf."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshd_sdk.messages import unix_s
from meshd_sdk.state_values import Lease, State, Written
from meshd_sdk.v1 import state_pb2

if TYPE_CHECKING:
    from meshd_sdk.state_values import Wish

_CAUSE: Final = "STATE_CONFLICT_"
_ORDER: Final = "CLOCK_ORDER_"


def state_of(one: state_pb2.StateObject) -> State:
    """Return a version."""
    return State(
        one.key,
        one.version,
        one.value,
        one.content_type,
        one.writer,
        one.workflow,
        unix_s(one.written),
        dict(one.clock),
        one.size,
        one.is_deleted,
        one.is_shadow,
        one.base_version,
    )


def lease_of(one: state_pb2.StateLease) -> Lease:
    """Return who has checked something out."""
    return Lease(one.agent, one.workflow, unix_s(one.until))


def written_of(answer: state_pb2.CommitResponse) -> Written:
    """Return what became of a change. What this version has no word for is a conflict all the same."""
    if not answer.is_conflict:
        return Written(state_of(answer.object))
    cause = _word(state_pb2.StateConflict, answer.conflict, _CAUSE)
    order = _word(state_pb2.ClockOrder, answer.order, _ORDER)
    lease = lease_of(answer.lease) if answer.HasField("lease") else None
    return Written(state_of(answer.object), cause or "version", order, lease)


def wish_of(token: str, wish: Wish) -> Any:
    """Return the request that makes a change."""
    if wish.kind == "commit":
        return state_pb2.CommitRequest(
            token=token,
            key=wish.key,
            base_version=wish.base_version,
            value=wish.payload,
            content_type=wish.content_type,
            lease_id=wish.lease_id,
            commit_id=wish.commit_id,
        )
    if wish.kind == "shadow":
        return state_pb2.WriteShadowRequest(
            token=token,
            key=wish.key,
            base_version=wish.base_version,
            shadow_version=wish.shadow_version,
            value=wish.payload,
            content_type=wish.content_type,
            commit_id=wish.commit_id,
        )
    if wish.kind == "promote":
        return state_pb2.PromoteRequest(
            token=token, key=wish.key, shadow_version=wish.shadow_version, commit_id=wish.commit_id
        )
    return state_pb2.DeleteStateRequest(
        token=token, key=wish.key, base_version=wish.base_version, commit_id=wish.commit_id
    )


def _word(enum: Any, number: int, prefix: str) -> str:
    known = enum.DESCRIPTOR.values_by_number.get(number)
    name = known.name.removeprefix(prefix).lower() if known is not None else ""
    return "" if name == "unspecified" else name
