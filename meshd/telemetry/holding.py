"""What the span of a call says of people who were asked about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshd.telemetry import names

if TYPE_CHECKING:
    from meshd.approvals.holding import Holding


def of_holding(holding: Holding) -> dict[str, Any]:
    """Return the attributes: which approval, where it stands, who has decided, and for how long the call was held."""
    approval = holding.approval
    if approval is None:
        return {}
    found: dict[str, Any] = {
        names.MESHD_APPROVAL: approval.id,
        names.MESHD_APPROVAL_STATE: approval.state.value,
        names.MESHD_APPROVAL_HELD: round(holding.held_s, 3),
    }
    if approval.decisions:
        found[names.MESHD_APPROVAL_BY] = tuple([one.approver for one in approval.decisions])
    return found
