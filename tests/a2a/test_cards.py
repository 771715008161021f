"""Cards through the data plane: where they lead for each way of asking, and what is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from a2a.types import GetExtendedAgentCardRequest
from starlette.applications import Starlette
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from meshd.call import Direction
from tests.a2a.talking import card_at, client_of, document, message, only, said
from tests.rpc.servers import Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PATH = "/.well-known/agent-card.json"


class Raw:
    """A server whose card is whatever a test says."""

    def __init__(self) -> None:
        self.body: bytes = b""
        self.status = 200
        self.headers: dict[str, str] = {}
        self.asked: list[Any] = []
        self.port = 0

    async def answer(self, request: Any) -> Response:
        self.asked.append(request)
        if 300 <= self.status < 309 and self.status != 304:
            return RedirectResponse("http://elsewhere.example/card", self.status)
        if self.status == 304:
            return Response(status_code=304, headers={"etag": '"x"'})
        return Response(self.body, self.status, {"content-type": "application/json", **self.headers})

    def card(self, **changes: Any) -> dict[str, Any]:
        interface = {"url": f"http://127.0.0.1:{self.port}/", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}
        return {"name": "Raw", "description": "d", "version": "1", "supportedInterfaces": [interface]} | changes

    def say(self, **changes: Any) -> None:
        self.body = json.dumps(self.card(**changes)).encode()


@pytest.fixture
async def raw() -> AsyncIterator[Raw]:
    made = Raw()
    app = Starlette(routes=[Route("/{rest:path}", made.answer, methods=["GET", "POST"])])
    server = await Server(app).start()
    made.port = server.port
    made.say()
    yield made
    await server.close()


def to(raw: Raw, extra: str = "", dialect: str = ", dialect: a2a") -> str:
    return f'upstreams:\n  raw: {{url: "http://127.0.0.1:{raw.port}", kind: agent{dialect}{extra}}}\n'


async def get(mesh: Any, path: str = f"/raw{PATH}", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as http:
        return await http.get(f"http://127.0.0.1:{mesh.port}{path}", headers=headers)


def first(response: httpx.Response) -> str:
    return str(response.json()["supportedInterfaces"][0]["url"])


@pytest.mark.parametrize("well_known", [PATH, "/.well-known/agent.json"])
async def test_a_card_leads_here_as_its_client_came(mesh: Any, raw: Raw, well_known: str) -> None:
    made = await mesh(to(raw))
    port = made.port

    assert first(await get(made, f"/raw{well_known}")) == f"http://127.0.0.1:{port}/raw/"
    assert first(await get(made, f"/raw{well_known}", host=f"localhost:{port}")) == f"http://localhost:{port}/raw/"
    assert first(await get(made, well_known, host="raw.mesh")) == "http://raw.mesh/"
    local = f"raw.localhost:{port}"
    assert first(await get(made, well_known, host=local)) == f"http://{local}/"


async def test_a_card_asked_for_through_a_proxy(mesh: Any, raw: Raw) -> None:
    made = await mesh(to(raw))
    proxy = f"http://127.0.0.1:{made.port}"
    async with httpx.AsyncClient(trust_env=False, proxy=proxy) as http:
        named = await http.get(f"http://raw.mesh{PATH}")
        direct = await http.get(f"http://127.0.0.1:{raw.port}{PATH}")

    assert first(named) == "http://raw.mesh/"
    # Its own address is one that leads through the proxy too.
    assert first(direct) == f"http://127.0.0.1:{raw.port}/"


async def test_what_was_not_known_passes(mesh: Any, raw: Raw) -> None:
    raw.say(unknown={"deep": [1, 2.5, None]}, iconUrl="http://icon.example/")
    card = (await get(await mesh(to(raw)))).json()

    assert card["unknown"] == {"deep": [1, 2.5, None]}
    assert card["iconUrl"] == "http://icon.example/"


async def test_foreign_addresses_are_gone_and_that_is_said(mesh: Any, raw: Raw, caplog: Any) -> None:
    foreign = {"url": "http://evil.example/", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}
    raw.say(supportedInterfaces=[foreign, raw.card()["supportedInterfaces"][0]])
    made = await mesh(to(raw))
    response = await get(made)
    await get(made)

    assert [one["url"] for one in response.json()["supportedInterfaces"]] == [f"http://127.0.0.1:{made.port}/raw/"]
    assert response.headers["x-meshd-card"] == "addresses-removed=1; signature=none"
    said = [record.getMessage() for record in caplog.records if "evil.example" in record.getMessage()]
    assert len(said) == 1


async def test_an_address_that_the_policy_knows_is_the_agent_s_own(mesh: Any, raw: Raw) -> None:
    raw.say(supportedInterfaces=[{"url": "https://agent.example.com/", "protocolBinding": "JSONRPC"}])
    refused = await get(await mesh(to(raw)))
    assert refused.status_code == 502
    assert "https://agent.example.com/" in refused.text
    assert "card.origins" in refused.text

    made = await mesh(to(raw, ', card: {origins: ["https://agent.example.com"]}'))
    assert first(await get(made)) == f"http://127.0.0.1:{made.port}/raw/"


async def test_a_base_path_is_not_said_twice(mesh: Any, raw: Raw) -> None:
    raw.say(
        supportedInterfaces=[
            {"url": f"http://127.0.0.1:{raw.port}/base/rpc", "protocolBinding": "JSONRPC"},
            {"url": f"http://127.0.0.1:{raw.port}/elsewhere", "protocolBinding": "JSONRPC"},
        ]
    )
    text = to(raw).replace(f"{raw.port}", f"{raw.port}/base")
    made = await mesh(text)
    card = (await get(made)).json()

    assert [one["url"] for one in card["supportedInterfaces"]] == [f"http://127.0.0.1:{made.port}/raw/rpc"]
    assert raw.asked[-1].url.path == f"/base{PATH}"


BAD = {
    "no json": b"<html>",
    "empty": b"",
    "a list": b"[]",
    "no name": b"{}",
    "ten megabytes": b'{"name": "' + b"x" * 10_000_000 + b'"}',
    "recursion": b'{"name": "x", "a": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "half a surrogate": b'{"name": "\\ud800"}',
    "ten thousand skills": json.dumps({"name": "x", "skills": [{"id": str(n)} for n in range(10_000)]}).encode(),
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
async def test_what_is_no_card_is_refused_with_words(mesh: Any, raw: Raw, body: bytes) -> None:
    raw.body = body
    made = await mesh(to(raw))
    response = await get(made)

    assert response.status_code == 502
    assert response.headers["x-meshd-reason"] == "upstream_unreachable"
    assert "card" in response.json()["error"]["message"]
    raw.say()
    assert (await get(made)).status_code == 200


@pytest.mark.parametrize("status", [304, 404, 500])
async def test_other_answers_pass(mesh: Any, raw: Raw, status: int) -> None:
    raw.status = status
    response = await get(await mesh(to(raw)))
    assert response.status_code == status


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
@pytest.mark.parametrize("dialect", ["", ", dialect: a2a"])
async def test_a_card_that_is_elsewhere_is_refused(mesh: Any, raw: Raw, status: int, dialect: str) -> None:
    raw.status = status
    response = await get(await mesh(to(raw, dialect=dialect)))

    assert response.status_code == 502
    assert "elsewhere.example" not in f"{response.text} {response.headers}"


async def test_a_part_of_a_card_is_refused(mesh: Any, raw: Raw) -> None:
    raw.status = 206
    assert (await get(await mesh(to(raw)), range="bytes=0-10")).status_code == 502


async def test_a_card_is_asked_for_readably_and_its_old_hash_goes(mesh: Any, raw: Raw) -> None:
    raw.headers = {"etag": '"x"', "content-digest": "sha-256=:x:", "x-own": "1"}
    response = await get(await mesh(to(raw)))

    assert raw.asked[-1].headers["accept-encoding"] == "identity"
    assert "etag" not in response.headers
    assert "content-digest" not in response.headers
    assert response.headers["x-own"] == "1"
    assert response.headers["vary"] == "host"


async def test_where_the_policy_says_no_dialect_a_card_is_led_and_what_is_none_passes(mesh: Any, raw: Raw) -> None:
    made = await mesh(to(raw, dialect=""))
    assert first(await get(made)) == f"http://127.0.0.1:{made.port}/raw/"
    raw.body = b'{"just": "json"}'
    assert (await get(made)).content == raw.body


async def test_another_agent_of_the_policy_is_led_to_as_itself(mesh: Any, agent: Any) -> None:
    made = await mesh(document(agent))
    made.proxy.cards.port = made.port
    card = await card_at(f"http://127.0.0.1:{made.port}/echo")

    targets = {one.url for one in card.supported_interfaces if one.protocol_binding == "GRPC"}
    assert targets == {f"echo-grpc.localhost:{made.port}"}


async def test_inbound_a_card_leads_to_the_sidecar_s_inbound_port(mesh: Any, raw: Raw) -> None:
    made = await mesh("agent: raw\n", app=f"http://127.0.0.1:{raw.port}")
    async with httpx.AsyncClient(trust_env=False) as http:
        response = await http.get(f"http://127.0.0.1:{made.inbound_port}{PATH}")
        keys = await http.get(f"http://127.0.0.1:{made.inbound_port}/.well-known/meshd-jwks.json")

    assert first(response) == f"http://127.0.0.1:{made.inbound_port}/"
    assert keys.json() == {"keys": []}
    assert [record.call.direction for record in made.calls] == [Direction.INBOUND]


async def test_cards_of_all_agents_that_may_be_called(mesh: Any, agent: Any, raw: Raw) -> None:
    dead = '  dead: {url: "http://127.0.0.1:9", kind: agent, dialect: a2a}\n'
    other = f'  raw: {{url: "http://127.0.0.1:{raw.port}", kind: agent, dialect: a2a}}\n'
    rules = "rules:\n  - {name: not-raw, match: {target: raw}, deny: not that one}\n"
    made = await mesh(document(agent, dead + other + rules))
    page = (await get(made, "/.well-known/agent-cards", authorization="Bearer secret")).json()

    assert [one["agent"] for one in page["cards"]] == ["echo"]
    assert page["cards"][0]["card"]["supportedInterfaces"][0]["url"] == f"http://127.0.0.1:{made.port}/echo/"
    assert {one["agent"]: one["reason"] for one in page["unavailable"]} == {
        "dead": "upstream_unreachable",
        "echo-grpc": "upstream_unreachable",
    }
    assert not raw.asked


async def test_credentials_are_for_whom_they_were_sent_to(mesh: Any, raw: Raw) -> None:
    made = await mesh(to(raw))
    await get(made, "/.well-known/agent-cards", authorization="Bearer secret", cookie="a=b")

    assert "authorization" not in raw.asked[-1].headers
    assert "cookie" not in raw.asked[-1].headers


@pytest.mark.parametrize("path", ["/.well-known/x", "/.well-known", "/.well-known/agent-cards/x"])
async def test_there_are_no_other_pages(mesh: Any, raw: Raw, path: str) -> None:
    assert (await get(await mesh(to(raw)), path)).status_code == 404


async def test_a_card_over_grpc_that_must_be_signed_and_is_not_is_refused(mesh: Any, agent: Any, tmp_path: Any) -> None:
    key = tmp_path / "k.pem"
    key.write_bytes(b"")
    card = f", card: {{keys: [{key}], require_signature: true}}"
    text = document(agent).replace("dialect: a2a}\n", f"dialect: a2a{card}}}\n")
    made = await mesh(text)
    bare = only(agent.card, "GRPC", "1.0")
    bare.supported_interfaces[0].url = f"echo-grpc.localhost:{made.port}"
    async with client_of(bare) as client:
        assert (await said(client, message("message hi")))[-1].message
        with pytest.raises(Exception, match="cannot be verified"):
            await client.get_extended_agent_card(GetExtendedAgentCardRequest())
