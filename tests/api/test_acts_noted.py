"""Events and shared state as they are written into the trace: what is written when, and what follows from what."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from meshd.api import eventing
from meshd.engines.bus_memory import MemoryBus
from meshd.engines.bus_port import Event, EventMalformed
from meshd.engines.port import StoreError, StoreFull
from meshd.telemetry.spans import Tracer
from meshd.trace.log import Log
from meshd.trace.reading import Reader
from meshd_sdk import context as codec
from meshd_sdk.v1 import events_pb2 as ev
from meshd_sdk.v1 import state_pb2 as pb
from tests.api.house import House, house, refusal, until
from tests.api.test_event_rules import POLICY, subscribed
from tests.api.test_events import publish, stub
from tests.api.test_state import PLAN, check_out, commit, get, promote, shadow
from tests.engines.buses import Hands
from tests.telemetry.test_spans import Kept

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from meshd.telemetry.spans import FinishedSpan
    from meshd.trace.record import Event as Noted


class BrokenBus(MemoryBus):
    """A bus that keeps nothing."""

    async def publish(self, events: Any) -> Any:
        raise StoreError("the bus is away")


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path, POLICY) as made:
        made.mesh.bus = MemoryBus()
        yield made
        await made.mesh.bus.close()


def noted(one: House, workflow: str = "w", *kinds: str) -> list[Noted]:
    events = Reader(one.trace.log.directory).events(workflow)
    return [event for event in events if not kinds or event.kind in kinds]


def facts(events: list[Noted], *names: str) -> list[tuple[Any, ...]]:
    return [(event.kind, *(event.facts[name] for name in names)) for event in events]


# ------------------------------------------------------------------ events


async def test_nobody_is_handed_an_event_that_is_of_no_more_use(one: House) -> None:
    token = (await one.open("w")).token
    soon = datetime.fromtimestamp(one.mesh.wall_clock() + 30, UTC).isoformat()
    for name, extensions in (("late", {"expirytime": soon}), ("fine", {"expirytime": "2126-01-01T00:00:00+02:00"})):
        await stub(one).Publish(publish(token=token, id=name, extensions=extensions))
    one.ahead_s = 31.0
    taken = await subscribed(one, "task.done")
    handed = await taken.read()
    assert (handed.event.id, dict(handed.event.extensions)) == ("fine", {"expirytime": "2126-01-01T00:00:00+02:00"})
    (position,) = await one.mesh.bus.positions()
    assert (position.dropped, position.dead, position.under_way) == (1, 0, 1)
    assert one.mesh.event_counts.settled["task.done", "expired"] == 1
    (of_late,) = [event for event in noted(one, "w", "handled") if event.facts["event_id"] == "late"]
    assert (of_late.facts["result"], of_late.facts["why"]) == ("expired", f"expirytime was {soon}")
    taken.cancel()


async def test_it_is_written_that_an_event_is_published_before_the_bus_has_it(one: House) -> None:
    before: list[list[Noted]] = []
    inner = one.mesh.bus

    class Watched(MemoryBus):
        async def publish(self, events: Any) -> Any:
            before.append(noted(one))
            return await inner.publish(events)

    one.mesh.bus = Watched()
    token = (await one.open("w")).token
    await stub(one).Publish(publish(token=token, data=b'{"secret": 1}', partition_key="k"))
    assert [event.kind for event in before[0]] == ["published"]
    (event,) = noted(one)
    (topic, key, source, id) = (event.facts[name] for name in ("topic", "key", "source", "event_id"))
    assert (topic, key, source, len(id)) == ("task.done", "k", "ann", 32), "the trace knows the id that the bus has"
    assert event.payload.digest == sha256(b'{"secret": 1}').digest()
    assert b"secret" not in b"".join(path.read_bytes() for path in one.trace.log.directory.glob("*.seg"))


async def test_what_the_bus_has_already_or_does_not_take_is_not_published(one: House) -> None:
    token = (await one.open("w")).token
    for _ in range(2):
        await stub(one).Publish(publish(token=token, id="e"))
    _, again, why = noted(one)
    assert facts([again, why], "event_id") == [("published", "e"), ("unpublished", "e")]
    assert (why.facts["why"], why.causes) == ("duplicate", (again.id,))
    one.mesh.bus = BrokenBus()
    await refusal(stub(one).Publish(publish(token=token, id="f")))
    assert noted(one)[-1].facts["why"] == "the bus is away"


async def test_what_becomes_of_each_attempt(one: House) -> None:
    token = (await one.open("w")).token
    await stub(one).Publish(publish(token=token, id="e"))
    taken = await subscribed(one, "task.*")
    (published,) = noted(one)
    for verdict in (ev.VERDICT_RETRY, ev.VERDICT_DROP):
        handed = await taken.read()
        settle = ev.SettleRequest(delivery=handed.delivery, verdict=verdict, reason="not now")
        settle.retry_after.FromMilliseconds(1)
        assert (await stub(one).Settle(settle)).is_counted
    first, retried, second, dropped = noted(one)[1:]
    assert facts([first, second], "attempt", "group") == [("handed", 1, "bob"), ("handed", 2, "bob")]
    assert facts([retried, dropped], "result", "attempt", "why") == [
        ("handled", "retry", 1, "not now"),
        ("handled", "drop", 2, "not now"),
    ]
    assert (first.causes, second.causes) == ((published.id,), (published.id,))
    assert (retried.causes, dropped.causes) == ((first.id, published.id), (second.id, published.id))


async def test_the_last_attempt_makes_a_dead_letter(one: House) -> None:
    token = (await one.open("w")).token
    await stub(one).Publish(publish(token=token, id="e"))
    taken = await subscribed(one, "task.*")
    for _ in range(8):
        handed = await taken.read()
        settle = ev.SettleRequest(delivery=handed.delivery, verdict=ev.VERDICT_RETRY)
        settle.retry_after.FromMilliseconds(1)
        await stub(one).Settle(settle)
    results = [event.facts["result"] for event in noted(one, "w", "handled")]
    assert results == ["retry"] * 7 + ["dead_letter"]
    assert [letter.event.id for letter in await one.mesh.bus.dead_letters("bob")] == ["e"]


@pytest.mark.parametrize("how", ["its time is over", "its stream ends"])
async def test_the_last_attempt_of_which_nothing_is_heard_makes_a_dead_letter(one: House, how: str) -> None:
    hands = Hands()
    one.mesh.bus = MemoryBus(clock=hands)
    eventing.Eventing(one.mesh)
    token = (await one.open("w")).token
    await stub(one).Publish(publish(token=token, id="e"))
    taken = await subscribed(one, "task.*")
    for attempt in range(1, 9):
        assert (await taken.read()).attempt == attempt
        if attempt < 8 or how == "its time is over":
            hands.move(301)
        else:
            taken.cancel()
    await until(lambda: noted(one, "w", "handled"))
    published, *handed = noted(one, "w", "published", "handed")
    assert len(handed) == 8
    (end,) = noted(one, "w", "handled")
    assert facts([end], "event_id", "group", "result", "attempt", "why") == [
        ("handled", "e", "bob", "dead_letter", 8, "nothing was heard of the last attempt")
    ]
    assert (end.payload.agent, end.causes) == ("bob", (handed[-1].id, published.id))


async def test_what_is_said_too_late_does_not_count(one: House) -> None:
    hands = Hands()
    one.mesh.bus = MemoryBus(clock=hands)
    token = (await one.open("w")).token
    await stub(one).Publish(publish(token=token, id="e"))
    taken = await subscribed(one, "task.*")
    handed = await taken.read()
    hands.move(301)
    await taken.read()
    assert not (await stub(one).Settle(ev.SettleRequest(delivery=handed.delivery, verdict=ev.VERDICT_DROP))).is_counted
    _, first, second, said, late = noted(one)
    assert (first.facts["may_have_been_handled"], second.facts["may_have_been_handled"]) == (False, True)
    assert facts([said, late], "result", "attempt") == [("handled", "drop", 1), ("handled", "late", 1)]
    assert late.causes == (said.id,)


async def test_a_publication_that_is_refused_is_written_down(one: House) -> None:
    token = (await one.open("w")).token
    await refusal(stub(one).Publish(publish("secret.plans", token=token)))
    (refused,) = noted(one)
    assert facts([refused], "reason", "rule", "method", "path", "kind") == [
        ("refused", "not_allowed", "secret", "PUBLISH", "secret.plans", "event")
    ]
    assert (refused.payload.agent, refused.facts["message"]) == ("ann", "secret.plans is not allowed: it is secret")


async def test_what_is_kept_back_says_why_until_it_is_buried(one: House) -> None:
    token = (await one.open("w")).token
    await stub(one).Publish(publish("plans.new", token=token))
    await subscribed(one, "plans.*")
    await until(lambda: sum(event.facts.get("result") == "dead_letter" for event in noted(one)))
    published, refused, ended, *_ = noted(one)
    assert facts([refused], "reason", "method") == [("refused", "not_allowed", "HANDLE")]
    assert (refused.causes, ended.causes) == ((published.id,), (refused.id,))
    assert (ended.facts["result"], ended.facts["why"].partition(":")[0]) == ("retry", "not_allowed")
    assert not noted(one, "w", "handed"), "nobody was handed it"


async def test_what_an_operator_redrives_stands_in_the_workflow(one: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventing, "DEAD_PAGE", 2)
    token = (await one.open("w")).token
    for number in range(5):
        await stub(one).Publish(publish("plans.new", token=token, id=f"e{number}"))
    taken = await subscribed(one, "plans.*")
    await until(lambda: sum(event.facts.get("result") == "dead_letter" for event in noted(one)) == 5)
    taken.cancel()
    await until(lambda: not one.mesh.events._takings)
    asked = eventing.Eventing(one.mesh)
    letters = await one.mesh.bus.dead_letters("bob")
    assert await asked.redrive("bob", [letters[3].id, letters[1].id, 10**30, -1]) == 2

    def redriven() -> list[tuple[Any, ...]]:
        ends = noted(one, "w", "handled")
        return [(end.facts["event_id"], end.payload.agent) for end in ends if end.facts["result"] == "redriven"]

    assert redriven() == [("e1", ""), ("e3", "")]
    limits: list[int] = []
    look = one.mesh.bus.dead_letters

    async def watched(group: str, after: int, most: int) -> Any:
        limits.append(most)
        return await look(group, after, most)

    monkeypatch.setattr(one.mesh.bus, "dead_letters", watched)
    assert await asked.redrive("bob", [letters[3].id]) == 0, "it is none any more"
    assert limits == [1], "no more is read than is asked for"
    assert await asked.redrive("bob", []) == 0
    assert await asked.redrive("bob", None) == 3
    assert [name for name, _ in redriven()[2:]] == ["e0", "e2", "e4"]
    published = {event.facts["event_id"]: event.id for event in noted(one, "w", "published")}
    again = [event for event in noted(one, "w", "handled") if event.facts["result"] == "redriven"]
    assert all(event.causes == (published[event.facts["event_id"]],) for event in again)


async def test_what_is_redriven_in_no_workflow_follows_from_its_publication_too(
    one: House, caplog: pytest.LogCaptureFixture
) -> None:
    account = f"unattributed/ann/{datetime.fromtimestamp(one.mesh.wall_clock(), UTC).date()}"
    await stub(one).Publish(publish("plans.new", id="e"))
    taken = await subscribed(one, "plans.*")
    await until(lambda: any(event.facts.get("result") == "dead_letter" for event in noted(one, account)))
    taken.cancel()
    await until(lambda: not one.mesh.events._takings)
    assert await eventing.Eventing(one.mesh).redrive("bob", None) == 1
    (again,) = [event for event in noted(one, account, "handled") if event.facts["result"] == "redriven"]
    (published,) = noted(one, account, "published")
    assert again.causes == (published.id,)
    assert "is passed over" not in caplog.text


async def test_a_group_that_is_not_known_is_not_redriven(one: House) -> None:
    await (await one.mesh.bus.subscribe("plans.*", "bob")).close()
    asked = eventing.Eventing(one.mesh)
    with pytest.raises(EventMalformed, match="there is no group 'bop'; did you mean \"bob\""):
        await asked.redrive("bop", None)
    assert await asked.redrive("bob", None) == 0


async def test_what_a_handler_does_follows_from_what_it_was_handed(one: House) -> None:
    token = (await one.open("w")).token
    await stub(one).Publish(publish(token=token, id="e"))
    taken = await subscribed(one, "task.*")
    first = await taken.read()
    await stub(one).Publish(publish(token=token, id="f"))
    second = await taken.read()
    # Both are under way: each token leads to its own event.
    for handed in (second, first):
        await stub(one).Publish(publish("task.next", token=handed.context.token, id=f"after-{handed.event.id}"))
    at = {event.facts["event_id"]: event for event in noted(one, "w", "handed")}
    after = {event.facts["event_id"]: event for event in noted(one, "w", "published")}
    assert after["after-e"].causes == (at["e"].id,)
    assert after["after-f"].causes == (at["f"].id,)


@pytest.mark.parametrize("clock", [b"", b"nonsense", b"x" * 9000, None])
async def test_a_clock_that_does_not_verify_leads_to_nothing(one: House, clock: bytes | None) -> None:
    """What another program put there, or moved from another workflow: the event is handed over all the same."""
    token, other = (await one.open("w")).token, (await one.open("other")).token
    taken = await subscribed(one, "task.*")
    for workflow, id in ((other, "theirs"), (token, "ours")):
        await stub(one).Publish(publish("elsewhere", token=workflow, id=id))
    theirs, ours = await one.mesh.bus.kept("elsewhere")
    forged = msgspec.structs.replace(ours, topic="task.forged", id="g", clock=theirs.clock if clock is None else clock)
    await one.mesh.bus.publish([forged])
    assert (await taken.read()).context.workflow == "w"
    (handed,) = noted(one, "w", "handed")
    assert (handed.causes, handed.facts["peer_head"]) == ((), b"")


async def test_a_program_without_a_context_names_no_workflow(one: House) -> None:
    taken = await subscribed(one, "task.*")
    await one.mesh.bus.publish([Event("task.new", "cron", correlation_id="w")])
    await taken.read()
    assert noted(one) == []
    (account,) = [name for name in Reader(one.trace.log.directory).workflows() if name.startswith("unattributed/")]
    assert [event.kind for event in noted(one, account)] == ["handed"]


# ------------------------------------------------------------------ shared state


async def test_each_version_is_written_down_before_and_after(one: House) -> None:
    token = (await one.open("w")).token
    await commit(one, token, value=b"one")
    await commit(one, token, value=b"stale")
    await one.state.DeleteState(pb.DeleteStateRequest(token=token, key=PLAN, base_version=1))
    found = noted(one)
    assert facts(found, "key", "act") == [
        (kind, "workflow/w/plan", act) for act in ("commit", "commit", "delete") for kind in ("writing", "state")
    ]
    assert [event.facts["version"] for event in found[1::2]] == [1, 1, 2]
    assert [event.facts["result"] for event in found[1::2]] == ["done", "version", "done"]
    assert [event.causes for event in found[1::2]] == [
        (found[0].id,),
        (found[2].id, found[0].id),
        (found[4].id,),
    ], "a conflict follows from whoever was first, too"
    assert found[1].payload.digest == sha256(b"one").digest()


async def test_reads_leases_and_tentative_versions(one: House) -> None:
    token = (await one.open("w")).token
    await get(one, token)
    await check_out(one, token, "lease")
    await check_out(one, token, "other")
    await one.state.Release(pb.ReleaseRequest(token=token, key=PLAN, lease_id="lease"))
    await shadow(one, token, b"maybe")
    await promote(one, token)
    await shadow(one, token, b"no", base=1)
    await one.state.DropShadow(pb.DropShadowRequest(token=token, key=PLAN))
    await get(one, token)
    shown = [(event.kind, event.facts["act"], event.facts.get("result"), event.facts.get("version"))
             for event in noted(one)]  # fmt: skip
    assert shown == [
        ("read", "get", "absent", 0),
        ("read", "checkout", "done", 0),
        ("read", "checkout", "lease_held", 0),
        ("state", "release", "done", 0),
        ("writing", "shadow", None, None),
        ("state", "shadow", "done", 1),
        ("writing", "promote", None, None),
        ("state", "promote", "done", 1),
        ("writing", "shadow", None, None),
        ("state", "shadow", "done", 1),
        ("state", "drop", "done", 0),
        ("read", "get", "found", 1),
    ]


async def test_folding_the_log_gives_what_is_there(one: House) -> None:
    token = (await one.open("w")).token
    for number in range(3):
        for name in ("a", "b"):
            await commit(one, token, f"workflow/./{name}", b"%d" % number, number)
    await commit(one, token, "workflow/./a", b"stale", 1)
    await one.state.DeleteState(pb.DeleteStateRequest(token=token, key="workflow/./b", base_version=3))
    folded: dict[str, tuple[int, bytes]] = {}
    for event in noted(one, "w", "state"):
        if event.facts["result"] == "done":
            folded[event.facts["key"]] = (event.facts["version"], event.payload.digest)
            if event.facts["act"] == "delete":
                del folded[event.facts["key"]]
    for name in ("a", "b"):
        there = await get(one, token, f"workflow/./{name}")
        told = folded.get(f"workflow/w/{name}", (0, sha256(b"").digest()))
        assert told == (there.version, sha256(there.value).digest())


async def test_what_is_read_of_another_workflow_is_known_by_its_record_alone(one: House) -> None:
    writer, reader = (await one.open("w")).token, (await one.open("r")).token
    await commit(one, writer, "mesh/rates", b"1")
    await get(one, reader, "mesh/rates")
    (read,), (writing, _) = noted(one, "r"), noted(one)
    assert read.causes == (writing.id,)
    assert (read.facts["writer"], read.facts["version"]) == ("ann", 1)


async def test_refusals_of_shared_state_are_written_down(one: House) -> None:
    token = (await one.open("w")).token
    await refusal(get(one, token, "agent/bob/secrets"))
    store: Any = one.mesh.ledger.store()
    store.fault = StoreError("the store is away")
    await refusal(commit(one, token, value=b"one"))
    store.fault = None
    denied, writing, away = noted(one)
    assert facts([denied], "kind", "method", "path", "reason") == [
        ("refused", "state", "GET", "agent/bob/secrets", "not_allowed")
    ]
    assert (writing.kind, away.kind, away.facts["reason"]) == ("writing", "refused", "store_unavailable")
    assert away.causes == (writing.id,)


# ------------------------------------------------------------------ spans


PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def kept_spans(one: House, ratio: float = 1.0) -> list[FinishedSpan]:
    sink = Kept()
    one.mesh.telemetry.tracer = Tracer(sink, ratio)
    return sink.spans


async def test_an_operation_is_a_span_that_its_records_name(one: House) -> None:
    spans = kept_spans(one)
    token = (await one.open("report")).token
    await commit(one, token, value=b"one")
    await commit(one, token, value=b"two")
    await get(one, token)
    made, conflict, read = spans
    assert [span.name for span in spans] == ["meshd.state commit", "meshd.state commit", "meshd.state get"]
    by_id = {event.id: event for event in noted(one, "report")}
    for span in spans:
        event = by_id[span.attributes["meshd.event"]]
        assert event.payload.span[:16] == span.trace_id.to_bytes(16, "big")
        assert event.payload.span[16:24] == span.span_id.to_bytes(8, "big")
        assert span.end_ns >= span.start_ns > 10**18
    assert by_id[made.attributes["meshd.event"]].kind == "writing"
    first, second, *_ = noted(one, "report")
    assert first.payload.span == second.payload.span
    assert made.attributes == {
        "meshd.workflow": "report",
        "meshd.agent": "ann",
        "meshd.state.key": "workflow/report/plan",
        "meshd.event": first.id,
        "meshd.state.version": 1,
        "meshd.state.result": "done",
    }
    assert (conflict.attributes["meshd.state.result"], conflict.is_error) == ("version", False)
    assert (read.attributes["meshd.state.version"], read.attributes["meshd.state.result"]) == (1, "found")
    # By the workflow alone: whatever sidecar, they are one trace.
    assert len({span.trace_id for span in spans}) == 1
    reader = Reader(one.trace.log.directory)
    found = reader.find(f"{read.span_id:016x}")
    assert found is not None
    assert found.kind == "read"


async def test_only_what_fails_is_a_span_where_nothing_is_drawn(one: House) -> None:
    spans = kept_spans(one, 0.0)
    token = (await one.open("w")).token
    await commit(one, token, value=b"one")
    await refusal(get(one, token, "agent/bob/secrets"))
    (span,) = spans
    assert (span.is_error, span.attributes["error.type"]) == (True, "not_allowed")
    *_, denied = noted(one)
    assert span.attributes["meshd.event"] == denied.id
    assert denied.payload.span[16:24] == span.span_id.to_bytes(8, "big")
    assert [event.payload.span for event in noted(one)[:-1]] == [b"", b""]


@pytest.mark.parametrize("has_collector", [True, False])
async def test_an_operation_stands_in_its_callers_trace(one: House, has_collector: bool) -> None:
    spans = kept_spans(one, 0.0) if has_collector else []
    context = codec.Context("w", "ann", account="workflow/w", parent=PARENT)
    token = one.mesh.issue(context, "").decode()
    await commit(one, token, value=b"one")
    writing, state = noted(one)
    assert writing.payload.span == state.payload.span
    assert writing.payload.span[:16].hex() == PARENT[3:35]
    if has_collector:
        (span,) = spans
        assert (f"{span.trace_id:032x}", f"{span.parent_id:016x}") == (PARENT[3:35], PARENT[36:52])
    else:
        assert writing.payload.span[16:24].hex() == PARENT[36:52]


# ------------------------------------------------------------------ a log that must be kept


@pytest.mark.uncompiled
async def test_a_durable_trace_that_cannot_be_written_lets_nothing_happen(
    one: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = (await one.open("w")).token
    await stub(one).Publish(publish(token=token, id="e"))
    one.trace.is_durable = True

    def full(*_: object) -> int:
        raise StoreFull("the disk is full")

    monkeypatch.setattr(Log, "append", full)
    for ask in (lambda: stub(one).Publish(publish(token=token, id="f")), lambda: commit(one, token, value=b"one")):
        error = await refusal(ask())
        assert "MESHD_TRACE" in (error.details() or "")
    await subscribed(one, "task.*")
    await until(lambda: one.mesh.event_counts.refusals["handle", "store_unavailable"])
    assert [event.id for event in await one.mesh.bus.kept("task.*")] == ["e"]
    monkeypatch.undo()
    assert (await get(one, token)).version == 0
    assert not noted(one, "w", "handed")
