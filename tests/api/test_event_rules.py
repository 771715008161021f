"""What holds for calls holds for events: budget, deadline, hops, re-entry, rules; at publishing and at handing out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest

from meshd.api import handing
from meshd.engines.bus_memory import MemoryBus
from meshd.engines.bus_port import ATTEMPTS_MAX, DEAD_KEEP_S, KEEP_S, Event, Start, Verdict
from meshd.engines.bus_terms import Terms
from meshd.engines.port import StoreUnable
from meshd.mesh_key import MeshKeys
from meshd.refusal import Refused
from meshd_sdk import context as codec
from meshd_sdk.v1 import budget_pb2
from meshd_sdk.v1 import events_pb2 as ev
from tests.api.house import House, house, refusal, until
from tests.api.test_events import publish, stub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

POLICY = """
agent: ann
upstreams:
  bob: {url: "http://127.0.0.1:1", kind: agent}
governance: {max_tokens_per_workflow: 1000}
limits: {hops: 4}
rules:
  - {name: secret, match: {topic: "secret.*"}, deny: it is secret}
  - {name: bobs, match: {kind: event, agent: bob}, allow: {targets: ["task.*"]}}
  - {name: trial, match: {topic: "tried"}, shadow: true, deny: not yet}
"""


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path, POLICY) as made:
        made.mesh.bus = MemoryBus()
        yield made
        await made.mesh.bus.close()


async def spend(one: House, token: str) -> None:
    report = budget_pb2.ReportUsageRequest(token=token, report_id="r", model="m", input_tokens=1001)
    assert (await one.budgets.ReportUsage(report)).is_exhausted


async def subscribed(one: House, topic: str, agent: str = "bob") -> Any:
    return stub(one).Subscribe(ev.SubscribeRequest(topic=topic, agent=agent, starts_at_oldest=True))


async def buried(one: House, group: str = "bob") -> Any:
    bus = one.mesh.bus
    await until(lambda: any(each.dead for line in [bus._shelf._groups] for each in line))
    (letter,) = await bus.dead_letters(group)
    return letter


async def test_a_workflow_with_nothing_left_publishes_nothing(one: House) -> None:
    context = await one.open("w")
    await stub(one).Publish(publish(token=context.token, id="1"))
    one.mesh.funded.clear()
    await spend(one, context.token)
    error = await refusal(stub(one).Publish(publish(token=context.token, id="2")))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "workflow/w has nothing left" in (error.details() or "")
    assert one.mesh.event_counts.refusals["publish", "budget_exhausted"] == 1
    other = await one.open("other")
    await stub(one).Publish(publish(token=other.token, id="3"))
    # What was published before waits until somebody adds to the budget: it may be otherwise in a while.
    taken = await subscribed(one, "task.done")
    assert (await taken.read()).event.id == "3"
    assert one.mesh.event_counts.refusals["handle", "budget_exhausted"] == 1
    (position,) = await one.mesh.bus.positions()
    assert (position.waiting, position.dead) == (1, 0)
    taken.cancel()


async def test_an_event_whose_workflows_time_is_over_is_a_dead_letter(one: House) -> None:
    from google.protobuf.duration_pb2 import Duration

    context = await one.open("w", timeout=Duration(seconds=60))
    await stub(one).Publish(publish(token=context.token, id="late"))
    one.ahead_s = 61.0
    taken = await subscribed(one, "task.done")
    letter = await buried(one)
    assert (letter.event.id, letter.attempts) == ("late", 8)
    assert letter.reason.startswith("deadline: The time of workflow w was over")
    error = await refusal(stub(one).Publish(publish(token=context.token)))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    taken.cancel()


@pytest.mark.parametrize(
    ("hops", "path", "reason"),
    [(5, ("eve",), "hop_limit"), (3, ("bob", "eve", "bob", "eve", "bob", "eve", "bob", "eve"), "loop")],
)
async def test_what_another_sidecar_let_pass_is_judged_again(
    one: House, hops: int, path: tuple[str, ...], reason: str
) -> None:
    context = codec.Context("w", "eve", hops=hops, path=path, account="workflow/w")
    expires_s = int(one.mesh.wall_clock()) + 60
    token = codec.mint(
        context, one.mesh.keys.ring, audience=codec.Audience.PEER, expires_s=expires_s, nonce=bytes(codec.NONCE_BYTES)
    )
    await one.mesh.bus.publish([Event("task.done", "eve", "e", token=token), Event("task.done", "eve", "fine")])
    taken = await subscribed(one, "task.done")
    assert (await taken.read()).event.id == "fine"
    assert (await buried(one)).reason.startswith(f"{reason}: ")
    taken.cancel()


async def test_what_may_have_been_handled_is_parked_where_the_policy_says_so(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY + 'park: ["pay.*"]\n') as made:
        bus = made.mesh.bus = MemoryBus()
        for topic in ("pay.out", "pay.in", "task.done"):
            await stub(made).Publish(publish(topic, id=topic))
        first = await bus.subscribe(">", "bob", starts_at_oldest=True)
        said = {}
        for _ in range(3):
            delivery = await first.next()
            said[delivery.event.id] = delivery
        await first.settle(said["pay.in"], Verdict.RETRY, retry_after_s=0.0)
        await first.close()  # nothing is heard of two of them
        taken = stub(made).Subscribe(ev.SubscribeRequest(topic=">", agent="ann", group="bob"))
        again = {handed.event.id: handed for handed in [await taken.read(), await taken.read()]}
        marks = {name: (handed.attempt, handed.may_have_been_handled) for name, handed in again.items()}
        assert marks == {"pay.in": (2, False), "task.done": (2, True)}
        letter = await buried(made)
        assert (letter.event.id, letter.reason[:12]) == ("pay.out", "key_unknown:")
        # Whoever redrives it has looked: the mark says what may have been.
        await bus.redrive("bob", [letter.id])
        redriven = await taken.read()
        assert (redriven.event.id, redriven.attempt, redriven.may_have_been_handled) == ("pay.out", 1, True)
        taken.cancel()
        await bus.close()


async def test_a_redriven_event_is_still_of_its_workflow(one: House) -> None:
    context = await one.open("w")
    await stub(one).Publish(publish(token=context.token, id="old"))
    bus = one.mesh.bus
    first = await bus.subscribe("task.done", "bob", starts_at_oldest=True)
    for _ in range(ATTEMPTS_MAX):
        await first.settle(await first.next(), Verdict.RETRY, retry_after_s=0.0)
    (letter,) = await bus.dead_letters("bob")
    one.ahead_s = KEEP_S + DEAD_KEEP_S - 3600
    await bus.redrive("bob", [letter.id])
    taken = await subscribed(one, "task.done")
    handed = await taken.read()
    assert (handed.event.id, handed.context.workflow, handed.context.hops) == ("old", "w", 1)
    taken.cancel()


@pytest.mark.parametrize("end", ["expired", "another's key", "an agent's", "nonsense"])
async def test_rules_hold_for_an_event_whose_context_does_not(one: House, tmp_path: Path, end: str) -> None:
    context = codec.Context("w", "eve", hops=1, path=("eve",), account="workflow/w")
    ring = one.mesh.keys.ring if end != "another's key" else MeshKeys(tmp_path / "other.key").ring
    audience = codec.Audience.LOCAL if end == "an agent's" else codec.Audience.PEER
    expires_s = int(one.mesh.wall_clock()) + (60 if end != "expired" else -60)
    token = codec.mint(context, ring, audience=audience, expires_s=expires_s, nonce=bytes(codec.NONCE_BYTES))
    if end == "nonsense":
        token = b"nonsense"
    await one.mesh.bus.publish([Event(topic, "eve", topic, token=token) for topic in ("audit.done", "task.done")])
    taken = await subscribed(one, ">")
    handed = await taken.read()
    assert (handed.event.id, handed.context.token) == ("task.done", ""), "bob then acts on his own account"
    letter = await buried(one)
    assert (letter.event.id, letter.reason[:12]) == ("audit.done", "not_allowed:")
    taken.cancel()


async def test_rules_say_who_publishes_and_handles_what(one: House) -> None:
    error = await refusal(stub(one).Publish(publish("secret.plan")))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "it is secret" in (error.details() or "")
    error = await refusal(stub(one).Publish(publish("audit.done", agent="bob")))
    assert "The topic audit.done is not allowed here. Allowed: task.*." in (error.details() or "")
    await stub(one).Publish(publish("task.done", agent="bob"))
    await stub(one).Publish(publish("audit.done", id="a"))
    error = await refusal(stub(one).Subscribe(ev.SubscribeRequest(topic="audit.done", agent="bob")).read())
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "The topic audit.done is not allowed here" in (error.details() or "")
    assert one.mesh.event_counts.refusals["handle", "not_allowed"] == 1
    taken = await subscribed(one, "audit.*")
    letter = await buried(one)
    assert letter.reason.startswith("not_allowed: The topic audit.done")
    taken.cancel()
    mine = await subscribed(one, "audit.done", "ann")
    assert (await mine.read()).event.id == "a"
    mine.cancel()
    hits = one.mesh.policy.hits()
    assert (hits["secret"], hits["bobs"] >= 3) == (1, True)


async def test_who_may_not_handle_an_event_leaves_it_to_others_of_its_group(one: House) -> None:
    waits: list[float] = []
    one.mesh.bus = bus = MemoryBus(terms=Terms(chance=lambda: waits.append(1.0) or 0.01))  # type: ignore[func-returns-value]
    wanted = ev.SubscribeRequest(topic="audit.done", agent="bob", group="all", starts_at_oldest=True)
    error = await refusal(stub(one).Subscribe(wanted).read())
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert await bus.positions() == [], "it has joined nothing"
    forbidden = stub(one).Subscribe(
        ev.SubscribeRequest(topic="audit.*", agent="bob", group="all", starts_at_oldest=True)
    )
    await stub(one).Publish(publish("audit.done", id="a"))
    await until(lambda: waits)
    allowed = stub(one).Subscribe(ev.SubscribeRequest(topic="audit.*", agent="ann", group="all"))
    handed = await allowed.read()
    assert (handed.event.id, handed.may_have_been_handled) == ("a", False)
    assert [one.dead for one in await bus.positions()] == [0]
    forbidden.cancel()
    allowed.cancel()
    await bus.close()


async def test_an_agent_joins_no_end_of_groups(one: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handing, "JOINED_MAX", 2)

    async def join(agent: str, group: str) -> Any:
        await handing.join(one.mesh, agent, "task.*", group, handling_s=60.0)

    with pytest.raises(StoreUnable):
        await handing.join(one.mesh, "bob", "task.*", "no", handling_s=60.0, start=Start(after=7))
    for _ in range(2):
        await join("bob", "a")
        await join("bob", "")
    with pytest.raises(Refused, match="bob has joined 2 groups since this sidecar began"):
        await join("bob", "b")
    await join("ann", "b")
    assert {position.group for position in await one.mesh.bus.positions()} == {"a", "bob", "b"}


async def test_an_event_that_is_published_again_is_no_turn(tmp_path: Path) -> None:
    document = POLICY + "  - {match: {kind: event}, turns: {edge: 2}}\n"
    async with house(tmp_path, document) as made:
        context = await made.open("w")
        same = publish(token=context.token, id="same", data=b"tick")
        for _ in range(10):  # the bus is away, and whoever has no acknowledgement publishes again
            assert (await refusal(stub(made).Publish(same))).code() is grpc.StatusCode.UNAVAILABLE
        made.mesh.bus = MemoryBus()
        answers = [await stub(made).Publish(same) for _ in range(10)]
        assert [answer.is_duplicate for answer in answers] == [False] + [True] * 9
        reasons = set()
        for number in range(10):
            try:
                await stub(made).Publish(publish(token=context.token, id=f"other{number}", data=b"tick"))
            except grpc.aio.AioRpcError as error:
                reasons.add(error.code())
        assert reasons == {grpc.StatusCode.FAILED_PRECONDITION}, "one that says the same under another id is one"
        await made.mesh.bus.close()


async def test_a_rule_in_shadow_lets_pass_and_counts(one: House) -> None:
    assert (await stub(one).Publish(publish("tried", id="t"))).event_id == "t"
    assert one.mesh.policy.hits()["trial"] == 1
    assert not one.mesh.event_counts.refusals
