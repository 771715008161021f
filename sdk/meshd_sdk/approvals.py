"""What people decide about something that an agent intends to do by itself, and what a no becomes. Stdlib only."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from meshd_sdk.errors import ApprovalDenied, ApprovalExpired, ApprovalPending, Refused
from meshd_sdk.link import new_id

if TYPE_CHECKING:
    from meshd_sdk.link import Link


class Wish(NamedTuple):
    """What people are asked about."""

    operation: str
    payload: bytes = b""
    summary: str = ""
    expires_s: float | None = None
    quorum: int = 0


class Decision(NamedTuple):
    """What one person decided."""

    approver: str
    is_approved: bool
    reason: str
    decided_s: float
    """Unix seconds."""


class Approval(NamedTuple):
    """A question to people, and what became of it. Times are unix seconds."""

    id: str
    state: str
    """`pending`, `approved`, `denied`, `expired`, `used` or `cancelled`."""
    operation: str
    summary: str
    """What is asked for, in a line."""
    agent: str
    workflow: str
    kind: str
    """`own` for what an agent does by itself, else the kind of the call's target."""
    target: str
    asked_s: float
    expires_s: float
    quorum: int = 1
    decisions: tuple[Decision, ...] = ()
    used_by: str = ""
    cancelled_for: str = ""

    @property
    def approved_by(self) -> tuple[str, ...]:
        """Who has allowed it."""
        return tuple(one.approver for one in self.decisions if one.is_approved)


async def granted(link: Link, token: str, wish: Wish, timeout_s: float | None) -> Approval:
    """Ask, wait, and return the approval once it is used for this. Raises what `Ctx.ask_approval` does."""
    use_id, ends_s = new_id(), None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        asked = await link.ask_approval(token, wish)
        left_s = None if ends_s is None else max(0.0, ends_s - time.monotonic())
        found, is_granted = await link.wait_for_approval(token, asked.id, use_id, left_s)
        if is_granted:
            return found
        # Used by another, who asked for the same: this one asks for itself.
        if found.state != "used" or (ends_s is not None and time.monotonic() >= ends_s):
            raise refusal_of(found)


def refusal_of(found: Approval) -> Refused:
    """Return the error of an approval that does not let the agent go on."""
    more = {"approval": found.id}
    if found.state in ("pending", "approved"):
        message = (
            f"{found.operation} waits for a person's approval, {found.id}, and nobody has decided yet. "
            "Ask for the same again later: it attaches to the same approval."
        )
        return ApprovalPending(message, reason="approval_pending", metadata=more)
    if found.state == "expired":
        message = f"{found.operation} was not allowed: nobody decided on the approval {found.id} in time."
        return ApprovalExpired(message, reason="approval_denied", metadata=more)
    denial = next((one for one in found.decisions if not one.is_approved), None)
    if denial is not None:
        message = f"{found.operation} was denied by {denial.approver} (approval {found.id}): {denial.reason}"
        more |= {"approver": denial.approver, "why": denial.reason}
    else:
        message = f"{found.operation} was not allowed: the approval {found.id} is {found.state}"
        message += f" ({found.cancelled_for})" if found.cancelled_for else ""
    return ApprovalDenied(message, reason="approval_denied", metadata=more)
