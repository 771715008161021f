"""The official client, pointed at a sidecar by the card that it gets there."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import httpx
from a2a.client import A2ACardResolver, ClientConfig, ClientFactory
from a2a.helpers import new_text_message
from a2a.types import AgentCard, Role, SendMessageRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BINDINGS = ("JSONRPC", "HTTP+JSON", "GRPC")
VERSIONS = ("1.0", "0.3")


def document(agent: Any, rules: str = "", extra: str = "") -> str:
    """A policy with the sample agent as `echo`, and its gRPC port as `echo-grpc`."""
    return (
        "upstreams:\n"
        f'  echo: {{url: "http://127.0.0.1:{agent.port}", kind: agent, dialect: a2a{extra}}}\n'
        f'  echo-grpc: {{url: "http://127.0.0.1:{agent.grpc_port}", kind: agent, dialect: a2a}}\n{rules}'
    )


async def card_at(base: str, **kwargs: Any) -> AgentCard:
    """Return the card that the official resolver gets."""
    async with httpx.AsyncClient(trust_env=False) as http:
        return await A2ACardResolver(http, base).get_agent_card(**kwargs)


def only(card: AgentCard, binding: str, version: str) -> AgentCard:
    """Return a card with the one interface that a test is about."""
    one = AgentCard()
    one.CopyFrom(card)
    del one.supported_interfaces[:]
    one.supported_interfaces.extend(
        [
            interface
            for interface in card.supported_interfaces
            if (interface.protocol_binding, interface.protocol_version) == (binding, version)
        ]
    )
    assert len(one.supported_interfaces) == 1
    return one


@asynccontextmanager
async def client_of(card: AgentCard, *, is_streaming: bool = False, is_polling: bool = False) -> AsyncIterator[Any]:
    """Return the official client for a card, with nothing set but what its own documentation has."""
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        config = ClientConfig(
            streaming=is_streaming,
            polling=is_polling,
            httpx_client=http,
            grpc_channel_factory=grpc.aio.insecure_channel,
            supported_protocol_bindings=list(BINDINGS),
        )
        client = ClientFactory(config).create(card)
        try:
            yield client
        finally:
            await client.close()


def message(text: str, **fields: Any) -> SendMessageRequest:
    """Return what a client sends."""
    said = new_text_message(text, role=Role.ROLE_USER)
    for name, value in fields.items():
        setattr(said, name, value)
    return SendMessageRequest(message=said)


async def said(client: Any, request: SendMessageRequest) -> list[Any]:
    """Send a message and return all that is answered."""
    return [response async for response in client.send_message(request)]
