"""A2A streams that a person decides: their callers are shown a task, and then what the agent says as events of that."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from a2a.client import ClientConfig, ClientFactory
from a2a.helpers import new_text_message
from a2a.types import CancelTaskRequest, GetTaskRequest, Role, SendMessageRequest, SubscribeToTaskRequest, TaskState

from meshd.approvals.carrying import Carrying
from meshd.approvals.held_calls import SPACE
from meshd.engines.memory import MemoryStore
from meshd.refusal import Reason, Refused
from tests.proxy.harness import turns, until
from tests.rpc.asking import WORKFLOW, decide, document, pending, state_of
from tests.rpc.servers import card

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.proxy.harness import Mesh, Peer
    from tests.rpc.servers import Echo

VERSIONS = ("1.0", "0.3")


@asynccontextmanager
async def client(mesh: Mesh, version: str = "1.0") -> AsyncIterator[Any]:
    async with httpx.AsyncClient(trust_env=False, headers=WORKFLOW, timeout=30) as http:
        config = ClientConfig(streaming=True, httpx_client=http)
        yield ClientFactory(config).create(card(f"http://127.0.0.1:{mesh.port}/echo/", "JSONRPC", version))


class Stream:
    """One message whose answer is read as it comes."""

    def __init__(self, one: Any, text: str = "hello") -> None:
        self.events: list[Any] = []
        self._reading = asyncio.ensure_future(self._read(one, text))

    async def _read(self, one: Any, text: str) -> None:
        request = SendMessageRequest(message=new_text_message(text, role=Role.ROLE_USER))
        async for event in one.send_message(request):
            self.events.append(event)

    async def shown(self, mesh: Mesh) -> Any:
        """Return the task that is shown once the call has been held for a while."""
        await until(lambda: mesh.carrying._held_here)  # type: ignore[union-attr]
        mesh.expire(4)
        await until(lambda: self.events)
        return self.events[0].task

    async def over(self) -> list[Any]:
        await self._reading
        return self.events[1:]

    def leave(self) -> None:
        self._reading.cancel()


class Subscription(Stream):
    """One task that is followed."""

    async def _read(self, one: Any, text: str) -> None:
        async for event in one.subscribe(SubscribeToTaskRequest(id=text)):
            self.events.append(event)

    async def first(self) -> Any:
        await until(lambda: self.events or self._reading.done())
        return self.events[0]


def said(events: list[Any]) -> list[str]:
    return [
        TaskState.Name(one.status_update.status.state).removeprefix("TASK_STATE_")
        if one.HasField("status_update")
        else one.WhichOneof("payload")
        for one in events
    ]


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_stream_is_of_one_task_from_the_hold_to_the_answer(
    mesh: Any, agent_port: int, echo: Echo, version: str
) -> None:
    made = await mesh(document("echo", agent_port, "agent", "a2a"), store=MemoryStore())
    async with client(made, version) as one:
        stream = Stream(one)
        task = await stream.shown(made)
        (asked,) = await pending(made)
        assert state_of(task) == "AUTH_REQUIRED"
        assert asked.id in task.id
        assert asked.id in task.status.message.parts[0].text
        # Signs of life go on, and whoever asks for the task is told the same.
        made.expire(4)
        assert state_of(await one.get_task(GetTaskRequest(id=task.id))) == "AUTH_REQUIRED"
        following = Subscription(one, task.id)
        assert state_of((await following.first()).task) == "AUTH_REQUIRED"
        assert not echo.told
        await decide(made)
        events = await stream.over()
        assert said(events) == ["WORKING", "COMPLETED"]
        assert {event.status_update.task_id for event in events} == {task.id}
        assert events[-1].status_update.status.message.parts[0].text == "you said hello"
        while state_of(kept := await one.get_task(GetTaskRequest(id=task.id))) == "WORKING":
            await asyncio.sleep(0)
        assert (state_of(kept), kept.id) == ("COMPLETED", task.id)
        assert kept.status.message.parts[0].text == "you said hello"
        assert echo.told == ["hello"]
        # Whoever has subscribed to it was told the same, though another stream had it carried out.
        assert said(await following.over())[-1] == "COMPLETED"


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_denied_stream_ends_with_its_task_rejected(
    mesh: Any, agent_port: int, echo: Echo, version: str
) -> None:
    made = await mesh(document("echo", agent_port, "agent", "a2a"), store=MemoryStore())
    async with client(made, version) as one:
        stream = Stream(one)
        task = await stream.shown(made)
        await decide(made, is_allowed=False)
        (event,) = await stream.over()
        assert said([event]) == ["REJECTED"]
        assert "not on a Friday" in event.status_update.status.message.parts[0].text
        assert state_of(await one.get_task(GetTaskRequest(id=task.id))) == "REJECTED"
        assert not echo.told


@pytest.mark.parametrize("version", VERSIONS)
async def test_cancelling_ends_the_stream(mesh: Any, agent_port: int, echo: Echo, version: str) -> None:
    made = await mesh(document("echo", agent_port, "agent", "a2a"), store=MemoryStore())
    async with client(made, version) as one:
        stream = Stream(one)
        task = await stream.shown(made)
        assert state_of(await one.cancel_task(CancelTaskRequest(id=task.id))) == "CANCELED"
        assert said(await stream.over()) == ["CANCELED"]
        assert not await pending(made)
        assert not echo.told


async def test_a_caller_that_hung_up_asks_for_its_task(mesh: Any, agent_port: int, echo: Echo) -> None:
    made = await mesh(document("echo", agent_port, "agent", "a2a"), store=MemoryStore())
    async with client(made) as one:
        stream = Stream(one)
        task = await stream.shown(made)
        stream.leave()
        await until(lambda: not made.carrying._held_here and not made.carrying._noting)
        await decide(made)
        assert not echo.told
        while state_of(kept := await one.get_task(GetTaskRequest(id=task.id))) in ("WORKING", "AUTH_REQUIRED"):
            await asyncio.sleep(0)
        assert (state_of(kept), kept.status.message.parts[0].text) == ("COMPLETED", "you said hello")
        assert echo.told == ["hello"]


async def test_what_is_decided_at_once_is_shown_no_task(mesh: Any, agent_port: int, echo: Echo) -> None:
    made = await mesh(document("echo", agent_port, "agent", "a2a"), store=MemoryStore())
    async with client(made) as one:
        stream = Stream(one)
        await until(lambda: made.carrying._held_here)
        await decide(made)
        await stream.over()
        assert [event.message.parts[0].text for event in stream.events] == ["you said hello"]


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_stream_that_is_not_held_is_its_task(mesh: Any, agent_port: int, echo: Echo, version: str) -> None:
    made = await mesh(document("echo", agent_port, "agent", "a2a", "hold: 0s"), store=MemoryStore())
    async with client(made, version) as one:
        stream = Stream(one)
        assert await stream.over() == []
        (shown,) = stream.events
        assert state_of(shown.task) == "AUTH_REQUIRED"
        await decide(made)
        while state_of(kept := await one.get_task(GetTaskRequest(id=shown.task.id))) in ("WORKING", "AUTH_REQUIRED"):
            await asyncio.sleep(0)
        assert (state_of(kept), kept.id) == ("COMPLETED", shown.task.id)
        assert echo.told == ["hello"]


class Teller:
    """An agent whose stream is scripted."""

    def __init__(self, *pieces: bytes, content_type: bytes = b"text/event-stream", status: bytes = b"200 OK") -> None:
        self.pieces, self.content_type, self.status = pieces, content_type, status

    async def __call__(self, peer: Peer) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 %b\r\ncontent-type: %b\r\nconnection: close\r\n\r\n" % (self.status, self.content_type))
        for piece in self.pieces:
            peer.send(piece)
            await turns()
        peer.close()


def event(result: Any, id: str = "x") -> bytes:
    return b"data: " + json.dumps({"jsonrpc": "2.0", "id": id, "result": result}).encode() + b"\r\n\r\n"


STATUS: Any = {"taskId": "T1", "contextId": "c"}
OWN: Any = {"id": "T1", "contextId": "c", "status": {"state": "TASK_STATE_WORKING"}}
MORE: Any = {**STATUS, "append": True, "artifact": {"artifactId": "a", "parts": [{"text": "two"}]}}
ARTIFACT: Any = {**STATUS, "artifact": {"artifactId": "a", "parts": [{"text": "one"}]}}
TOLD = [
    event({"task": OWN}),
    event({"artifactUpdate": ARTIFACT}),
    event(
        {"artifactUpdate": {**ARTIFACT, "append": True, "artifact": {"artifactId": "a", "parts": [{"text": "two"}]}}}
    ),
    event({"statusUpdate": {**STATUS, "status": {"state": "TASK_STATE_COMPLETED"}}}),
]


@pytest.mark.parametrize("is_split", [False, True], ids=["whole", "byte by byte"])
async def test_an_agents_own_task_is_told_as_ours(mesh: Any, upstream: Any, is_split: bool) -> None:
    pieces = [bytes([byte]) for byte in b"".join(TOLD)] if is_split else TOLD
    port = (await upstream(Teller(*pieces))).port
    made = await mesh(document("echo", port, "agent", "a2a"), store=MemoryStore())
    async with client(made) as one:
        stream = Stream(one)
        task = await stream.shown(made)
        await decide(made)
        events = await stream.over()
        assert said(events) == ["WORKING", "WORKING", "artifact_update", "artifact_update", "COMPLETED"]
        assert b"T1" not in b"".join(one.SerializeToString() for one in events)
        while state_of(kept := await one.get_task(GetTaskRequest(id=task.id))) == "WORKING":
            await asyncio.sleep(0)
        assert [part.text for part in kept.artifacts[0].parts] == ["one", "two"]
        assert (kept.id, state_of(kept)) == (task.id, "COMPLETED")


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        (Teller(b"<html>", content_type=b"text/html", status=b"502 Bad Gateway"), "echo answered 502"),
        (Teller(b'data: {"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"unwell"}}\n\n'), "unwell"),
        (Teller(b'{"jsonrpc":"2.0","id":1,"error":{"message":"no"}}', content_type=b"application/json"), "no"),
    ],
    ids=["status", "event", "plain"],
)
async def test_what_fails_at_the_agent_fails_the_task(mesh: Any, upstream: Any, agent: Any, words: str) -> None:
    made = await mesh(document("echo", (await upstream(agent)).port, "agent", "a2a"), store=MemoryStore())
    async with client(made) as one:
        stream = Stream(one)
        task = await stream.shown(made)
        await decide(made)
        events = await stream.over()
        assert said(events)[-1] == "FAILED"
        assert words in events[-1].status_update.status.message.parts[0].text
        while state_of(kept := await one.get_task(GetTaskRequest(id=task.id))) == "WORKING":
            await asyncio.sleep(0)
        assert state_of(kept) == "FAILED"


# ---------------------------------------------------------------------- what goes wrong in between


class Gated:
    """An agent whose stream begins, and goes on when the gate is open."""

    def __init__(self, *then: bytes) -> None:
        self.gate, self.then, self.count = asyncio.Event(), then, 0

    async def __call__(self, peer: Peer) -> None:
        await peer.request()
        self.count += 1
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        peer.send(event({"task": OWN}))
        await self.gate.wait()
        for piece in self.then:
            peer.send(piece)
            await turns()
        peer.close()


async def left_under_way(made: Mesh, one: Any, agent: Gated) -> str:
    """Have a held stream begin, its caller hang up, and the agent go on; return its task."""
    stream = Stream(one)
    task = await stream.shown(made)
    await decide(made)
    await until(lambda: len(stream.events) > 2)
    stream.leave()
    await until(lambda: any(exchange.is_detached for exchange in made.proxy.live) or not made.proxy.live)
    agent.gate.set()
    return str(task.id)


async def over(one: Any, id: str) -> Any:
    while state_of(kept := await one.get_task(GetTaskRequest(id=id))) in ("WORKING", "AUTH_REQUIRED"):
        await asyncio.sleep(0)
    return kept


async def test_a_caller_that_hung_up_under_way_finds_what_was_said(mesh: Any, upstream: Any) -> None:
    agent = Gated(*TOLD[1:])
    made = await mesh(document("echo", (await upstream(agent)).port, "agent", "a2a"), store=MemoryStore())
    async with client(made) as one:
        kept = await over(one, await left_under_way(made, one, agent))
        assert state_of(kept) == "COMPLETED"
        assert [part.text for part in kept.artifacts[0].parts] == ["one", "two"]
    await made.idle()
    assert agent.count == 1
    assert not made.carrying._claimed  # type: ignore[union-attr]


async def test_a_stream_that_nobody_reads_ends_where_no_more_is_kept(mesh: Any, upstream: Any) -> None:
    long = event({"artifactUpdate": {**STATUS, "artifact": {"artifactId": "b", "parts": [{"text": "x" * 200_000}]}}})
    agent = Gated(*[long] * 8, TOLD[3])
    made = await mesh(document("echo", (await upstream(agent)).port, "agent", "a2a"), store=MemoryStore())
    async with client(made) as one:
        kept = await over(one, await left_under_way(made, one, agent))
        assert state_of(kept) == "FAILED"
        assert "longer than is kept" in kept.status.message.parts[0].text
    await made.idle()


async def test_a_stream_that_breaks_off_fails_the_task(mesh: Any, upstream: Any) -> None:
    async def breaking(peer: Peer) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        said = event({"task": OWN})
        peer.send(b"%x\r\n%b\r\n" % (len(said), said))
        await turns()
        peer.reset()

    made = await mesh(document("echo", (await upstream(breaking)).port, "agent", "a2a"), store=MemoryStore())
    async with client(made) as one:
        stream = Stream(one)
        task = await stream.shown(made)
        await decide(made)
        with pytest.raises(Exception, match=r".+"):
            await stream.over()
        kept = await over(one, task.id)
        assert state_of(kept) == "FAILED"
        assert "broke off" in kept.status.message.parts[0].text


@pytest.mark.parametrize("is_json", [True, False], ids=["json", "html"])
async def test_a_plain_answer_beyond_all_bounds_is_not_kept(mesh: Any, upstream: Any, is_json: bool) -> None:
    content_type = b"application/json" if is_json else b"text/html"
    teller = Teller(*[b" " * 100_000] * 60, content_type=content_type)
    made = await mesh(document("echo", (await upstream(teller)).port, "agent", "a2a"), store=MemoryStore())
    async with client(made) as one:
        stream = Stream(one)
        task = await stream.shown(made)
        (exchange,) = made.proxy.live
        held = exchange.held_caller
        await decide(made)
        assert said(await stream.over())[-1] == "FAILED"
        assert held._body_bytes < 2**21
        assert state_of(await over(one, task.id)) == "FAILED"


def refusing(reason: Reason, words: str) -> Callable[[Any], None]:
    """Return what refuses each attempt to send a message."""

    def refuse(call: Any) -> None:
        if call.rpc.method in ("SendStreamingMessage", "message/stream"):
            raise Refused(reason, words)

    return refuse


async def test_what_was_told_to_have_failed_is_not_done_later(mesh: Any, agent_port: int, echo: Echo) -> None:
    made = await mesh(document("echo", agent_port, "agent", "a2a"), store=MemoryStore())
    async with client(made) as one:
        stream = Stream(one)
        task = await stream.shown(made)
        made.per_attempt.on_admit = refusing(Reason.BUDGET_EXHAUSTED, "There is nothing left.")
        await decide(made)
        events = await stream.over()
        assert said(events) == ["FAILED"]
        made.per_attempt.on_admit = None
        kept = await over(one, task.id)
        assert state_of(kept) == "FAILED"
        assert "nothing left" in kept.status.message.parts[0].text
        assert not echo.told


async def test_a_refusal_that_may_pass_leaves_the_task_open(mesh: Any, agent_port: int, echo: Echo) -> None:
    made = await mesh(document("echo", agent_port, "agent", "a2a"), store=MemoryStore())
    async with client(made) as one:
        stream = Stream(one)
        task = await stream.shown(made)
        made.per_attempt.on_admit = refusing(Reason.BUDGET_BUSY, "Others hold it.")
        await decide(made)
        assert said(await stream.over()) == ["WORKING"]
        made.per_attempt.on_admit = None
        assert state_of(await over(one, task.id)) == "COMPLETED"
        assert echo.told == ["hello"]


async def test_a_task_that_comes_after_the_first_sign_is_shown_too(mesh: Any, agent_port: int, echo: Echo) -> None:
    made = await mesh(document("echo", agent_port, "agent", "a2a"), store=(store := SlowStore()))
    async with client(made) as one:
        stream = Stream(one)
        await until(lambda: store.is_waited_for)
        made.expire(4)
        (exchange,) = made.proxy.live
        assert exchange.held_caller is not None
        store.gate.set()
        task = await stream.shown(made)
        await decide(made)
        assert said(await stream.over()) == ["WORKING", "COMPLETED"]
        assert state_of(await over(one, task.id)) == "COMPLETED"
        assert echo.told == ["hello"]


class SlowStore(MemoryStore):
    """One that takes its time over held calls."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.is_waited_for = False

    async def read(self, space: str, keys: Any) -> Any:
        if space == SPACE:
            self.is_waited_for = True
            await self.gate.wait()
        return await super().read(space, keys)


async def test_many_held_streams_cost_one_beat(mesh: Any, agent_port: int) -> None:
    made = await mesh(document("echo", agent_port, "agent", "a2a"), store=MemoryStore())
    async with client(made) as one:
        streams = [Stream(one, f"hello {at}") for at in range(8)]
        await until(lambda: len(made.carrying._held_here) == 8)
        beating = [task for task in asyncio.all_tasks() if "Carrying._beat" in repr(task.get_coro())]
        assert len(beating) == 1
        first = await made.carrying.held.read(next(iter(made.carrying._held_here)))
        # A second sidecar that is asked the same takes nothing away from the first.
        assert not await made.carrying.hold(first)
        other = Carrying(made.carrying.held, made.carrying._clock)
        assert not await other.hold(first)
        for stream in streams:
            stream.leave()
        await until(lambda: not made.carrying._held_here)
