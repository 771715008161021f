"""Approval: which calls ask, what is asked, and what the caller is told."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from meshd.approvals.desk import Desk
from meshd.approvals.hands import Whose
from meshd.approvals.keys import hash_of, new_key
from meshd.approvals.record import Approval as Record
from meshd.approvals.state import State
from meshd.call import Call, Direction, Evidence, NeedBody, Rpc, Wait
from meshd.engines.memory import MemoryStore
from meshd.engines.port import StoreError
from meshd.filters.approval import Approval, Used
from meshd.filters.approval_settings import ApprovalSettings
from meshd.filters.asking import cost_of, why_asked
from meshd.filters.plan import Plan
from meshd.filters.routing import Routing
from meshd.ledger import Ledger
from meshd.outcome import Fault
from meshd.policy.compiled import Policy
from meshd.refusal import Reason, Refused
from meshd_sdk.context import Context
from tests.filters.calls import WALL_S, call, chat, outcome, policy

KEY = new_key()
APPROVERS = f'approvers: {{ana: {{key: "sha256:{hash_of(KEY)}"}}}}\n'
HUMAN = policy(APPROVERS + "governance: {human_in_the_loop_required: true, max_tokens_per_workflow: 10000}")
WRITES = policy(APPROVERS + "rules: [{name: writes, approval: {hold: 0s}}]")


def routed(made: Call, body: bytes | None = b"{}") -> Call:
    Routing().admit(made)
    made.agent = "researcher"
    made.body = body
    return made


def asked(made: Call) -> str:
    settings: ApprovalSettings | None = made.plan.approval
    return "" if settings is None else why_asked(made, settings)


class House:
    """A filter and its desk, over a store in memory."""

    def __init__(self, of: Policy) -> None:
        self.of = of
        self.store = MemoryStore()
        self.wall_s = WALL_S
        self.desk = Desk(lambda: self.store, lambda: of, clock=lambda: self.wall_s)
        self.told: list[Refused] = []
        self.held: list[float] = []
        self.filter = Approval(lambda _, refused: self.told.append(refused), self.desk, observe=self.held.append)

    async def admit(self, made: Call) -> Any:
        decision = self.filter.admit(made)
        if isinstance(decision, Wait):
            assert decision.is_hold
            return await decision.coroutine
        return decision

    async def refused(self, made: Call) -> Refused:
        with pytest.raises(Refused) as caught:
            await self.admit(made)
        return caught.value

    async def pending(self) -> list[Record]:
        return await self.desk.list(State.PENDING, 100)

    async def decide(self, id: str, *, is_allowed: bool = True) -> None:
        await self.desk.decide(id, KEY, approver="", is_allowed=is_allowed, reason="because")


async def test_a_call_is_held_for_as_long_as_the_event_that_it_follows_from_may_be_handled() -> None:
    house = House(policy(APPROVERS + "rules: [{name: writes, approval: {}}]"))

    def made(token: bytes, workflow: str = "w") -> Call:
        one = routed(call("billing", headers=[(b"x-meshd-context", token)], of=house.of))
        one.context = Context(workflow, "researcher", account="workflow/w")
        return one

    hands, whose = house.desk.hands, Whose("researcher", "w")
    over = hands.begin(b"t1", whose, WALL_S)
    refused = await house.refused(made(b"t1"))  # at once, and not in 25 s
    (asked,) = await house.pending()
    assert (refused.reason, list(over.undecided)) == (Reason.APPROVAL_PENDING, [asked.id])
    # Under another token it may follow from any that the agent still has in hand in that workflow.
    other, stranger = hands.begin(b"t2", whose, WALL_S + 0.001), hands.begin(b"t3", Whose("researcher", "v"), WALL_S)
    assert (await house.refused(made(b"part"))).reason is Reason.APPROVAL_PENDING
    assert (list(other.undecided), list(stranger.undecided)) == ([asked.id], [])
    await house.decide(asked.id)
    ticket = await house.admit(made(b"t1"))
    assert isinstance(ticket, Used)
    assert (list(over.undecided), list(other.undecided)) == ([], [asked.id])
    await house.desk.close()


async def test_what_comes_in_or_hands_an_event_over_follows_from_no_event_in_hand() -> None:
    house = House(WRITES)
    hand = house.desk.hands.begin(b"t1", Whose("researcher", "w"), WALL_S + 9.0)
    own = house.desk.hands.begin(b"t2", Whose("clerk", "w"), WALL_S + 9.0)
    context = Context("w", "researcher", account="workflow/w")
    inward, over = [
        routed(call("billing", of=WRITES, direction=one)) for one in (Direction.INBOUND, Direction.OUTBOUND)
    ]
    inward.context = over.context = over.handed = context
    over.hand = own
    for made in (inward, over):
        assert (await house.refused(made)).reason is Reason.APPROVAL_PENDING
    assert (len(hand.undecided), len(own.undecided)) == (0, 1)
    await house.desk.close()


# ---------------------------------------------------------------------- which calls ask


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "CONNECT", "TRACE", "get", ""])
def test_a_tool_call_that_may_change_something_asks(method: str) -> None:
    assert asked(routed(call("billing", method=method, of=HUMAN)))
    for target in ("billing", "writer", "web"):
        assert asked(routed(call(target, method=method, of=WRITES)))


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_reading_passes(method: str) -> None:
    for of in (HUMAN, WRITES):
        made = routed(call("billing", method=method, of=of), None)
        assert asked(made) == ""
        assert Approval().admit(made) is None
        assert "not for this call" in Approval().explain(made)


@pytest.mark.parametrize("name", [b"upgrade", b"x-http-method-override", b"x-http-method", b"x-method-override"])
def test_a_get_that_is_none_asks(name: bytes) -> None:
    assert asked(routed(call("billing", method="GET", headers=[(name, b"DELETE")], of=HUMAN)))


def test_the_short_form_is_about_tools_and_costly_calls() -> None:
    assert asked(routed(call("writer", of=HUMAN))) == ""
    assert asked(routed(call("web", of=HUMAN))) == ""
    assert asked(routed(call("billing", of=HUMAN, direction=Direction.INBOUND))) == ""
    cheap, dear = chat(input_bound=1000, output_cap=100), chat(input_bound=4000, output_cap=1001)
    assert asked(routed(call(ask=cheap, of=HUMAN))) == ""
    assert "5,001 tokens, more than 5,000" in asked(routed(call(ask=dear, of=HUMAN)))
    assert "nobody can say" in asked(routed(call(ask=chat(unbounded="an image by its URL"), of=HUMAN)))
    without = policy(APPROVERS + "governance: {human_in_the_loop_required: true}")
    assert asked(routed(call(ask=dear, of=without))) == ""
    said = policy(APPROVERS + "governance: {human_in_the_loop_required: true}\napprovals: {above_tokens: 20k}")
    assert asked(routed(call(ask=dear, of=said))) == ""


def test_a_threshold_in_dollars() -> None:
    of = policy(
        APPROVERS
        + "prices: {gpt-x: {input: 1, output: 10}}\nrules: [{match: {kind: llm}, approval: {above_dollars: 1}}]"
    )
    made = routed(call(ask=chat(input_bound=100_000, output_cap=100_000), of=of))
    assert cost_of(made) == (200_000, 1_100_000)
    assert "$1.10, more than $1.00" in asked(made)
    assert asked(routed(call(ask=chat(input_bound=100, output_cap=100), of=of))) == ""
    assert "nobody can say" in asked(routed(call(ask=chat("unheard-of"), of=of)))


def test_a_call_to_an_llm_changes_nothing_unless_the_rule_asks_for_reads() -> None:
    assert asked(routed(call(ask=chat(), of=WRITES))) == ""
    of = policy(APPROVERS + "rules: [{match: {kind: llm}, approval: {reads: true}}]")
    assert asked(routed(call(ask=chat(), of=of))) == "the rule asks for every call"


@pytest.mark.uncompiled
def test_what_the_protocol_says_of_a_call_holds() -> None:
    class McpCall(Call):
        rpc: Any = None

    made = routed(call("billing", of=HUMAN))
    mcp = McpCall(made.id, made.direction, "POST", "/mcp", "", [], 0.0, 0.0)
    mcp.target, mcp.plan = made.target, made.plan
    mcp.rpc = SimpleNamespace(is_read_only=True, tool="search", method="tools/call", protocol="mcp")
    assert asked(mcp) == ""
    mcp.rpc.is_read_only = False
    assert asked(mcp) == "search may change something"


def test_without_a_rule_nobody_is_asked() -> None:
    made = routed(call("billing"))
    assert Approval().admit(made) is None
    assert Approval().explain(made) == "no rule asks for approval"
    made.plan = Plan(approval=ApprovalSettings(required=False))
    assert Approval().admit(made) is None


# ---------------------------------------------------------------------- shadow


async def test_a_rule_on_trial_is_told_and_does_not_bind() -> None:
    house = House(HUMAN)
    made = routed(call("billing"))
    made.plan = Plan(trials=(ApprovalSettings(),))
    assert await house.admit(made) is None
    assert [(error.reason, error.is_shadow) for error in house.told] == [(Reason.APPROVAL_PENDING, True)]


async def test_a_rule_in_shadow_asks_nobody() -> None:
    house = House(policy(APPROVERS + "rules: [{shadow: true, approval: {}}]"))
    refused = await house.refused(routed(call("billing", of=policy("rules: [{shadow: true, approval: {}}]"))))
    assert refused.is_shadow
    assert await house.pending() == []


# ---------------------------------------------------------------------- holding


async def test_a_call_is_held_allowed_used_and_noted() -> None:
    house = House(WRITES)
    made = routed(call("billing", path="/pay?key=1", body=b"{}", of=WRITES))
    refused = await house.refused(made)
    (one,) = await house.pending()
    assert (refused.reason, refused.status, refused.is_retryable) == (Reason.APPROVAL_PENDING, 428, False)
    for words in (one.id, f"meshd approvals approve {one.id}", "ana", "attaches to the same approval"):
        assert words in refused.message
    assert "key=1" not in refused.message
    assert made.holding.approval.id == one.id
    await house.decide(one.id)
    ticket = await house.admit(made)
    assert (await house.desk.show(one.id)).used_by == made.id
    ticket.settle(outcome(is_forwarded=True))
    await house.desk.close()
    assert (await house.desk.show(one.id)).outcome == "200"
    assert len(house.held) == 2


@pytest.mark.parametrize(("is_forwarded", "was_forwarded", "state"), [
    (False, False, State.APPROVED), (True, False, State.USED), (False, True, State.USED),
])  # fmt: skip
async def test_what_never_went_out_is_given_back(is_forwarded: bool, was_forwarded: bool, state: State) -> None:
    house = House(WRITES)
    made = routed(call("billing", of=WRITES))
    await house.refused(made)
    (one,) = await house.pending()
    await house.decide(one.id)
    ticket = await house.admit(made)
    made.is_forwarded = was_forwarded
    ticket.settle(outcome(0, Fault.CONNECT, is_forwarded=is_forwarded))
    await house.desk.close()
    assert (await house.desk.show(one.id)).state is state


async def test_what_is_denied_is_told_with_its_reason() -> None:
    house = House(WRITES)
    made = routed(call("billing", of=WRITES))
    await house.refused(made)
    (one,) = await house.pending()
    await house.decide(one.id, is_allowed=False)
    refused = await house.refused(made)
    assert (refused.reason, refused.status) == (Reason.APPROVAL_DENIED, 403)
    assert "because" in refused.message


async def test_a_body_that_streams_is_asked_for_first() -> None:
    made = routed(call("billing", of=WRITES), None)
    assert isinstance(House(WRITES).filter.admit(made), NeedBody)
    assert made.holding is None


async def test_with_nobody_to_ask_it_is_refused_at_once() -> None:
    of = policy("governance: {human_in_the_loop_required: true}")
    house = House(of)
    refused = await house.refused(routed(call("billing", of=of), None))
    assert refused.status == 428
    assert "meshd approvals key NAME" in refused.message
    owned = policy(
        APPROVERS.replace("}}", f'}}, ben: {{key: "sha256:{"0" * 64}"}}}}') + "owner: ana\nrules: [{approval: {}}]"
    )
    made = routed(call("billing", of=owned))
    made.agent = "ben"
    refused = await House(owned).refused(made)
    assert "neither the agent nor its owner counts" in refused.message


async def test_while_the_store_is_away_the_call_is_not_sent() -> None:
    house = House(WRITES)
    house.store.fault = StoreError("away")
    refused = await house.refused(routed(call("billing", of=WRITES)))
    assert (refused.reason, refused.status) == (Reason.STORE_UNAVAILABLE, 503)


async def test_what_people_see_of_it() -> None:
    of = policy(
        APPROVERS + "prices: {gpt-x: {input: 1, output: 10}}\n"
        "rules:\n  - {name: dear, match: {kind: llm}, approval: {above_tokens: 10, hold: 0s}}\n"
        "  - {match: {kind: llm}, budget: {tokens: 50k, output_default: 64}}\n"
    )
    house = House(of)
    ledger = Ledger.in_memory()
    house.filter.ledger = ledger
    reservation = await ledger.wait("workflow/w", 50_000, 1000, 1000, queue_s=0)
    made = routed(call(ask=chat(input_bound=100, output_cap=50), of=of, headers=[(b"authorization", b"Bearer abc")]))
    made.context = Context("w", "researcher", account="workflow/w")
    made.evidence = Evidence.HISTORY
    await house.refused(made)
    (one,) = await house.pending()
    assert (one.cost_tokens, one.cost_microdollars) == (150, 600)
    assert (one.left_tokens, one.left_microdollars) == (49_000, None)
    assert (one.is_inferred, one.evidence, one.workflow) == (True, "history", "w")
    assert one.fields == {}
    reservation.settle(0)  # type: ignore[union-attr]
    await ledger.close()


async def test_fields_that_may_change_the_call_are_bound() -> None:
    house = House(WRITES)
    volatile = [
        (b"user-agent", b"a"),
        (b"traceparent", b"00"),
        (b"x-stainless-retry-count", b"1"),
        (b"x-meshd-x", b"1"),
    ]
    await house.refused(routed(call("billing", of=WRITES, headers=[(b"x-amz-target", b"Read")])))
    await house.refused(routed(call("billing", of=WRITES, headers=[(b"x-amz-target", b"Read"), *volatile])))
    assert len(await house.pending()) == 1
    await house.refused(routed(call("billing", of=WRITES, headers=[(b"x-amz-target", b"DeleteTable")])))
    assert {one.fields["x-amz-target"] for one in await house.pending()} == {"Read", "DeleteTable"}


async def test_a_field_that_stands_twice_is_bound_and_shown_as_it_stands() -> None:
    house = House(WRITES)
    for values in ((b"Delete", b"Read"), (b"Read", b"Delete")):
        headers = [(b"x-amz-target", value) for value in values]
        await house.refused(routed(call("billing", of=WRITES, headers=headers)))
    assert {one.fields["x-amz-target"] for one in await house.pending()} == {"Delete, Read", "Read, Delete"}


async def test_a_field_that_is_not_shown_whole_is_said_to_be_cut() -> None:
    house = House(WRITES)
    headers = [(b"x-amz-target", b" " * 2000 + b"DeleteTable")]
    await house.refused(routed(call("billing", of=WRITES, headers=headers)))
    assert [one.is_cut for one in await house.pending()] == [True]


async def test_an_approval_is_of_one_server_though_an_upstream_has_several() -> None:
    house = House(WRITES)
    for path in ("/stocks/mcp", "/bank/mcp"):
        made = routed(call("billing", of=WRITES, path=path))
        made.rpc = Rpc("mcp", "tools/call", b"1", tool="transfer", arguments=b"{}")
        await house.refused(made)
    assert {one.operation for one in await house.pending()} == {
        "mcp tools/call at /stocks/mcp",
        "mcp tools/call at /bank/mcp",
    }


async def test_what_a_caller_has_waited_already_is_taken_off() -> None:
    of = policy(APPROVERS + "rules: [{approval: {}}]")
    house = House(of)
    # It has waited for the same call, made before: its client gives up in 5 s, and 25 s more would be too late.
    house.wall_s += 25.0
    async with asyncio.timeout(10):
        refused = await house.refused(routed(call("billing", of=of)))
    assert refused.reason is Reason.APPROVAL_PENDING


async def test_a_deadline_ends_the_hold() -> None:
    of = policy(APPROVERS + "rules: [{approval: {hold: 10m}}]")
    house = House(of)
    made = routed(call("billing", of=of))
    made.context = Context("w", "researcher", deadline_s=WALL_S)
    refused = await house.refused(made)
    assert refused.reason is Reason.APPROVAL_PENDING


async def test_a_caller_that_hangs_up_wakes_its_call() -> None:
    of = policy(APPROVERS + "rules: [{approval: {hold: 10m}}]")
    house = House(of)
    made = routed(call("billing", of=of))
    task = asyncio.get_running_loop().create_task(house.admit(made))
    async with asyncio.timeout(20):
        while not len(house.desk.line):
            await asyncio.sleep(0)
    made.holding.leave()
    with pytest.raises(Refused):
        await task
    assert len(await house.pending()) == 1


def test_explaining_says_whom_and_what_is_covered() -> None:
    said = Approval().explain(routed(call("billing", of=HUMAN)))
    for words in (
        "governance",
        "1 of ana",
        "POST may change something",
        "calls to tools that are not read-only",
        "5,000",
    ):
        assert words in said
