"""Fixtures: a data plane before servers that it starts, or that speak the transport of 2024-11-05."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meshd.bridge import sandbox
from tests.conftest import is_everything_required
from tests.proxy.conftest import mesh, upstream
from tests.rpc.conftest import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mcp import Client

__all__ = ["mesh", "serve", "started", "upstream"]

HERE = Path(__file__).parent
SERVER = HERE / "server.py"
SERVER_OF_2025 = HERE / "server_of_2025.py"
BAD = HERE / "bad_server.py"
READ = sorted({sys.prefix, sys.base_prefix, str(HERE)})
"""What Python and the servers need of this machine besides its system."""


def needs_bwrap() -> None:
    """Skip the test where nothing can be confined, or fail it where nothing may be skipped."""
    try:
        sandbox.usable_bwrap(has_network=False)
    except sandbox.Unusable as error:
        if is_everything_required():
            raise
        pytest.skip(str(error))


def document(*command: str, rest: str = "", rules: str = "", more: str = "", **settings: Any) -> str:
    """Return a policy that starts `command` as the upstream `files`."""
    settings = {"command": [sys.executable, *command], "sandbox": "none"} | settings
    if settings["sandbox"] == "bwrap":
        needs_bwrap()
    if settings["sandbox"] != "none":
        settings = {"read": READ} | settings
    process = ", ".join(f"{key}: {_yaml(value)}" for key, value in settings.items())
    return f"upstreams:\n  files: {{kind: tool, dialect: mcp, process: {{{process}}}{rest}}}\n{more}{rules}"


def _yaml(value: Any) -> str:
    import json

    return json.dumps(value)


@pytest.fixture
async def started(mesh: Any) -> AsyncIterator[Callable[..., Any]]:
    """Return a function that makes a data plane before a program; all that it has started is gone after the test."""
    made: list[Any] = []

    async def make(*command: str, **settings: Any) -> Any:
        made.append(await mesh(document(*command, **settings)))
        return made[-1]

    yield make
    for one in made:
        one.proxy.pools.close()
        await one.proxy.ended()


@asynccontextmanager
async def client(mesh: Any, mode: Any = "auto", **options: Any) -> AsyncIterator[Client]:
    """Yield the official client."""
    from mcp import Client

    async with Client(f"http://127.0.0.1:{mesh.port}/files/mcp", mode=mode, **options) as made:
        yield made


def text_of(result: Any) -> str:
    return str(result.content[0].text)


def sessions(mesh: Any) -> Any:
    """Return the sessions of `files`, once a call has come."""
    return mesh.proxy.pools.pool_for(mesh.proxy.policy.upstreams["files"])._sessions
