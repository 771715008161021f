"""The gateway of the real daemon, with the official client and real servers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from mcp import Client

from tests.end_to_end.sidecar import Sidecar
from tests.gateway.conftest import document, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.gateway.servers import Docs, Sums


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[Sidecar]:
    (tmp_path / "home").mkdir()
    one = Sidecar(tmp_path / "home")
    yield one
    one.kill()


async def test_one_daemon_before_two_servers(sidecar: Sidecar, serve: Any, docs: Docs, sums: Sums) -> None:
    more = "mcp: {disclosure: auto, above: 7}\n"
    ports = {"docs": await serve(docs.app), "sums": await serve(sums.app)}
    await asyncio.to_thread(sidecar.start, document(ports, more))
    async with Client(f"{sidecar.url}/mcp", mode="legacy") as one:
        names = [tool.name for tool in (await one.list_tools()).tools]
        assert names == ["find_tools", "describe_tools", "call_tool"]
        assert text_of(await one.call_tool("sums__add", {"a": 1, "b": 2})) == "3"
        assert await asyncio.to_thread(sidecar.metric, "meshd_mcp_sessions") == 1
        assert await asyncio.to_thread(sidecar.metric, "meshd_mcp_definition_tokens_saved_total") > 0
        assert await asyncio.to_thread(sidecar.metric, "meshd_calls_total", target="sums", result="ok") > 0
        # Listing again and again is no loop: not the client's, and not what the gateway asks for it.
        for _ in range(30):
            assert (await one.session.list_tools()).tools
        # A reload that takes a server away takes its tools away; the session lives on.
        sidecar.policy.write_text(document({"docs": ports["docs"]}))
        assert (await asyncio.to_thread(sidecar.admin, "/v1/reload", "POST"))["http_status"] == 200
        names = [tool.name for tool in (await one.list_tools()).tools]
        assert names
        assert all(name.startswith("docs__") for name in names)
        # The drain does not wait for a client that listens.
        assert await asyncio.to_thread(sidecar.stop) == 0


async def test_a_long_result_at_the_real_daemon(sidecar: Sidecar, serve: Any, docs: Docs) -> None:
    more = "mcp: {result_tokens_max: 64, result_kept: 1h}\n"
    await asyncio.to_thread(sidecar.start, document({"docs": await serve(docs.app)}, more))
    words = "cats " * 1000
    async with Client(f"{sidecar.url}/mcp", mode="2026-07-28") as one:
        result = await one.call_tool("docs__search", {"words": words})
        shown, note, link = result.content
        assert shown.text == f"docs: {words}"[:256]
        assert "for 60 minutes" in note.text
        assert (await one.read_resource(str(link.uri))).contents[0].text == f"docs: {words}"
    for name in ("bytes_total", "tokens_count", "tokens_left_out_total"):
        assert await asyncio.to_thread(sidecar.metric, f"meshd_mcp_result_{name}", target="docs") >= 1
    assert await asyncio.to_thread(sidecar.metric, "meshd_mcp_results_clipped_total", target="docs") == 1
    assert await asyncio.to_thread(sidecar.metric, "meshd_mcp_results_kept") == 1
    assert await asyncio.to_thread(sidecar.metric, "meshd_mcp_results_kept_bytes") > 5000
    # A policy without sense is not taken, and says where.
    sidecar.policy.write_text(document({"docs": 1}, "mcp: {result_tokens_max: 0}\n"))
    told = await asyncio.to_thread(sidecar.admin, "/v1/reload", "POST")
    assert told["http_status"] >= 400
    assert ":3:26: must be greater than or equal to 1" in str(told)
