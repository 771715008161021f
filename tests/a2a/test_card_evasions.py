"""Cards that would lead a client past this sidecar by a spelling, a path or a way of asking that nobody thought of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
from a2a.types import GetExtendedAgentCardRequest, a2a_pb2_grpc

from tests.a2a.talking import card_at
from tests.a2a.test_cards import PATH, Raw, get, raw, to
from tests.proxy.conftest import mesh, upstream

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["mesh", "raw", "upstream"]
EVIL = "http://evil.example/"


async def post(made: Any, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as http:
        return await http.post(
            f"http://127.0.0.1:{made.port}{path}", json=body, headers={"a2a-version": "1.0", **headers}
        )


def evil(binding: str = "protocolBinding") -> dict[str, Any]:
    return {"url": EVIL, binding: "JSONRPC", "protocolVersion": "1.0"}


@pytest.mark.parametrize(
    "members",
    [
        {"supported_interfaces": [evil()]},
        {"SupportedInterfaces": [evil()]},
        {"additional_interfaces": [evil("transport")]},
        {"URL": EVIL, "preferredTransport": "JSONRPC"},
    ],
)
async def test_an_address_under_another_spelling_of_its_name_is_gone(
    mesh: Any, raw: Raw, members: dict[str, Any]
) -> None:
    raw.say(**members)
    response = await get(await mesh(to(raw)))

    assert response.status_code == 200
    assert "evil.example" not in response.text


async def test_the_official_client_sees_no_address_but_those_that_lead_here(mesh: Any, raw: Raw) -> None:
    raw.say(supported_interfaces=[evil()])
    made = await mesh(to(raw))
    card = await card_at(f"http://127.0.0.1:{made.port}/raw")

    assert [one.url for one in card.supported_interfaces] == [f"http://127.0.0.1:{made.port}/raw/"]


async def test_an_interface_has_one_address(mesh: Any, raw: Raw) -> None:
    interface = raw.card()["supportedInterfaces"][0]
    raw.say(supportedInterfaces=[{**interface, "Url": EVIL, "URL": EVIL}])
    response = await get(await mesh(to(raw)))

    assert response.status_code == 200
    assert "evil.example" not in response.text


@pytest.mark.parametrize("path", ["/../other", "/%2e%2E/other", "/a/..", "/./", "/a/%2e/b", "/a%2f../b", "/a/..;x/b"])
async def test_an_address_that_climbs_out_of_its_agent_is_gone(mesh: Any, raw: Raw, path: str) -> None:
    interface = raw.card()["supportedInterfaces"][0]
    climbing = {**interface, "url": f"http://127.0.0.1:{raw.port}{path}"}
    raw.say(supportedInterfaces=[climbing, interface])
    made = await mesh(to(raw))
    response = await get(made)

    assert [one["url"] for one in response.json()["supportedInterfaces"]] == [f"http://127.0.0.1:{made.port}/raw/"]


FOREIGN: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "as it is": lambda card: json.dumps(card).encode(),
    "more skills than are read": lambda card: json.dumps({**card, "skills": [{"id": "x"}] * 1001}).encode(),
    "deeper than is read": lambda card: json.dumps({**card, "x": json.loads("[" * 70 + "]" * 70)}).encode(),
    "without a name": lambda card: json.dumps({k: v for k, v in card.items() if k != "name"}).encode(),
    "behind a byte order mark": lambda card: b"\xef\xbb\xbf" + json.dumps(card).encode(),
    "in UTF-16": lambda card: json.dumps(card).encode("utf-16"),
    "of another spelling": lambda card: json.dumps(
        {"name": "x", "supported_interfaces": card["supportedInterfaces"]}
    ).encode(),
    "with what no JSON has": lambda card: json.dumps({**card, "x": float("nan")}).encode(),
}


@pytest.mark.parametrize("spell", FOREIGN.values(), ids=FOREIGN)
async def test_no_card_passes_unread_where_the_policy_says_no_dialect(mesh: Any, raw: Raw, spell: Any) -> None:
    raw.body = spell(raw.card(supportedInterfaces=[evil()]))
    response = await get(await mesh(to(raw, dialect="")))

    assert response.status_code == 502
    assert '"url"' not in response.text


@pytest.mark.parametrize("path", [f"{PATH}?x=1", "/.well-known/agent%2Dcard.json", "//.well-known//agent-card.json"])
@pytest.mark.parametrize("dialect", ["", ", dialect: a2a"])
async def test_a_card_is_one_by_every_spelling_of_its_path(mesh: Any, raw: Raw, path: str, dialect: str) -> None:
    raw.say(supportedInterfaces=[evil(), raw.card()["supportedInterfaces"][0]])
    made = await mesh(to(raw, dialect=dialect))
    response = await get(made, f"/raw{path}")

    assert [one["url"] for one in response.json()["supportedInterfaces"]] == [f"http://127.0.0.1:{made.port}/raw/"]


@pytest.mark.parametrize("path", ["/raw", "/raw?x=1", "/raw/", "/intent/raw/", "/intent/raw"])
async def test_an_extended_card_leads_here_by_whatever_path_it_was_asked_for(mesh: Any, raw: Raw, path: str) -> None:
    interface = {"protocolBinding": "JSONRPC", "protocolVersion": "1.0"}
    card = raw.card(
        supportedInterfaces=[
            {**interface, "url": f"http://127.0.0.1:{raw.port}/rpc"},
            {**interface, "url": "http://10.1.2.3:9/rpc"},
        ]
    )
    raw.body = json.dumps({"jsonrpc": "2.0", "id": 1, "result": card}).encode()
    made = await mesh(to(raw) + '  other: {url: "http://10.1.2.3:9", kind: agent}\n')
    if "intent" in path:
        from meshd.intent.resolver import alone

        made.proxy.intents = alone(made.proxy.policy)
    response = await post(made, path, {"jsonrpc": "2.0", "id": 1, "method": "GetExtendedAgentCard"})

    assert [one["url"] for one in response.json()["result"]["supportedInterfaces"]] == [
        f"http://127.0.0.1:{made.port}/raw/rpc",
        f"http://127.0.0.1:{made.port}/other/rpc",
    ]


@pytest.mark.parametrize("answer", [{"RESULT": {}}, [{"result": {}}]])
async def test_a_card_under_another_name_than_the_result_s_is_refused(mesh: Any, raw: Raw, answer: Any) -> None:
    raw.body = json.dumps(answer).encode()
    response = await post(await mesh(to(raw)), "/raw/", {"jsonrpc": "2.0", "id": 1, "method": "GetExtendedAgentCard"})

    assert "error" in response.json()
    assert "RESULT" not in response.text


async def test_an_extended_card_over_grpc_that_is_named_by_metadata_leads_here(mesh: Any, agent: Any) -> None:
    made = await mesh(
        f"upstreams:\n"
        f'  echo: {{url: "http://127.0.0.1:{agent.port}", kind: agent, dialect: a2a}}\n'
        f'  echo-grpc: {{url: "http://127.0.0.1:{agent.grpc_port}", kind: agent, dialect: a2a}}\n'
    )
    metadata = (("a2a-version", "1.0"), ("x-meshd-target", "echo-grpc"))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{made.port}") as channel:
        stub = a2a_pb2_grpc.A2AServiceStub(channel)
        card = await stub.GetExtendedAgentCard(GetExtendedAgentCardRequest(), metadata=metadata, timeout=20)

    http = {one.url for one in card.supported_interfaces if one.protocol_binding != "GRPC"}
    assert http == {f"http://127.0.0.1:{made.port}/echo/", f"http://127.0.0.1:{made.port}/echo"}


async def test_an_address_with_a_user_in_it_is_none(mesh: Any, raw: Raw) -> None:
    made = await mesh(to(raw))
    reply = await made.fetch(f"GET http://127.0.0.1:{made.port}@evil.example/raw{PATH} HTTP/1.1\r\n\r\n".encode())

    assert reply.status == 400
    assert not raw.asked


async def test_a_call_without_a_host_is_led_here(mesh: Any, raw: Raw) -> None:
    made = await mesh(to(raw))
    made.proxy.cards.port = made.port
    reply = await made.fetch(f"GET /raw{PATH} HTTP/1.0\r\n\r\n".encode())

    assert json.loads(reply.body)["supportedInterfaces"][0]["url"] == f"http://127.0.0.1:{made.port}/raw/"
