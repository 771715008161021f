"""Held calls that became tasks, with a real daemon that is killed at each step: nothing is lost, nothing done twice."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from meshd.dialects.mcp_tasks import CAPABILITIES, EXTENSION
from tests.end_to_end.sidecar import Sidecar, fetch, until
from tests.end_to_end.test_approvals import decide, pending
from tests.engines.places import place_of
from tests.rpc.asking import ANA, document

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Upstream:
    """Answers every JSON-RPC request as its protocol would, and remembers them."""

    def __init__(self, result: Any) -> None:
        self.asked: list[Any] = []
        self.gate = threading.Event()
        self.gate.set()
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                upstream.asked.append(asked)
                upstream.gate.wait(60)
                answer = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = int(self.server.server_address[1])
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()


SAID: Any = {"messageId": "r", "role": "ROLE_AGENT", "parts": [{"text": "done"}]}
RESULTS: Any = {"a2a": {"message": SAID}, "mcp": {"content": [{"type": "text", "text": "done"}]}}


class World:
    """A protocol, its upstream and a sidecar that is killed and started again."""

    def __init__(self, protocol: str, sidecar: Sidecar, upstream: Upstream, store: tuple[str, ...] = ()) -> None:
        self.is_mcp = protocol == "mcp"
        self.sidecar, self.upstream, self.store = sidecar, upstream, store
        kind = "tool" if self.is_mcp else "agent"
        self.document = document("other", upstream.port, kind, protocol, "hold: 0s")

    def restart(self) -> None:
        self.sidecar.kill()
        self.sidecar.start(self.document, *self.store)

    def _rpc(self, method: str, params: Any) -> Any:
        headers = {"x-meshd-workflow": "w1", "content-type": "application/json"}
        if self.is_mcp:
            headers |= {"mcp-protocol-version": "2026-07-28", "accept": "application/json, text/event-stream"}
            params = {**params, "_meta": {CAPABILITIES: {"extensions": {EXTENSION: {}}}}}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        status, text = fetch(f"{self.sidecar.url}/other/", "POST", headers, body)
        assert status == 200, text
        return json.loads(text)["result"]

    def ask(self, what: str) -> str:
        if self.is_mcp:
            return str(self._rpc("tools/call", {"name": "delete", "arguments": {"name": what}})["taskId"])
        message = {"messageId": what, "role": "ROLE_USER", "parts": [{"text": what}]}
        return str(self._rpc("SendMessage", {"message": message})["task"]["id"])

    def state(self, id: str) -> tuple[str, str]:
        """Return where a task stands, and all that is said of it."""
        result = self._rpc("tasks/get", {"taskId": id}) if self.is_mcp else self._rpc("GetTask", {"id": id})
        if self.is_mcp:
            return str(result["status"]), json.dumps(result)
        state = str(result["status"]["state"]).removeprefix("TASK_STATE_").lower()
        return {"auth_required": "working"}.get(state, state), json.dumps(result)

    def stream(self, what: str) -> tuple[str, http.client.HTTPConnection]:
        """Send a message whose answer is a stream, and return the task that is shown in it while it is held."""
        message = {"messageId": what, "role": "ROLE_USER", "parts": [{"text": what}]}
        asked = {"jsonrpc": "2.0", "id": 1, "method": "SendStreamingMessage", "params": {"message": message}}
        connection = http.client.HTTPConnection(self.sidecar.url.removeprefix("http://"), timeout=30)
        fields = {"x-meshd-workflow": "w1", "content-type": "application/json", "accept": "text/event-stream"}
        connection.request("POST", "/other/", json.dumps(asked), fields)
        answer = connection.getresponse()
        while not (line := answer.readline()).startswith(b"data: "):
            assert line, answer.status
        return str(json.loads(line.removeprefix(b"data: "))["result"]["task"]["id"]), connection

    def approve(self) -> None:
        (asked,) = pending(self.sidecar)
        assert decide(self.sidecar, asked["id"], "approve", ANA)[0] == 200


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[Sidecar]:
    made = Sidecar(tmp_path / "home")
    yield made
    made.kill()


@pytest.mark.parametrize(
    ("protocol", "engine"), [("a2a", "sqlite"), ("mcp", "sqlite"), ("a2a", "postgres"), ("mcp", "nats")]
)
async def test_a_daemon_that_is_killed_loses_no_task(
    sidecar: Sidecar, protocol: str, engine: str, tmp_path: Path
) -> None:
    upstream = Upstream(RESULTS[protocol])
    try:
        async with place_of(engine, tmp_path) as place:
            store = () if engine == "sqlite" else ("--store", str(place.url))
            await asyncio.to_thread(_killed_at_each_step, World(protocol, sidecar, upstream, store))
    finally:
        upstream.close()


def _killed_at_each_step(world: World) -> None:
    upstream = world.upstream
    world.restart()
    id = world.ask("one")
    world.restart()
    assert world.state(id)[0] == "working"
    world.approve()
    assert not upstream.asked
    world.restart()
    state, said = until(lambda: found if (found := world.state(id))[0] != "working" else None, "an answer")
    assert (state, "done" in said) == ("completed", True)
    world.restart()
    assert world.state(id) == (state, said)
    assert len(upstream.asked) == 1
    # Killed while it is carried out: it is not done again, whoever asks.
    second = world.ask("two")
    world.approve()
    upstream.gate.clear()
    assert world.state(second)[0] == "working"
    until(lambda: len(upstream.asked) == 2)
    world.restart()
    upstream.gate.set()
    for _ in range(2):
        # At once: whoever was at it has begun another epoch since.
        state, said = world.state(second)
        assert (state, "nobody knows" in said) == ("failed", True)
    assert len(upstream.asked) == 2


async def test_a_daemon_that_is_killed_while_streams_are_held_loses_none(sidecar: Sidecar) -> None:
    upstream = Upstream(RESULTS["a2a"])
    try:
        world = World("a2a", sidecar, upstream)
        world.document = world.document.replace("hold: 0s", "")
        await asyncio.to_thread(_killed_while_streaming, world)
    finally:
        upstream.close()


def _killed_while_streaming(world: World) -> None:
    """Killed with one stream under way at its agent, and one that nobody has decided."""
    upstream = world.upstream
    upstream.gate.clear()
    world.restart()
    under_way, first = world.stream("one")
    world.approve()
    until(lambda: len(upstream.asked) == 1)
    waiting, second = world.stream("two")
    world.restart()
    upstream.gate.set()
    for connection in (first, second):
        connection.close()
    assert world.state(waiting)[0] == "working"
    world.approve()
    # Whoever held them has begun another epoch since: what was not sent is carried out, what was sent is not again.
    state, said = until(lambda: found if (found := world.state(waiting))[0] != "working" else None, "an answer")
    assert (state, "done" in said) == ("completed", True)
    state, said = world.state(under_way)
    assert (state, "nobody knows" in said) == ("failed", True)
    assert [one["params"]["message"]["messageId"] for one in upstream.asked] == ["one", "two"]
