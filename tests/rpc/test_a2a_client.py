"""The official A2A client, over JSON-RPC (1.0 and 0.3) and REST through the data plane, against a real agent."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from a2a.client import A2AClientError, ClientConfig, ClientFactory
from a2a.helpers import new_text_message
from a2a.types import Role, SendMessageRequest
from a2a.utils.errors import A2AError, InternalError

from meshd.refusal import TABLE, Reason, Refused
from tests.rpc.servers import card

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from meshd.call import Call
    from tests.proxy.harness import Mesh
    from tests.rpc.servers import Echo

REASONS = (
    Reason.NOT_ALLOWED, Reason.LOOP, Reason.MAX_TURNS, Reason.BUDGET_EXHAUSTED, Reason.APPROVAL_PENDING,
    Reason.APPROVAL_DENIED, Reason.CIRCUIT_OPEN, Reason.STORE_UNAVAILABLE,
)  # fmt: skip
VERSIONS = ("1.0", "0.3")


def document(port: int, rules: str = "", extra: str = ", dialect: a2a") -> str:
    return f'upstreams:\n  echo: {{url: "http://127.0.0.1:{port}", kind: agent{extra}}}\n{rules}'


@asynccontextmanager
async def client(
    mesh: Mesh, version: str = "1.0", binding: str = "JSONRPC", *, is_streaming: bool = False
) -> AsyncIterator[Any]:
    async with httpx.AsyncClient(trust_env=False) as http:
        config = ClientConfig(
            streaming=is_streaming, httpx_client=http, supported_protocol_bindings=["JSONRPC", "HTTP+JSON"]
        )
        base = f"http://127.0.0.1:{mesh.port}/echo" + ("/" if binding == "JSONRPC" else "")
        yield ClientFactory(config).create(card(base, binding, version))


async def say(one: Any, text: str) -> str:
    request = SendMessageRequest(message=new_text_message(text, role=Role.ROLE_USER))
    said = [response async for response in one.send_message(request)]
    return str(said[-1].message.parts[0].text)


@pytest.mark.parametrize("is_streaming", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("extra", [", dialect: a2a", ""], ids=["told", "recognised"])
async def test_a_message_passes(mesh: Any, agent_port: int, version: str, is_streaming: bool, extra: str) -> None:
    made = await mesh(document(agent_port, extra=extra))
    seen: list[Call] = []
    made.per_call.on_admit = lambda call: seen.append(call)
    async with client(made, version, is_streaming=is_streaming) as one:
        assert await say(one, "hello") == "you said hello"
    rpc = seen[0].rpc
    assert rpc is not None
    assert rpc.method in ("SendMessage", "SendStreamingMessage", "message/send", "message/stream")
    assert rpc.key
    assert rpc.is_stream is is_streaming
    assert not rpc.is_read_only
    assert b"hello" in rpc.arguments
    assert rpc.key.encode() not in rpc.arguments


@pytest.mark.parametrize("is_streaming", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason.value)
async def test_what_the_application_sees_of_a_refusal(
    mesh: Any, agent_port: int, echo: Echo, version: str, is_streaming: bool, reason: Reason
) -> None:
    made = await mesh(document(agent_port))

    def refuse(call: Call) -> None:
        made.per_call.on_admit = None
        raise Refused(reason, f"This is why: {reason.value}")

    made.per_call.on_admit = refuse
    async with client(made, version, is_streaming=is_streaming) as one:
        with pytest.raises((A2AClientError, A2AError)) as caught:
            await say(one, "hello")
        assert f"This is why: {reason.value}" in str(caught.value)
        code = TABLE[reason].jsonrpc
        if code == -32603:
            assert isinstance(caught.value, InternalError)
        elif version == "1.0":
            # Its client for 0.3 shows the message alone.
            assert str(code) in str(caught.value)
        if isinstance(caught.value, InternalError) and version == "1.0":
            assert caught.value.data is not None
            assert caught.value.data["reason"] == reason.value
        assert not echo.told
        assert await say(one, "again") == "you said again"


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason.value)
async def test_over_rest_its_client_keeps_the_message(mesh: Any, agent_port: int, echo: Echo, reason: Reason) -> None:
    made = await mesh(document(agent_port))

    def refuse(call: Call) -> None:
        made.per_call.on_admit = None
        assert call.rpc is not None
        assert (call.rpc.binding, call.rpc.method) == ("rest", "SendMessage")
        raise Refused(reason, f"This is why: {reason.value}")

    made.per_call.on_admit = refuse
    async with client(made, binding="HTTP+JSON") as one:
        with pytest.raises(A2AError) as caught:
            await say(one, "hello")
        assert str(caught.value) == f"This is why: {reason.value}"
        assert caught.value.data is not None
        assert caught.value.data["reason"] == reason.value
        assert not echo.told
        assert await say(one, "again") == "you said again"


async def test_rules_match_the_method(mesh: Any, agent_port: int, echo: Echo) -> None:
    rules = "rules:\n  - {name: r, match: {operation: SendMessage}, deny: say nothing}\n"
    made = await mesh(document(agent_port, rules))
    async with client(made) as one:
        with pytest.raises(A2AClientError, match=r"-32014.*say nothing"):
            await say(one, "hello")
    async with client(made, is_streaming=True) as one:
        assert await say(one, "hello") == "you said hello"
    assert echo.told == ["hello"]
