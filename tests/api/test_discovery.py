"""DiscoveryService over gRPC and JSON: who registers, who is found, and by whom."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from meshd.discovering import Discovering
from meshd.discovery.entry import Entry, Origin, Sort
from meshd_sdk.v1 import discovery_pb2 as pb
from meshd_sdk.v1 import discovery_pb2_grpc, session_pb2, session_pb2_grpc
from tests.api.house import House, house, refusal
from tests.proxy.harness import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

POLICY = """
agent: ann
upstreams:
  billing: {url: "http://127.0.0.1:9", kind: tool, tools: {refund: Refund a customer., charge: Charge a customer.}}
  reports: {url: "http://127.0.0.1:9", kind: agent, description: Writes reports on sales., version: 1.4.0}
  secret: {url: "http://127.0.0.1:9", kind: tool, tools: {refund_all: Refund every customer.}}
  bob: {session: true}
rules:
  - {match: {target: secret}, deny: not for you}
"""


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path, POLICY) as made:
        discovering = Discovering(made.mesh.proxy, lambda: made.mesh.ledger)
        discovering.start(made.mesh, "127.0.0.1:1")
        await until(lambda: {"billing", "reports", "secret"} <= set(discovering.wide.owners()))
        yield made
        await discovering.close()


def stub(one: House) -> Any:
    return discovery_pb2_grpc.DiscoveryServiceStub(one.channel)


async def find(one: House, intent: str, **more: Any) -> list[tuple[str, str]]:
    context = await one.open()
    answer = await stub(one).Find(pb.FindRequest(token=context.token, intent=intent, **more))
    return [(match.agent.name, match.tool) for match in answer.matches]


async def test_what_is_wanted_is_found_and_what_is_denied_is_not(one: House) -> None:
    assert (await find(one, "refund a customer"))[0] == ("billing", "refund")
    assert all(owner != "secret" for owner, _ in await find(one, "refund every customer"))
    assert (await find(one, "a report on sales"))[0] == ("reports", "")
    assert await find(one, "quantum chromodynamics") == []
    assert len(await find(one, "customer", matches_max=1)) == 1


async def test_a_version_is_a_range(one: House) -> None:
    assert await find(one, "reports on sales", version="^1.2") == [("reports", "")]
    assert await find(one, "reports on sales", version=">=2") == []
    assert await find(one, "refund a customer", version="^1") == []


async def test_what_an_agent_says_in_its_session_is_found(one: House) -> None:
    agent = pb.Agent(name="bob", description="Paints pictures.", intents=["draw a cat"])
    agent.tools.append(pb.Tool(name="paint", description="Paint a picture of a cat.", input_schema="{}"))
    stream = session_pb2_grpc.SessionServiceStub(one.channel).Connect()
    await stream.write(session_pb2.ConnectRequest(hello=session_pb2.Hello(revision=1, agent=agent, credit=1)))
    assert (await stream.read()).HasField("welcome")
    catalogue = one.mesh.discovering.wide
    await until(lambda: catalogue.get(Sort.TOOL, "bob", "paint") is not None)
    assert ("bob", "paint") in await find(one, "paint a cat")
    await stream.write(session_pb2.ConnectRequest(goodbye=session_pb2.Goodbye()))
    await until(lambda: catalogue.get(Sort.TOOL, "bob", "paint") is None)
    assert await find(one, "paint a cat") == []


async def test_a_session_under_the_name_of_an_upstream_fills_nothing(one: House) -> None:
    agent = pb.Agent(name="billing", description="Gives money away.")
    stream = session_pb2_grpc.SessionServiceStub(one.channel).Connect()
    await stream.write(session_pb2.ConnectRequest(hello=session_pb2.Hello(revision=1, agent=agent, credit=1)))
    welcome = (await stream.read()).welcome
    assert "called by nobody" in welcome.notices[0]
    assert one.mesh.discovering.catalogue.origins("billing") == [Origin.POLICY]
    await stream.write(session_pb2.ConnectRequest(goodbye=session_pb2.Goodbye()))
    assert await stream.read() is grpc.aio.EOF
    assert one.mesh.discovering.catalogue.origins("billing") == [Origin.POLICY]


async def test_an_agent_registers_and_renews(one: House) -> None:
    agent = pb.Agent(name="ann", description="Knows the law.", version="2.0.0")
    first = await stub(one).Register(pb.RegisterRequest(agent=agent))
    assert first.lease.seconds == 60
    catalogue = one.mesh.discovering.wide
    assert catalogue.get(Sort.AGENT, "ann", "ann").version == "2.0.0"
    agent.version = "2.1.0"
    again = await stub(one).Register(pb.RegisterRequest(agent=agent, registration=first.registration))
    assert again.registration == first.registration
    assert catalogue.get(Sort.AGENT, "ann", "ann").version == "2.1.0"


async def test_a_name_that_is_anothers_is_refused(one: House) -> None:
    for name in ("billing", "reports", "bob"):
        told = await refusal(stub(one).Register(pb.RegisterRequest(agent=pb.Agent(name=name))))
        assert (told.code(), "another's" in told.details()) == (grpc.StatusCode.PERMISSION_DENIED, True), name
    await stub(one).Register(pb.RegisterRequest(agent=pb.Agent(name="eve", description="first")))
    for secret in ("", "guess"):
        asked = pb.RegisterRequest(agent=pb.Agent(name="eve", description="second"), registration=secret)
        told = await refusal(stub(one).Register(asked))
        assert told.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "held by another agent" in told.details()
    assert one.mesh.discovering.wide.get(Sort.AGENT, "eve", "eve").description == "first"


async def test_whoever_does_not_renew_falls_out_and_the_name_is_free(one: House) -> None:
    await stub(one).Register(pb.RegisterRequest(agent=pb.Agent(name="eve", description="first")))
    registering = one.mesh.discovering.registering
    before = registering._wall_clock
    registering._wall_clock = lambda: before() + 61.0
    one.mesh.discovering.expire(0.0)
    assert one.mesh.discovering.wide.get(Sort.AGENT, "eve", "eve") is None
    store = one.mesh.ledger.store()
    assert store is not None
    while await store.keys("names"):  # names do not pile up in the store
        await asyncio.sleep(0)
    await stub(one).Register(pb.RegisterRequest(agent=pb.Agent(name="eve", description="second")))
    assert one.mesh.discovering.wide.get(Sort.AGENT, "eve", "eve").description == "second"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"agent": {"name": ""}}, "agent.name"),
        ({"agent": {"name": "No Name"}}, "agent.name"),
        ({"agent": {"name": "app"}}, "agent.name"),
        ({"agent": {"name": "eve"}, "lease": "0.1s"}, "lease"),
        ({"agent": {"name": "eve"}, "lease": "999999s"}, "lease"),
        ({"agent": {"name": "eve", "version": "new"}}, "version"),
        ({"agent": {"name": "eve", "description": "x" * 300_000}}, "agent"),
        ({"agent": {"name": "eve", "tools": [{"name": "a"}, {"name": "a"}]}}, "twice"),
        ({"agent": {"name": "eve", "tools": [{"name": "a", "inputSchema": "{"}]}}, "schema"),
    ],
)
async def test_what_cannot_be_registered(one: House, request_: Any, field: str) -> None:
    status, said = await one.ask("DiscoveryService/Register", request_)
    assert status == 400
    assert field in said["message"]


@pytest.mark.parametrize(
    ("more", "status_", "word"),
    [
        ({"intent": ""}, 400, "intent"),
        ({"intent": "x" * 2000}, 400, "intent"),
        ({"intent": "x", "matchesMax": 1000}, 400, "matches_max"),
        ({"intent": "x", "version": "newest"}, 400, "version"),
        ({"intent": "x", "token": "nonsense"}, 401, "token"),
        ({"intent": "x", "token": ""}, 401, "token"),
    ],
)
async def test_what_cannot_be_found_by(one: House, more: Any, status_: int, word: str) -> None:
    context = await one.open()
    status, said = await one.ask("DiscoveryService/Find", {"token": context.token, **more})
    assert status == status_
    assert word in said["message"]


async def test_a_watch_says_what_changes(one: House) -> None:
    context = await one.open()
    asked = pb.WatchRequest(find=pb.FindRequest(token=context.token, intent="translate a letter"))
    watch = stub(one).Watch(asked)
    first = await watch.read()
    assert (list(first.changed), list(first.gone)) == ([], [])
    entry = Entry(Sort.AGENT, "reports", "reports", "Translates letters.", origin=Origin.A2A)
    catalogue = one.mesh.discovering.catalogue
    catalogue.drop("reports", Origin.POLICY)
    catalogue.replace("reports", Origin.A2A, [entry])
    second = await watch.read()
    assert [match.agent.name for match in second.changed] == ["reports"]
    catalogue.drop("reports", Origin.A2A)
    third = await watch.read()
    assert list(third.gone) == ["reports"]
    watch.cancel()


async def test_an_agent_that_is_found_shows_no_tool_that_may_not_be_called(tmp_path: Path) -> None:
    document = POLICY + "  - {match: {target: mixed, tool: wipe}, deny: never}\n"
    mixed = (
        '  mixed: {url: "http://127.0.0.1:9", dialect: mcp, kind: agent, discover: false, '
        "description: Keeps archives., tools: {stow: Put away., wipe: Erase all.}}\n"
    )
    async with house(tmp_path, document.replace("  bob:", f"{mixed}  bob:")) as made:
        discovering = Discovering(made.mesh.proxy, lambda: made.mesh.ledger)
        discovering.start(made.mesh, "127.0.0.1:1")
        await until(lambda: "mixed" in discovering.wide.owners())
        context = await made.open()
        answer = await stub(made).Find(pb.FindRequest(token=context.token, intent="keeps archives"))
        shown = next(match.agent for match in answer.matches if match.agent.name == "mixed" and not match.tool)
        await discovering.close()

    assert [tool.name for tool in shown.tools] == ["stow"]
