"""Objects, leases and clocks as the protocol has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.api.fields import moment
from meshd.clocks import Order
from meshd.state.deciding import Cause
from meshd.state.knowing import clock_of
from meshd_sdk.v1 import state_pb2 as pb

if TYPE_CHECKING:
    from meshd.state.record import Lease, Version

ORDERS: Final = {
    None: pb.CLOCK_ORDER_UNSPECIFIED,
    Order.BEFORE: pb.CLOCK_ORDER_BEFORE,
    Order.AFTER: pb.CLOCK_ORDER_AFTER,
    Order.CONCURRENT: pb.CLOCK_ORDER_CONCURRENT,
    Order.EQUAL: pb.CLOCK_ORDER_EQUAL,
}
CAUSES: Final = {
    Cause.VERSION: pb.STATE_CONFLICT_VERSION,
    Cause.LEASE_HELD: pb.STATE_CONFLICT_LEASE_HELD,
    Cause.LEASE_LOST: pb.STATE_CONFLICT_LEASE_LOST,
}


def shown(key: str, version: Version | None, value: bytes = b"", *, is_shadow: bool = False) -> pb.StateObject:
    """Return a version; of none one with the number 0."""
    if version is None:
        return pb.StateObject(key=key)
    return pb.StateObject(
        key=key,
        version=version.number,
        value=value,
        content_type=version.content_type,
        writer=version.writer,
        workflow=version.workflow,
        written=moment(version.written_s),
        clock=clock_of(version).counts,
        size=version.size,
        is_deleted=version.is_deleted,
        base_version=version.base,
        is_shadow=is_shadow,
    )


def lease_of(lease: Lease | None) -> pb.StateLease | None:
    """Return a lease without its id, which only its holder knows."""
    if lease is None:
        return None
    return pb.StateLease(agent=lease.agent, workflow=lease.workflow, until=moment(lease.until_s))
