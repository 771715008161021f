"""Agent cards, OpenAPI documents, gRPC reflection, the policy's own words: over real sockets."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import AgentSkill
from grpc_reflection.v1alpha import reflection
from starlette.applications import Starlette

from meshd.discovery.entry import Sort
from meshd.sources.asking import Failed
from meshd.sources.openapi import read_document
from meshd.sources.tending import State
from tests.grpc import testing_pb2_grpc as rpc
from tests.grpc.service import Interop
from tests.proxy.harness import until
from tests.rpc.servers import Echo, card

SKILL = AgentSkill(
    id="sum", name="Sum up", description="Sums a report up.", tags=["reports"], examples=["sum up the last quarter"]
)


def carded(version: str) -> Any:
    """Return an agent by the official SDK that has one skill, and serves its card."""
    mine = card("http://here/", version=version)
    mine.skills.append(SKILL)
    DefaultRequestHandler(agent_executor=Echo(), task_store=InMemoryTaskStore(), agent_card=mine)
    return Starlette(routes=create_agent_card_routes(mine))


def fixed(body: bytes, status: int = 200, at: str = "") -> Any:
    """Answer each request with a body; another path than `at` with 404."""

    async def script(peer: Any) -> None:
        while True:
            request = await peer.request()
            is_there = not at or request.target.decode() == at
            head = b"HTTP/1.1 %d Well\r\nContent-Length: %d\r\n\r\n"
            peer.send(head % (status, len(body)) + body if is_there else head % (404, 0))

    return script


async def test_an_agent_of_the_official_sdk(house: Any, serve: Any) -> None:
    one = await house(
        f'upstreams:\n  echo: {{url: "http://127.0.0.1:{await serve(carded("1.0"))}", dialect: a2a, card: {{origins: ["http://here"]}}}}\n'
    )
    tending = await one.looked("echo")
    assert tending.why == ""
    agent = one.catalogue.get(Sort.AGENT, "echo", "echo")
    assert (agent.description, agent.title, agent.version) == ("Says what it was told.", "echo", "1")
    skill = one.catalogue.get(Sort.SKILL, "echo", "sum")
    assert (skill.title, skill.intents) == ("Sum up", ("reports", "sum up the last quarter"))


@pytest.mark.parametrize("path", ["/.well-known/agent-card.json", "/.well-known/agent.json"])
async def test_a_card_of_0_3_and_of_before(house: Any, upstream: Any, path: str) -> None:
    body = {"name": "old", "url": "http://here", "version": "0.9.1", "description": "An old one.", "skills": []}
    up = await upstream(fixed(json.dumps(body).encode(), at=path))
    one = await house(
        f'upstreams:\n  old: {{url: "http://127.0.0.1:{up.port}", dialect: a2a, card: {{origins: ["http://here"]}}}}\n'
    )
    await one.looked("old")
    assert one.catalogue.get(Sort.AGENT, "old", "old").version == "0.9.1"


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"{", 200, "upstream_unreachable"),
        (b"[]", 200, "upstream_unreachable"),
        (b'{"name": "x"}', 200, "upstream_unreachable"),
        (b'{"name": 7, "url": "http://x", "skills": {}}', 200, "upstream_unreachable"),
        (b"[" * 100_000, 200, "upstream_unreachable"),
        (b"{}", 500, "status"),
    ],
)
async def test_a_card_that_is_none(house: Any, upstream: Any, body: bytes, status: int, word: str) -> None:
    up = await upstream(fixed(body, status))
    one = await house(
        f'upstreams:\n  odd: {{url: "http://127.0.0.1:{up.port}", dialect: a2a, card: {{origins: ["http://here"]}}}}\n'
        "rules: [{match: {}, retry: {attempts: 0}}]\n"
    )
    tending = await one.looked("odd")
    assert (tending.state, tending.results) == (State.NEW, {word: 1})


async def test_skills_that_are_odd_leave_the_others(house: Any, upstream: Any) -> None:
    skills: list[Any] = [
        {"id": "a", "name": "A", "tags": "no list"},
        7,
        {"id": "a"},
        {"name": "B", "examples": [1, "b"]},
    ]
    body = {"name": "x", "url": "http://here", "skills": skills}
    up = await upstream(fixed(json.dumps(body).encode()))
    one = await house(
        f'upstreams:\n  x: {{url: "http://127.0.0.1:{up.port}", dialect: a2a, card: {{origins: ["http://here"]}}}}\n'
    )
    await one.looked("x")
    assert one.names("x", Sort.SKILL) == ["a"]


DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "Billing", "version": "2.1.0", "description": "Invoices."},
    "paths": {
        "/invoices/{id}": {
            "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
            "get": {"operationId": "getInvoice", "summary": "Read an invoice.", "tags": ["invoices"]},
            "delete": {"description": "Delete an invoice."},
        },
        "/refunds": {
            "post": {
                "operationId": "refund",
                "summary": "Refund a customer.",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Refund"}}},
                },
            }
        },
    },
    "components": {
        "schemas": {
            "Refund": {
                "type": "object",
                "properties": {
                    "amount": {"type": "number"},
                    "of": {"$ref": "#/components/schemas/Refund"},
                    "out": {"$ref": "https://evil.test/x.json"},
                },
            }
        }
    },
}


async def test_an_openapi_document_of_the_upstream_itself(house: Any, upstream: Any) -> None:
    up = await upstream(fixed(json.dumps(DOCUMENT).encode(), at="/openapi.json"))
    one = await house(
        f'upstreams:\n  billing: {{url: "http://127.0.0.1:{up.port}", kind: tool, openapi: /openapi.json}}\n'
    )
    await one.looked("billing")
    assert one.names("billing") == ["getInvoice", "DELETE /invoices/{id}", "refund"]
    read = one.catalogue.get(Sort.TOOL, "billing", "getInvoice")
    assert (read.is_read_only, read.version, read.title) == (True, "2.1.0", "GET /invoices/{id}")
    assert json.loads(read.input_schema)["required"] == ["id"]
    refund = json.loads(one.catalogue.get(Sort.TOOL, "billing", "refund").input_schema)
    assert refund["required"] == ["body"]
    body = refund["properties"]["body"]["properties"]
    assert body == {"amount": {"type": "number"}, "of": {}, "out": {}}


async def test_an_openapi_document_in_a_file_and_at_an_address(house: Any, upstream: Any, tmp_path: Any) -> None:
    path = tmp_path / "billing.yaml"
    path.write_text("openapi: 3.0.0\ninfo: {title: x}\npaths: {/a: {get: {summary: An A.}}}\n")
    up = await upstream(fixed(json.dumps(DOCUMENT).encode(), at="/spec"))
    one = await house(
        "upstreams:\n"
        f'  a: {{url: "http://127.0.0.1:1", kind: tool, openapi: "file:{path}"}}\n'
        f'  b: {{url: "http://127.0.0.1:1", kind: tool, openapi: "http://127.0.0.1:{up.port}/spec"}}\n'
        '  c: {url: "http://127.0.0.1:1", kind: tool, openapi: "file:/not/there"}\n'
    )
    for owner in ("a", "b", "c"):
        await one.looked(owner)
    assert one.names("a") == ["GET /a"]
    assert len(one.names("b")) == 3
    assert "cannot be read" in one.tending("c").why


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff\xfe", b"[]", b"{}", b'{"openapi": "3.0.0"}', b"a: &a [*a]", b"openapi: 3\npaths: [", b"- " * 10_000],
)
def test_what_is_no_openapi_document(body: bytes) -> None:
    with pytest.raises(Failed):
        read_document(body, "x")


def test_an_openapi_document_that_multiplies_is_cut() -> None:
    schemas = {f"s{at}": {"properties": {f"p{n}": {"$ref": f"#/s/s{at + 1}"} for n in range(50)}} for at in range(40)}
    body = {"content": {"application/json": {"schema": {"$ref": "#/s/s0"}}}}
    document = {"openapi": "3.1.0", "paths": {"/a": {"post": {"requestBody": body}}}, "s": schemas}
    (entry,) = read_document(json.dumps(document).encode(), "x").entries
    assert len(entry.input_schema) < 1 << 20


async def test_a_grpc_server_reflects_its_services(house: Any) -> None:
    server = grpc.aio.server()
    rpc.add_TestServiceServicer_to_server(Interop(), server)
    names = ("grpc.testing.TestService", reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        at = f'url: "http://127.0.0.1:{port}", kind: agent, protocol: h2, reflection: true'
        one = await house(f"upstreams:\n  grpc: {{{at}}}\n")
        tending = await one.looked("grpc")
        assert tending.why == ""
        found = one.names("grpc")
        assert any(name.endswith("TestService/UnaryCall") for name in found), found
        assert not any(name.startswith("grpc.reflection") for name in found)
        unary = next(entry for entry in one.catalogue.of("grpc") if entry.name.endswith("/UnaryCall"))
        assert "responseSize" in json.loads(unary.input_schema)["properties"]
    finally:
        await server.stop(None)


async def test_a_grpc_server_that_does_not_reflect(house: Any) -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        at = f'url: "http://127.0.0.1:{port}", kind: agent, protocol: h2, reflection: true'
        one = await house(f"upstreams:\n  grpc: {{{at}}}\n")
        tending = await one.looked("grpc")
        assert tending.results == {"status": 1}
        assert "UNIMPLEMENTED" in tending.why
    finally:
        await server.stop(None)


async def test_what_the_policy_says(house: Any) -> None:
    one = await house(
        """
upstreams:
  weather: {url: "http://127.0.0.1:1", kind: agent, description: Tells it., intents: [forecast], version: 1.2.0}
  billing: {url: "http://127.0.0.1:1", kind: tool, tools: {refund: Refund a customer., charge: Charge one.}}
  search: {url: "http://127.0.0.1:1", kind: tool, description: Searches the web.}
  local: {url: "http://127.0.0.1:1", kind: llm, dialect: openai, models: [small, large]}
  quiet: {url: "http://127.0.0.1:1", kind: tool}
"""
    )
    await until(lambda: len(one.catalogue.owners()) == 4)
    found = [(entry.sort.value, entry.owner, entry.name) for entry in one.catalogue]
    assert sorted(found) == [
        ("agent", "weather", "weather"),
        ("model", "local", "large"),
        ("model", "local", "small"),
        ("tool", "billing", "charge"),
        ("tool", "billing", "refund"),
        ("tool", "search", "search"),
    ]
    assert one.catalogue.get(Sort.AGENT, "weather", "weather").version == "1.2.0"
    document = one.mesh.load('upstreams:\n  search: {url: "http://127.0.0.1:1", kind: tool}\n')
    one.discovering.take(document)
    assert len(one.catalogue) == 0


async def test_what_only_looks_opens_no_breaker(house: Any, upstream: Any) -> None:
    """A port that speaks gRPC alone takes no HTTP/1.1: its card is not there, and its callers must not pay for that."""

    async def closes(peer: Any) -> None:
        await peer.request()
        peer.close()

    port = (await upstream(closes)).port
    rule = "rules: [{name: soon, match: {target: up}, breaker: {consecutive: 2, open: 15s}}]"
    one = await house(f'upstreams: {{up: {{url: "http://127.0.0.1:{port}", kind: agent, dialect: a2a}}}}\n{rule}\n')
    await one.looked("up")
    for _ in range(3):
        assert "circuit" not in (await one.again("up")).why
    request = b"GET /up/x HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
    reply = await one.mesh.fetch(request)
    assert b"circuit_open" not in reply.body
    # What callers find out holds for it.
    for _ in range(4):
        reply = await one.mesh.fetch(request)
    assert b"circuit_open" in reply.body, reply.body
    assert "breaker is open" in (await one.again("up")).why
