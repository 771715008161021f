"""Fixtures: real servers behind the gateway of a real data plane."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from mcp import Client

from tests.gateway.servers import Docs, Sums
from tests.proxy.conftest import mesh, upstream
from tests.rpc.conftest import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["mesh", "serve", "upstream"]


def document(servers: dict[str, int], more: str = "", options: dict[str, str] | None = None) -> str:
    """Return a policy with these MCP servers."""
    lines = [
        f'  {name}: {{url: "http://127.0.0.1:{port}", kind: tool, dialect: mcp{(options or {}).get(name, "")}}}'
        for name, port in servers.items()
    ]
    return "upstreams:\n" + "\n".join(lines) + "\n" + more


@asynccontextmanager
async def connect(mesh: Any, mode: Any = "legacy", path: str = "/mcp", **options: Any) -> AsyncIterator[Client]:
    """Connect the official client to the gateway."""
    async with Client(f"http://127.0.0.1:{mesh.port}{path}", mode=mode, **options) as one:
        yield one


def text_of(result: Any) -> str:
    """Return the text of a tool's result."""
    return str(result.content[0].text)


@pytest.fixture
def docs() -> Docs:
    return Docs()


@pytest.fixture
def sums() -> Sums:
    return Sums()


@pytest.fixture
async def both(mesh: Any, serve: Any, docs: Docs, sums: Sums) -> Any:
    """Return a data plane with both servers behind its gateway."""
    return await mesh(document({"docs": await serve(docs.app), "sums": await serve(sums.app)}))
