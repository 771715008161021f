"""What agents do by events and shared state alone, in the trace: a whole story over two sidecars, in causal order."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from meshd.cli import main
from meshd.clocks import Order
from meshd.trace.opening import DIRECTORY
from meshd.trace.reading import Reader
from meshd.trace.verifying import heads_in, verify
from meshd_sdk import Agent, Ctx, Event
from meshd_sdk.errors import StateConflict
from tests.end_to_end.agents import Agent as CallingAgent
from tests.end_to_end.sidecar import until
from tests.end_to_end.test_shared_bus import ENGINES, agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from meshd.trace.record import Event as Noted
    from tests.end_to_end.sidecar import Sidecar

ORDER = "workflow/./order"
DOCUMENT = "agent: main\nlimits: {turns: {ladder: note}}\n"


class House:
    """Two sidecars of one mesh, with one server for bus and store."""

    def __init__(self, first: Sidecar, second: Sidecar) -> None:
        self.first, self.second = first, second
        self.homes = [first.home, second.home]

    def events(self, workflow: str) -> list[Noted]:
        """All that both have of a workflow, by its time."""
        found = [event for home in self.homes for event in Reader(home / DIRECTORY).events(workflow)]
        return sorted(found, key=lambda event: event.payload.hlc_us)

    def trace(self, *arguments: str) -> str:
        """What the command prints."""
        homes = [word for home in self.homes for word in ("--home", str(home))]
        done = CliRunner().invoke(main, ["trace", *arguments, *homes])
        assert done.exit_code == 0, done.output
        return done.output


@pytest.fixture(params=["redis", "nats"])
async def house(
    request: pytest.FixtureRequest, tmp_path: Path, sidecars: Callable[[str], Sidecar]
) -> AsyncIterator[House]:
    start, url = ENGINES[request.param]
    async with start(tmp_path / "server") as server:
        where = url.format(server.address)
        made = House(sidecars("first"), sidecars("second"))
        for one in (made.first, made.second):
            shared = ("--bus", where, "--store", where, "--mesh-key", str(tmp_path / "mesh.key"))
            await asyncio.to_thread(one.start, DOCUMENT, *shared)
        yield made


def risk(sidecar: Sidecar) -> Agent:
    """Assesses what was ordered, and says so."""
    made = agent("risk", sidecar)

    @made.on("order.placed")
    async def placed(ctx: Ctx, event: Event) -> None:
        view = await ctx.state.get(ORDER)
        assert view is not None
        await ctx.state.commit(ORDER, {"order": 7, "risk": "low"}, view)
        await ctx.publish("order.assessed", {"risk": "low"}, key="o7", id="assessed-7")

    return made


def clerk(sidecar: Sidecar, done: asyncio.Event) -> Agent:
    """Closes what was assessed; from too old a version first."""
    made = agent("clerk", sidecar)

    @made.on("order.assessed")
    async def assessed(ctx: Ctx, event: Event) -> None:
        view = await ctx.state.get(ORDER)
        assert view is not None
        old = await ctx.state.get(ORDER, version=1)
        with pytest.raises(StateConflict):
            await ctx.state.commit(ORDER, {"order": 0}, old)
        await ctx.state.commit(ORDER, {"order": 7, "risk": "low", "is_closed": True}, view)
        await ctx.publish("order.closed", {"order": 7}, id="closed-7")
        done.set()

    return made


async def told(house: House) -> None:
    """Three agents, each of which acts on what the one before has said; the one in the middle stands elsewhere."""
    done = asyncio.Event()
    async with agent("desk", house.first) as desk, risk(house.second), clerk(house.first, done):
        async with desk.workflow("order-7") as ctx:
            await ctx.state.commit(ORDER, {"order": 7}, None)
            await ctx.publish("order.placed", {"order": 7}, key="o7", id="placed-7")
        async with asyncio.timeout(30):
            await done.wait()
    await asyncio.to_thread(until, lambda: sum(one.kind == "handled" for one in house.events("order-7")) == 2, "both")


def one(events: list[Noted], kind: str, **facts: Any) -> Noted:
    """The only event of a kind with these facts."""
    (found,) = [event for event in events if event.kind == kind and facts.items() <= event.facts.items()]
    return found


async def test_three_agents_whose_events_and_state_are_one_story(house: House) -> None:
    await told(house)
    events = house.events("order-7")
    by_id = {event.id: event for event in events}
    placed, assessed = one(events, "published", topic="order.placed"), one(events, "published", topic="order.assessed")
    closed = one(events, "published", topic="order.closed")
    at_risk, at_clerk = one(events, "handed", topic="order.placed"), one(events, "handed", topic="order.assessed")
    # From the one to the other, across sidecars and back.
    assert at_risk.causes == (placed.id,)
    assert assessed.causes == (at_risk.id,)
    assert at_clerk.causes == (assessed.id,)
    assert closed.causes == (at_clerk.id,)
    assert one(events, "handled", topic="order.placed").causes == (at_risk.id, placed.id)
    assert one(events, "handled", topic="order.assessed").causes == (at_clerk.id, assessed.id)
    assert {event.sidecar for event in (placed, at_clerk)} != {at_risk.sidecar}
    # Whoever reads a version follows from who wrote it.
    first, second = (by_id[one(events, "state", result="done", version=number).causes[0]] for number in (1, 2))
    assert (first.kind, second.kind, first.facts["key"]) == ("writing", "writing", "workflow/order-7/order")
    reads = {(event.payload.agent, event.facts["version"]): event for event in events if event.kind == "read"}
    assert set(reads) == {("risk", 1), ("clerk", 2), ("clerk", 1)}
    assert reads["risk", 1].causes == (at_risk.id, first.id)
    assert reads["clerk", 2].causes == (at_clerk.id, second.id)
    conflict = one(events, "state", result="version")
    assert (conflict.facts["version"], conflict.causes[1]) == (2, second.id)
    # Clocks say the same as causes do, and so does the time of the wall.
    for event in events:
        for cause in event.causes:
            assert by_id[cause].clock.order(event.clock) is Order.BEFORE
            assert by_id[cause].payload.hlc_us < event.payload.hlc_us
    assert placed.clock.order(closed.clock) is Order.BEFORE
    # Nothing of what was said is there: digests alone.
    raw = b"".join(path.read_bytes() for home in house.homes for path in (home / DIRECTORY).glob("log-*.seg"))
    assert b"is_closed" not in raw
    assert placed.payload.digest
    # Each log is whole, and holds what the other was told of it.
    directories = [home / DIRECTORY for home in house.homes]
    heads = heads_in(directories)
    for directory in directories:
        found = verify(directory, heads)
        assert found.problems == []
        assert found.heads_held >= 2


TREE = """\
desk: commit workflow/order-7/order, from version 0  = version 1
desk publishes order.placed (placed-7), key o7
  risk is handed order.placed (placed-7)  = success
    risk: get workflow/order-7/order: version 1 by desk
    risk: commit workflow/order-7/order, from version 1  = version 2
    risk publishes order.assessed (assessed-7), key o7
      clerk is handed order.assessed (assessed-7)  = success
        clerk: get workflow/order-7/order: version 2 by risk
        clerk: get workflow/order-7/order: version 1 by desk
        clerk: commit workflow/order-7/order, from version 1  = conflict: version, at 2
        clerk: commit workflow/order-7/order, from version 2  = version 3
        clerk publishes order.closed (closed-7)
"""


async def test_the_command_shows_the_story_in_each_of_its_forms(house: House) -> None:
    await told(house)
    lines = house.trace("order-7").splitlines()
    assert lines[0] == "workflow order-7: 18 events"
    assert "".join(f"{line[14:]}\n" for line in lines[1:]) == TREE
    timeline = [line.split()[2] for line in house.trace("order-7", "--timeline").splitlines()]
    assert sorted(timeline) == sorted(event.kind for event in house.events("order-7"))
    assert timeline[:4] == ["writing", "state", "published", "handed"]
    told_as_json = [json.loads(line) for line in house.trace("order-7", "--json").splitlines()]
    handled = [one for one in told_as_json if one["kind"] == "handled"]
    assert [(one["facts"]["topic"], one["facts"]["result"]) for one in handled] == [
        ("order.placed", "success"),
        ("order.assessed", "success"),
    ]
    # No call was judged, so nothing is judged again.
    replayed = await asyncio.to_thread(house.trace, "order-7", "--replay", str(house.first.policy))
    assert replayed.startswith("0 calls")
    assert house.trace("--verify").count("The chain is whole.") == 2


async def test_exports_have_events_and_state(house: House) -> None:
    await told(house)
    by_id = {event.id: event for event in house.events("order-7")}
    clouds = [json.loads(line) for line in house.trace("order-7", "--export", "cloudevents").splitlines()]
    assert [one["id"] for one in clouds] == list(by_id)
    published = next(one for one in clouds if one["type"] == "io.meshd.trace.published.v1")
    handed = next(one for one in clouds if one["type"] == "io.meshd.trace.handed.v1")
    assert handed["causationid"] == published["id"]
    assert published["dataref"].startswith("urn:sha256:")
    spans = [
        span
        for line in house.trace("order-7", "--export", "otlp").splitlines()
        for resource in json.loads(line)["resourceSpans"]
        for span in resource["scopeSpans"][0]["spans"]
    ]
    # What began and what ended it are one span: 2 events were handed out, 4 versions to be written.
    assert len(spans) == 18 - 2 - 4
    named = {_attribute(span, "meshd.event"): span for span in spans}
    assert set(named) <= set(by_id)
    kinds = {by_id[id].kind: span["kind"] for id, span in named.items()}
    assert (kinds["published"], kinds["handed"]) == (4, 5)
    assert all(span["parentSpanId"] for id, span in named.items() if by_id[id].kind == "handed")
    prov = json.loads(house.trace("order-7", "--export", "prov"))
    placed = "meshd:message:order.placed:placed-7"
    second = "meshd:state:workflow/order-7/order@2"
    assert prov["entity"][placed] == {"prov:type": {"$": "meshd:message", "type": "prov:QUALIFIED_NAME"}}
    for part, entity in (("wasGeneratedBy", placed), ("used", placed), ("wasGeneratedBy", second), ("used", second)):
        (about,) = [one for one in prov[part].values() if one["prov:entity"] == entity]
        assert by_id[about["prov:activity"].removeprefix("meshd:event:")].payload.workflow == "order-7"


def _attribute(span: dict[str, Any], name: str) -> str:
    return next(str(one["value"]["stringValue"]) for one in span["attributes"] if one["key"] == name)


@pytest.mark.parametrize("to", ["bob", "app"])
async def test_what_follows_from_an_event_that_is_pushed(sidecar: Sidecar, to: str) -> None:
    caller, called = CallingAgent(), CallingAgent()
    document = (
        f'agent: main\nupstreams:\n  bob: {{url: "{caller.url}", kind: agent}}\n'
        f'  eve: {{url: "{called.url}", kind: agent}}\n'
        f'subscriptions: [{{topic: "task.*", to: {to}, path: /run}}]\n'
    )
    try:
        await asyncio.to_thread(sidecar.start, document, "--app", caller.url)
        house = House(sidecar, sidecar)
        house.homes = [sidecar.home]
        async with agent("desk", sidecar) as desk:
            async with desk.workflow("pushed") as ctx:
                await ctx.publish("task.new", {"then": [f"{sidecar.url}/eve/run"]}, id="e1")
            # What has no workflow is pushed, and written down, as well.
            await desk.ctx.publish("task.new", {}, id="e2")
            await asyncio.to_thread(until, lambda: len(caller.seen) == 2, "both pushes")
        await asyncio.to_thread(until, lambda: _ends(house.events("pushed"), "handled"), "its end")
        events = house.events("pushed")
        published, handed = one(events, "published"), one(events, "handed")
        calls = {event.payload.target: event for event in events if event.kind == "forwarded"}
        push = calls["bob"] if to == "bob" else one(events, "arrived")
        assert [event.causes for event in (handed, push, calls["eve"])] == [(published.id,), (handed.id,), (push.id,)]
        assert one(events, "handled").facts["result"] == "success"
        # The agent sees no clock.
        assert not any(name == "x-meshd-clock" for headers in caller.seen for name in headers)
        assert verify(sidecar.home / DIRECTORY).problems == []
    finally:
        caller.close()
        called.close()


def _ends(events: list[Noted], kind: str) -> bool:
    return any(event.kind == kind for event in events)
