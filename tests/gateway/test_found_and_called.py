"""Whoever wants a tool by words finds it and calls it, also where all tools are shown."""

from __future__ import annotations

from typing import Any

from tests.gateway.conftest import connect, text_of


async def test_a_tool_is_found_by_words_and_called_where_all_are_shown(both: Any, docs: Any, sums: Any) -> None:
    async with connect(both) as one:
        assert "find_tools" not in [tool.name for tool in (await one.list_tools()).tools]
        found = await one.call_tool("find_tools", {"words": "add two numbers"})
        best = found.structured_content["tools"][0]["name"]
        assert best == "sums__add"
        described = await one.call_tool("describe_tools", {"names": [best]})
        assert set(described.structured_content["tools"][0]["inputSchema"]["properties"]) == {"a", "b"}
        assert text_of(await one.call_tool("call_tool", {"name": best, "arguments": {"a": 1, "b": 2}})) == "3"
    assert (sums.called, docs.called) == ([(1, 2)], [])
