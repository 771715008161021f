"""HopLimit: only edges between agents are hops, and time that is over is over."""

from __future__ import annotations

import pytest

from meshd.call import Call, Direction
from meshd.filters.hop_limit import HopLimit
from meshd.refusal import Reason, Refused
from meshd_sdk.context import Context
from tests.filters.calls import UPSTREAMS, WALL_S, call, policy

LIMITED = policy("limits: {hops: 3, deadline: 10s}")
FILTER = HopLimit()


def at(hops: int, target: str = "writer", deadline_s: float | None = None, **more: object) -> Call:
    made = call(target, **{"of": LIMITED, **more})  # type: ignore[arg-type]
    path = tuple("ab"[n % 2] for n in range(hops))
    made.context = Context("wf-1", "researcher", hops, path, deadline_s, "workflow/wf-1", 50, memory=("m",))
    return made


def refused(made: Call) -> Refused:
    with pytest.raises(Refused) as caught:
        FILTER.admit(made)
    return caught.value


@pytest.mark.parametrize("target", ["writer", "far"])
def test_the_hop_over_the_limit_is_refused_before_it_goes_out(target: str) -> None:
    FILTER.admit(at(2, target))
    error = refused(at(3, target))
    assert (error.reason, error.is_retryable) == (Reason.HOP_LIMIT, False)
    assert "hop 4 of workflow wf-1, and 3 are allowed: a > b > a > researcher" in error.message
    assert "limits.hops" in error.message


@pytest.mark.parametrize("target", ["openai", "billing", "web", "nowhere"])
@pytest.mark.parametrize("hops", [3, 4, 1000])
def test_what_is_no_agent_is_no_hop(target: str, hops: int) -> None:
    FILTER.admit(at(hops, target))


def test_what_stands_behind_a_sidecar_is_a_hop_whatever_its_kind() -> None:
    of = policy("limits: {hops: 3}", UPSTREAMS.replace('9003", kind: tool', '9003", kind: tool, peer: true'))
    assert refused(at(3, "billing", of=of)).reason is Reason.HOP_LIMIT


def test_the_edge_of_an_inbound_call_was_counted_already() -> None:
    FILTER.admit(at(3, "app", direction=Direction.INBOUND))
    assert refused(at(4, "app", direction=Direction.INBOUND)).reason is Reason.HOP_LIMIT


def test_a_limit_of_none_lets_no_agent_call_another() -> None:
    of = policy("limits: {hops: 0}")
    assert refused(at(0, of=of)).reason is Reason.HOP_LIMIT
    FILTER.admit(at(0, "openai", of=of))


def test_a_long_path_is_shown_at_its_end() -> None:
    assert ": ... > a > b > a > b > a > b > a > researcher. " in refused(at(101)).message


def test_the_nearer_deadline_holds() -> None:
    for known_s, expected_s in ((None, WALL_S + 10), (WALL_S + 99, WALL_S + 10), (WALL_S + 4, WALL_S + 4)):
        made = at(1, deadline_s=known_s)
        before = made.context
        assert before is not None
        FILTER.admit(made)
        assert made.context is not None
        assert made.context.deadline_s == expected_s
        kept = (made.context.workflow, made.context.hops, made.context.path, made.context.ceiling, made.context.memory)
        assert kept == (before.workflow, before.hops, before.path, before.ceiling, before.memory)


def test_without_a_limit_the_context_stays_the_same_object() -> None:
    made = at(1, of=policy())
    before = made.context
    FILTER.admit(made)
    assert made.context is before


@pytest.mark.parametrize("target", ["openai", "writer"])
def test_time_that_is_over_is_refused(target: str) -> None:
    error = refused(at(0, target, deadline_s=WALL_S - 2.5))
    assert error.reason is Reason.DEADLINE
    assert "2.5 s ago" in error.message
    assert refused(at(0, target, deadline_s=WALL_S)).reason is Reason.DEADLINE


def test_a_call_without_a_context_is_refused() -> None:
    made = at(0)
    made.context = None
    assert refused(made).reason is Reason.CONTEXT_INVALID


def test_it_explains_itself() -> None:
    made = at(1)
    FILTER.admit(made)
    assert FILTER.explain(made) == "hop 2 of 3, 10.0 s left"
    assert FILTER.explain(at(1, "openai")) == "hop 1 of 3, no deadline"
