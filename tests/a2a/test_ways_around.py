"""Spellings by which a message would be judged as one thing and carried out as another, and contexts of others."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest

from tests.a2a.talking import message
from tests.proxy.conftest import h2_client, mesh, upstream

if TYPE_CHECKING:
    from tests.proxy.messages import Message

__all__ = ["h2_client", "mesh", "upstream"]
SAID = {"message": {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "x"}]}}
NEVER = "rules:\n  - {{name: never, match: {{target: writer, operation: {}}}, deny: not this}}\n"


def document(port: int, rules: str = "", more: str = "") -> str:
    writer = f'  writer: {{url: "http://127.0.0.1:{port}", kind: agent, dialect: a2a}}\n'
    return f"agent: planner\nupstreams:\n{writer}{more}{rules}"


class Heard:
    """An upstream that takes everything, and what it was sent."""

    def __init__(self) -> None:
        self.requests: list[Message] = []

    async def script(self, peer: Any) -> None:
        while True:
            self.requests.append(await peer.request())
            peer.reply(b'{"jsonrpc":"2.0","id":1,"result":{}}', b"content-type: application/json")


@pytest.fixture
def heard() -> Heard:
    return Heard()


async def post(made: Any, path: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with httpx.AsyncClient(trust_env=False) as http:
        return await http.post(f"http://127.0.0.1:{made.port}{path}", content=content, headers=headers)


def rpc(method: str, params: Any = None, **more: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": SAID if params is None else params, **more}


@pytest.mark.parametrize(
    ("path", "version"),
    [
        ("/message:send", "0.3"),
        ("/message:send", "0.2.9"),
        ("/v1/message:send", "1.0"),
        ("/v1/message:send?a2a-version=0.3", ""),
        ("/message:send?A2A-Version=0.3", "1.0"),
    ],
)
@pytest.mark.parametrize("operation", ["SendMessage", "message/send"])
async def test_a_version_that_is_not_sure_is_no_way_around_a_rule(
    mesh: Any, upstream: Any, heard: Heard, path: str, version: str, operation: str
) -> None:
    made = await mesh(document((await upstream(heard.script)).port, NEVER.format(operation)))
    headers = {"a2a-version": version} if version else {}
    sure = path.startswith("/v1") and not version
    response = await post(made, f"/writer{path}", SAID, **headers)

    if sure and operation == "SendMessage":
        assert response.status_code == 200
        return
    assert (response.status_code, response.headers["x-meshd-reason"]) == (403, "not_allowed")
    assert not heard.requests


async def test_a_version_that_is_sure_has_one_name(mesh: Any, upstream: Any, heard: Heard) -> None:
    made = await mesh(document((await upstream(heard.script)).port, NEVER.format("message/send")))
    assert (await post(made, "/writer/message:send", SAID, **{"a2a-version": "1.0"})).status_code == 200
    assert (await post(made, "/writer/v1/message:send", SAID, **{"a2a-version": "0.3"})).status_code == 403


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/", rpc("GetTask", METHOD="SendMessage")),
        ("/", rpc("GetTask", {}, Params=SAID)),
        ("/", rpc("SendMessage", {**SAID, "Message": SAID["message"]})),
        ("/", rpc("SendMessage", {"Message": SAID["message"]})),
        ("/tasks/t-1:cancel", rpc("SendMessage")),
        ("/tasks/t-1:cancel", {"method": "SendMessage", "params": SAID}),
    ],
)
async def test_what_parsers_read_in_two_ways_goes_nowhere(
    mesh: Any, upstream: Any, heard: Heard, path: str, body: Any
) -> None:
    made = await mesh(document((await upstream(heard.script)).port))
    response = await post(made, f"/writer{path}", body, **{"a2a-version": "1.0"})

    assert response.headers["x-meshd-reason"] == "malformed"
    assert not heard.requests
    assert (await post(made, "/writer/", rpc("SendMessage"))).status_code == 200


async def test_grpc_has_no_spelling_that_is_not_read(mesh: Any, agent: Any) -> None:
    made = await mesh(document(agent.grpc_port, NEVER.format("SendMessage")))
    body = message("message hi").SerializeToString()
    async with grpc.aio.insecure_channel(f"writer.localhost:{made.port}") as channel:
        for path in (
            "/lf.a2a.v1.A2AService/SendMessage",
            "/lf.a2a.v1.A2AService/Send%4dessage",
            "/lf.a2a.v1.A2AService%2fSendMessage",
            "/lf.a2a.v1.A2AService//SendMessage",
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(path)(body, timeout=20)
            assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert not agent.worker.told


async def test_a_compressed_message_has_nothing_behind_its_end(mesh: Any, agent: Any, h2_client: Any) -> None:
    """A gzip reader of Go would inflate both members, and the last of a field's values would count."""
    made = await mesh(document(agent.grpc_port))
    one, two = (gzip.compress(message(f"message {text}").SerializeToString()) for text in ("shown", "hidden"))
    client = await h2_client(made)
    for whole, status in ((one + two, "3"), (one, "0")):
        half = await client.ask(
            "/lf.a2a.v1.A2AService/SendMessage",
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("grpc-encoding", "gzip"),
            ("a2a-version", "1.0"),
            ("x-meshd-target", "writer"),
            method="POST",
            body=b"\x01" + len(whole).to_bytes(4, "big") + whole,
        )
        assert (half.trailers or half.fields)["grpc-status"] == status
    assert agent.worker.told == ["message shown"]


# ---------------------------------------------------------------------- contexts of others


def going_on(context_id: str, id: str = "m") -> dict[str, Any]:
    return rpc("SendMessage", {"message": {**SAID["message"], "contextId": context_id, "messageId": id}})


async def test_who_says_a_context_s_id_is_not_thereby_its_agent(mesh: Any, upstream: Any, heard: Heard) -> None:
    special, port = Heard(), (await upstream(heard.script)).port
    other = f'  special: {{url: "http://127.0.0.1:{(await upstream(special.script)).port}", kind: agent}}\n'
    rules = "rules:\n  - {name: special-only, match: {target: writer, agent: planner}, deny: not you}\n"
    made = await mesh(document(port, rules, other))
    await post(made, "/special/", {}, **{"x-meshd-workflow": "wf-special"})
    token = special.requests[0].get(b"x-meshd-context")
    assert token is not None
    begun = await post(made, "/writer/", going_on("c-1"), **{"x-meshd-context": token.decode()})
    stolen = await post(made, "/writer/", going_on("c-1", "m-2"))

    assert "error" not in begun.json()
    assert stolen.headers["x-meshd-reason"] == "not_allowed"
    assert len(heard.requests) == 1


async def test_who_has_other_credentials_does_not_go_on_with_a_context(mesh: Any, upstream: Any, heard: Heard) -> None:
    made = await mesh(document((await upstream(heard.script)).port))
    alice, mallory = {"authorization": "Bearer alice"}, {"authorization": "Bearer mallory"}
    await post(made, "/writer/", going_on("c-1"), **{"x-meshd-workflow": "wf-alice"}, **alice)
    await post(made, "/writer/", going_on("c-1", "m-2"), **mallory)
    await post(made, "/writer/", going_on("c-1", "m-3"), **alice)

    assert [call.call.context.workflow for call in made.calls] == ["wf-alice", "", "wf-alice"]
