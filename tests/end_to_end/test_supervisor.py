"""Supervisors with a real daemon: who answers, and whoever is slow, dead or talks nonsense."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from meshd.approvals.keys import hash_of, new_key
from tests.end_to_end.sidecar import Sidecar, fetch, until
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

ANA = new_key()
STUCK = {
    "chat": {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "No."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    },
    "mcp": {"jsonrpc": "2.0", "id": 1, "result": {"content": [{"type": "text", "text": "No results."}]}},
    "a2a": {
        "jsonrpc": "2.0", "id": 1,
        "result": {"kind": "message", "messageId": "m", "role": "agent", "parts": [{"kind": "text", "text": "No."}]},
    },
    "run": {"text": "I do not know where the contract is."},
}  # fmt: skip
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/llm/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "Is it done?"}]}),
    "mcp": (
        "/tools/mcp",
        {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "search", "arguments": {"q": "x"}}},
    ),
    "a2a": (
        "/helper/a2a",
        {
            "jsonrpc": "2.0", "id": 7, "method": "message/send",
            "params": {"message": {"messageId": "m1", "role": "user", "kind": "message",
                                   "parts": [{"kind": "text", "text": "Where is the contract?"}]}},
        },
    ),
    "run": ("/writer/run", {"task": "Where is the contract?"}),
}  # fmt: skip


class World:
    """Upstreams that always answer the same, and a supervisor."""

    def __init__(self) -> None:
        self.verdict: bytes | None = b""
        """What the supervisor answers; None for never."""
        self.stories: list[dict[str, Any]] = []
        self.called = 0
        self.gate = threading.Event()
        world = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)))
                if self.path == "/supervise":
                    world.stories.append(body["story"])
                    if world.verdict is None:
                        world.gate.wait(30)
                    answer = world.verdict or b""
                else:
                    world.called += 1
                    answer = json.dumps(STUCK[next(one for one in STUCK if one in self.path)]).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()

    def document(self, exceeded: str) -> str:
        return (
            "agent: lead\nowner: ola\n"
            f'approvers: {{ana: {{key: "sha256:{hash_of(ANA)}"}}}}\n'
            "upstreams:\n"
            f'  writer: {{url: "{self.url}", kind: agent}}\n'
            f'  boss: {{url: "{self.url}", kind: agent}}\n'
            f'  helper: {{url: "{self.url}", kind: agent, dialect: a2a}}\n'
            f'  tools: {{url: "{self.url}", kind: tool, dialect: mcp, discover: false}}\n'
            f'  llm: {{url: "{self.url}", kind: llm, dialect: openai}}\n'
            f"on_exceeded: {exceeded}\n"
        )


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def post(sidecar: Sidecar, kind: str = "run", number: int = 0) -> tuple[int, str]:
    path, body = ASKED[kind]
    if "id" in body:
        body = {**body, "id": number}
    if kind == "a2a":
        message = {**body["params"]["message"], "messageId": f"m{number}"}
        body = {**body, "params": {"message": message}}
    headers = {"content-type": "application/json", "accept": "application/json", "x-meshd-workflow": "wf-1"}
    status, text = fetch(sidecar.url + path, "POST", headers, json.dumps(body).encode())
    return status, text


def until_held(sidecar: Sidecar, kind: str = "run") -> tuple[int, str]:
    """Go round three times, and return what the fourth call gets."""
    for number in range(3):
        assert post(sidecar, kind, number)[0] == 200
    return post(sidecar, kind, 7)


@pytest.mark.parametrize("way", ["agent", "url"])
def test_one_who_answers_gives_room_and_then_stops(sidecar: Sidecar, world: World, way: str) -> None:
    named = "agent: boss" if way == "agent" else f'url: "{world.url}/supervise"'
    sidecar.start(world.document(f"{{{named}, timeout: 10s}}"))
    world.verdict = b'{"action": "continue", "turns": 2, "reason": "nearly done"}'
    assert until_held(sidecar)[0] == 200
    assert post(sidecar)[0] == 200
    assert (world.called, len(world.stories)) == (5, 1)
    assert (world.stories[0]["detector"], world.stories[0]["source"]) == ("repetition", "lead")
    world.verdict = b'{"action": "stop", "reason": "it will never end"}'
    status, text = post(sidecar)
    assert (status, "it will never end" in text) == (403, True)
    assert post(sidecar, "mcp")[0] == 200, "an error of JSON-RPC"
    assert (world.called, len(world.stories)) == (5, 2)
    assert sidecar.metric("meshd_supervisor_asked_total", way=way, result="continue") == 1
    assert sidecar.metric("meshd_supervisor_asked_total", way=way, result="stop") == 1


@pytest.mark.parametrize(
    ("verdict", "result"), [(None, "late"), (b"go on, I guess", "nonsense"), (b'{"action": "continue"}', "nonsense")]
)
def test_one_who_is_slow_or_talks_nonsense_stops_it_loudly(
    sidecar: Sidecar, world: World, verdict: bytes | None, result: str
) -> None:
    sidecar.start(world.document(f'{{url: "{world.url}/supervise", timeout: 500ms}}'))
    world.verdict = verdict
    status, text = until_held(sidecar)
    assert (status, "The supervisor was asked" in text) == (403, True)
    assert sidecar.metric("meshd_supervisor_asked_total", way="url", result=result) == 1
    assert "so the workflow is stopped" in sidecar.log


def test_one_who_is_dead_stops_it_loudly(sidecar: Sidecar, world: World) -> None:
    sidecar.start(world.document(f'{{url: "http://127.0.0.1:{free_port()}/supervise", timeout: 5s}}'))
    assert until_held(sidecar)[0] == 403
    assert sidecar.metric("meshd_supervisor_asked_total", way="url", result="unreachable") == 1


def test_a_text_is_an_answer_of_the_callers_dialect(sidecar: Sidecar, world: World) -> None:
    sidecar.start(world.document("{agent: boss, timeout: 10s}"))
    world.verdict = b'{"action": "finish", "answer": "Use last year\'s figures."}'
    said = "Use last year's figures."
    assert until_held(sidecar) == (200, said)
    status, text = until_held(sidecar, "chat")
    assert (status, json.loads(text)["choices"][0]["message"]["content"]) == (200, said)
    status, text = until_held(sidecar, "mcp")
    answer = json.loads(text)
    assert (status, answer["id"], answer["result"]["content"]) == (200, 7, [{"type": "text", "text": said}])
    status, text = until_held(sidecar, "a2a")
    answer = json.loads(text)
    assert (status, answer["id"], answer["result"]["parts"][0]["text"]) == (200, 7, said)
    assert world.called == 12


def held(sidecar: Sidecar) -> tuple[threading.Thread, list[tuple[int, str]]]:
    got: list[tuple[int, str]] = []
    for number in range(3):
        assert post(sidecar, "run", number)[0] == 200
    thread = threading.Thread(target=lambda: got.append(post(sidecar)))
    thread.start()
    return thread, got


def pending(sidecar: Sidecar) -> dict[str, Any]:
    (one,) = until(lambda: sidecar.admin("/v1/approvals?state=pending")["approvals"], "asked")
    return dict(one)


def decide(sidecar: Sidecar, id: str, verb: str, reason: str) -> int:
    assert sidecar.running is not None
    token = (sidecar.home / "admin.token").read_text().strip()
    headers = {
        "authorization": f"Bearer {token}", "content-type": "application/json", "x-meshd-approver-key": ANA,
    }  # fmt: skip
    url = f"http://{sidecar.running['admin']}/v1/approvals/{id}/{verb}"
    return int(fetch(url, "POST", headers, json.dumps({"reason": reason}).encode())[0])


def test_people_let_it_go_on(sidecar: Sidecar, world: World) -> None:
    sidecar.start(world.document("{people: true, timeout: 20s}"))
    thread, got = held(sidecar)
    asked = pending(sidecar)
    assert (asked["agent"], asked["target"], asked["kind"]) == ("lead", "writer", "workflow")
    assert decide(sidecar, asked["id"], "approve", "it is nearly done") == 200
    thread.join(10)
    assert [status for status, _ in got] == [200]
    assert [post(sidecar)[0] for _ in range(3)] == [200] * 3, "twenty turns in all"
    assert sidecar.metric("meshd_supervisor_asked_total", way="people", result="continue") == 1


def test_people_stop_it(sidecar: Sidecar, world: World) -> None:
    sidecar.start(world.document("{people: true, timeout: 20s}"))
    thread, got = held(sidecar)
    assert decide(sidecar, pending(sidecar)["id"], "deny", "they are stuck") == 200
    thread.join(10)
    ((status, text),) = got
    assert (status, "they are stuck" in text) == (403, True)
    assert post(sidecar)[0] == 403
    assert world.called == 3
