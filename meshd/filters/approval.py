"""Approval: what a person must allow first.

This build has nobody to ask, so it enforces the short form's `human_in_the_loop_required` from the safe side: a tool
call that may change something is refused, whatever would have been decided. Reading passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.call import Direction, Kind
from meshd.filters.approval_settings import ApprovalSettings
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call

READ_ONLY: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing (RFC 9110 section 9.2.1, without TRACE)."""

# Bound here: looking a member up on its enum takes 0.1 us on Python 3.11.
_TOOL: Final = Kind.TOOL
_OUTBOUND: Final = Direction.OUTBOUND


class Approval:
    """Refuses a tool call that is not read-only; owes nothing."""

    __slots__ = ("_shadowed",)

    name = "approval"

    def __init__(self, shadowed: Callable[[Call, Refused], None] | None = None) -> None:
        """`shadowed` is told what a rule on trial would have refused beside one that binds."""
        self._shadowed = shadowed

    def admit(self, call: Call) -> None:
        """Raise Refused(APPROVAL_PENDING)."""
        plan = call.plan
        if plan.trials and self._shadowed is not None:
            for trial in plan.trials:
                if isinstance(trial, ApprovalSettings) and needs_approval(call, trial):
                    refused = _refused(call, trial)
                    refused.is_shadow = True
                    self._shadowed(call, refused)
        settings: ApprovalSettings | None = plan.approval
        if settings is not None and needs_approval(call, settings):
            raise _refused(call, settings)

    def explain(self, call: Call) -> str:
        """Say whether a person must be asked."""
        settings: ApprovalSettings | None = call.plan.approval
        if settings is None or not settings.required:
            return "no rule asks for approval"
        return (
            f"{settings.rule or 'the policy'} asks for approval, but not of {call.method} to {call.target.kind.value}"
        )


def needs_approval(call: Call, settings: ApprovalSettings) -> bool:
    """Say whether a person must allow this call first."""
    return (
        settings.required and call.target.kind is _TOOL and call.direction is _OUTBOUND and call.method not in READ_ONLY
    )


def _refused(call: Call, settings: ApprovalSettings) -> Refused:
    return Refused(
        Reason.APPROVAL_PENDING,
        f"{call.method} to the tool {call.target.name} needs a person's approval, and this build of meshd can ask "
        "nobody, so it will not be sent. Do not try again. To allow it, take human_in_the_loop_required out of the "
        "policy, or use a method that only reads (GET, HEAD, OPTIONS).",
        rule=settings.rule,
        is_shadow=settings.is_shadow,
    )
