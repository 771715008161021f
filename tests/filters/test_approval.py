"""Approval: with nobody to ask, what may change something is not done."""

from __future__ import annotations

import pytest

from meshd.call import Call, Direction
from meshd.filters.approval import Approval
from meshd.filters.approval_settings import ApprovalSettings
from meshd.filters.routing import Routing
from meshd.policy.compiled import Plan
from meshd.refusal import Reason, Refused
from tests.filters.calls import call, chat, policy

HUMAN = policy("governance: {human_in_the_loop_required: true}")


def routed(made: Call) -> Call:
    Routing().admit(made)
    return made


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "CONNECT", "TRACE", "get", ""])
def test_a_tool_call_that_may_change_something_is_refused(method: str) -> None:
    with pytest.raises(Refused) as caught:
        Approval().admit(routed(call("billing", method=method, of=HUMAN)))
    error = caught.value
    assert (error.reason, error.status, error.is_retryable) == (Reason.APPROVAL_PENDING, 428, False)
    assert "human_in_the_loop_required" in error.message


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_reading_passes(method: str) -> None:
    made = routed(call("billing", method=method, of=HUMAN))
    Approval().admit(made)
    assert "asks for approval, but not of" in Approval().explain(made)


def test_what_is_no_tool_passes() -> None:
    Approval().admit(routed(call(ask=chat(), of=HUMAN)))
    Approval().admit(routed(call("writer", of=HUMAN)))
    Approval().admit(routed(call("billing", of=HUMAN, direction=Direction.INBOUND)))


def test_without_a_rule_nobody_is_asked() -> None:
    made = routed(call("billing"))
    Approval().admit(made)
    assert Approval().explain(made) == "no rule asks for approval"
    made.plan = Plan(approval=ApprovalSettings(required=False))
    Approval().admit(made)


def test_a_rule_on_trial_is_told_and_does_not_bind() -> None:
    told: list[Refused] = []
    made = routed(call("billing"))
    made.plan = Plan(trials=(ApprovalSettings(),))
    Approval(lambda _, error: told.append(error)).admit(made)
    assert [(error.reason, error.is_shadow) for error in told] == [(Reason.APPROVAL_PENDING, True)]
