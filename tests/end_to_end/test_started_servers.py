"""A whole sidecar that starts MCP servers: none is left when it ends, however it ends."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meshd.bridge import ending
from tests.bridge.conftest import BAD, SERVER, document
from tests.bridge.raw import Raw
from tests.end_to_end.sidecar import until

if TYPE_CHECKING:
    from tests.end_to_end.sidecar import Sidecar


def below(sidecar: Sidecar) -> list[int]:
    assert sidecar.process is not None
    return ending.descendants(sidecar.process.pid)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def _with_a_grandchild(sidecar: Sidecar) -> list[int]:
    async with Raw(sidecar.port) as raw:
        await raw.open()
        assert await raw.said("grandchild") == "left"
    return below(sidecar)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("sandbox", ["none", "bwrap"])
def test_no_server_outlives_a_killed_sidecar(sidecar: Sidecar, sandbox: str, loop: str) -> None:
    sidecar.start(document(str(BAD), "stubborn", sandbox=sandbox), MESHD_LOOP=loop)
    pids = asyncio.run(_with_a_grandchild(sidecar))
    assert len(pids) >= 3
    sidecar.kill()
    until(lambda: not any(map(is_alive, pids)), "the end of all servers")


@pytest.mark.parametrize("sandbox", ["none", "bwrap"])
def test_a_drain_ends_servers(sidecar: Sidecar, sandbox: str) -> None:
    sidecar.start(document(str(BAD), "stubborn", sandbox=sandbox))
    pids = asyncio.run(_with_a_grandchild(sidecar))
    assert sidecar.stop() == 0
    assert not any(map(is_alive, pids))


def test_how_it_is_confined_is_logged_and_secrets_stay_here(sidecar: Sidecar) -> None:
    sidecar.start(
        document(str(BAD), "fine", sandbox="bwrap"), OPENAI_API_KEY="sk-meshds-own-key-123456", GIVEN_NOT="secret"
    )
    until(lambda: "files is started for its clients: in bubblewrap, without a network" in sidecar.log)

    async def environ() -> Any:
        async with Raw(sidecar.port) as raw:
            await raw.open()
            return json.loads(await raw.said("environ")), await raw.said(f"read:{sidecar.home}/mesh.key")

    found, key = asyncio.run(environ())
    assert set(found) - {"LC_CTYPE", "PWD"} == {"PATH", "HOME"}
    assert key == "FileNotFoundError"


def test_the_official_client_calls_through_the_whole_chain(sidecar: Sidecar) -> None:
    from mcp import Client, MCPError

    rules = "governance: {allowed_tools: [add]}\n"
    sidecar.start(document(str(SERVER), sandbox="bwrap", rules=rules))

    async def call() -> str:
        async with Client(f"{sidecar.url}/files/mcp") as one:
            with pytest.raises(MCPError, match="The tool keep is not allowed"):
                await one.call_tool("keep", {"value": "x"})
            return str((await one.call_tool("add", {"a": 1, "b": 2})).content[0].text)  # type: ignore[union-attr]

    assert asyncio.run(call()) == "3"


def test_one_that_keeps_failing_opens_its_breaker(sidecar: Sidecar) -> None:
    sidecar.start(document(str(BAD), "crash-at-once"))
    message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}

    async def reasons() -> list[str]:
        async with Raw(sidecar.port) as raw:
            return [(await raw.post(message))[1]["error"]["data"]["reason"] for _ in range(12)]

    found = asyncio.run(reasons())
    assert found[0] == "upstream_unreachable"
    assert found[-1] == "circuit_open"
