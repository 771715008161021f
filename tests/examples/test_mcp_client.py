"""The official MCP clients in TypeScript, as they are, at the gateway: both packages, both transports."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.examples.conftest import EXAMPLE
from tests.gateway.conftest import document, mesh, serve, upstream
from tests.gateway.servers import Docs, Sums

__all__ = ["mesh", "serve", "upstream"]


async def run(node: str, *arguments: str) -> list[Any]:
    """Run the client; return what it printed, line by line."""
    program = str(EXAMPLE / "build" / "mcp_client.js")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(node, program, *arguments, stdout=pipe, stderr=pipe)
    said, complaint = await process.communicate()
    assert process.returncode == 0, complaint.decode()
    return [json.loads(line) for line in said.splitlines()]


@pytest.mark.parametrize(("which", "path"), [("v2", "/mcp"), ("v1", "/mcp"), ("sse", "/mcp/sse")])
async def test_a_client_has_all_servers_and_is_refused_what_rules_forbid(
    built: str, mesh: Any, serve: Any, which: str, path: str
) -> None:
    docs, sums = Docs("docs"), Sums()
    rules = "rules: [{match: {target: docs, tool: delete}, deny: ask a person}]\n"
    made = await mesh(document({"docs": await serve(docs.app), "sums": await serve(sums.app)}, rules))
    listed, found, added, refused = await run(
        built,
        f"http://127.0.0.1:{made.port}{path}",
        which,
        'docs__search={"words": "bees"}',
        'sums__add={"a": 1, "b": 2}',
        'docs__delete={"path": "/"}',
    )
    assert {"docs__search", "sums__add"} <= set(listed["tools"])
    assert "docs__delete" not in listed["tools"]
    assert (listed["prompts"], listed["resources"]) == (["docs__summary"], ["note://today"])
    assert found["result"]["content"] == [{"type": "text", "text": "docs: bees"}]
    assert added["result"]["content"] == [{"type": "text", "text": "3"}]
    assert "ask a person" in refused["error"]
    assert (docs.called, sums.called) == ([("search", "bees")], [(1, 2)])


async def test_it_says_where_nobody_listens(built: str, mesh: Any) -> None:
    with pytest.raises(AssertionError, match="address of the gateway is missing"):
        await run(built)
