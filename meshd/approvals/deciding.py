"""Who may decide on an approval, and what that does to it. Pure: the clock is handed in."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

import msgspec

from meshd.approvals.record import Decision
from meshd.approvals.state import TABLE, Event, State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshd.approvals.record import Approval

REASON_CHARACTERS_MAX: Final = 1000


class Why(str, Enum):
    """Why a decision is not taken."""

    UNKNOWN = "unknown"
    """There is no such approval."""
    DAMAGED = "damaged"
    KEY = "key"
    """No approver of that name has that key."""
    OWN = "own"
    """It is the approver's own agent that asks."""
    NOT_ASKED = "not_asked"
    """The rule asks others."""
    TWICE = "twice"
    """The same approver has decided before."""
    OVER = "over"
    """It is expired, used, denied or cancelled."""
    REASON = "reason"
    """A denial says why."""
    BUSY = "busy"
    """Others keep changing it."""
    LIMITED = "limited"
    """Too many wrong keys."""


class Declined(Exception):
    """A decision that is not taken; the approval stays as it is. The message is for the person."""

    def __init__(self, why: Why, message: str) -> None:
        super().__init__(message)
        self.why = why


def decided(approval: Approval, approver: str, *, is_allowed: bool, reason: str, now_s: float) -> Approval:
    """Return an approval after a decision. Raises Declined."""
    check_may_decide(approval, approver)
    state = approval.state_at(now_s)
    before = [one for one in approval.decisions if one.approver == approver]
    if state in (State.PENDING, State.APPROVED) and any(one.is_allowed == is_allowed for one in before):
        raise Declined(Why.TWICE, f"{approver} has decided so already. The quorum is of different people.")
    if is_allowed:
        enough = len(approval.allowed_by) + 1 >= approval.quorum
        event = Event.GRANT if enough else Event.ALLOW
    else:
        event = Event.DENY
    if (state, event) not in TABLE:
        raise Declined(Why.OVER, over(approval, state))
    if not is_allowed and not reason.strip():
        raise Declined(Why.REASON, "Say why: whoever asked, and whoever reads the trace, wants to know.")
    made = Decision(approver, is_allowed, reason[:REASON_CHARACTERS_MAX], now_s)
    # Who changes their mind has one decision, the last.
    kept = tuple(one for one in approval.decisions if one.approver != approver)
    return msgspec.structs.replace(approval.after(event, now_s), decisions=(*kept, made))


def check_may_decide(approval: Approval, approver: str) -> None:
    """Raise Declined where this approval is not this person's to decide."""
    if approver in (approval.owner, approval.agent):
        raise Declined(Why.OWN, f"{approval.agent} is {approver}'s own agent: somebody else must decide.")
    if approver not in approval.approvers:
        raise Declined(Why.NOT_ASKED, f"The rule {approval.rule} asks {', '.join(approval.approvers)}, not {approver}.")


def over(approval: Approval, state: State) -> str:
    """Say why an approval can be decided no more."""
    if state is State.USED:
        return f"{approval.id} was used already, by the call {approval.used_by}: an approval holds for one call."
    if state is State.DENIED and approval.denied_by is not None:
        return f"{approval.id} was denied by {approval.denied_by.approver}: one who denies decides."
    if state is State.EXPIRED:
        return f"{approval.id} has expired: silence is no. The call must be made again, and asks anew."
    return f"{approval.id} is {state.value} already."


def holds(approval: Approval, approvers: Mapping[str, str]) -> bool:
    """Say whether an approved one still has its quorum, of those whom the policy of the moment knows.

    Whoever was taken out of the policy after deciding, or made the agent's owner, allows nothing any more.
    """
    allowed = set(approval.allowed_by) & set(approval.approvers) & set(approvers)
    return len(allowed - {approval.owner, approval.agent}) >= approval.quorum and approval.denied_by is None
