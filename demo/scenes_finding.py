"""Scenes of what can be called: tools of many servers behind one address, and agents by what is wanted of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mcp import Client

from demo.story import detail

if TYPE_CHECKING:
    from demo.story import Story

_WANTED = "how warm is the water at the coast and when is high tide"
_FOREIGN = "sing me a song in Portuguese"


async def show_tools(story: Story) -> None:
    """An MCP client sees the tools of two servers at one address, without those that the policy denies."""
    screen, checks, world = story.screen, story.checks, story.world
    screen.title("10  Two MCP servers behind one address, seen by the official MCP client")
    async with Client(f"{world.mesh_url}/mcp") as client:
        names = sorted(tool.name for tool in (await client.list_tools()).tools)
        screen.step(f"{world.mesh_url}/mcp lists {', '.join(names)}")
        seen = ["calendar__free_days", "calendar__plan_meeting", "notes__read_note", "notes__write_note"]
        checks.claim(names == seen, "tools of both; the one that the policy denies is not there", names)
        note = {"customer": "jones", "text": "likes lamps"}
        await client.call_tool("notes__write_note", note)
        written = _text(await client.call_tool("notes__read_note", {"customer": "jones"}))
        checks.claim(written == "likes lamps", "a call reaches its server, and the answer comes back", written)
        told = await _refused(client, "notes__erase_notes")
        screen.step("the denied one, called by its name all the same:")
        screen.quote(told)
        kept = _text(await client.call_tool("notes__read_note", {"customer": "jones"}))
        checks.claim("erase" in told and kept == "likes lamps", "is refused, and nothing is erased", (told, kept))
    screen.step("$ meshd tools search 'when could we meet'")
    found = await world.cli("tools", "search", "when could we meet")
    screen.step(found.splitlines()[0] if found.strip() else "nothing")
    checks.claim("calendar/" in found.splitlines()[0], "tools are found by words", found)


async def show_intent(story: Story) -> None:
    """A call says what it wants in place of whom it calls; what nobody serves goes to nobody."""
    screen, checks = story.screen, story.checks
    screen.title("11  A call by what is wanted, in place of whom to ask")
    status, target, body = await _want(story, _WANTED)
    screen.step(f"POST /intent/{quote(_WANTED)[:40]}.../run went to {target}, which answered {status}")
    checks.claim((status, target) == (200, "harbour"), "the agent that serves it was found", (status, target, body))
    status, target, body = await _want(story, _FOREIGN)
    screen.step(f"{_FOREIGN!r}: {status}")
    screen.quote(detail(body))
    checks.claim(status == 404 and not target, "what nobody serves goes to nobody", (status, target, body))


async def _want(story: Story, words: str) -> tuple[int, str, str]:
    world = story.world
    headers = {"x-meshd-workflow": world.workflow("intent")}
    url = f"{world.mesh_url}/intent/{quote(words)}/run"
    async with world.http.post(url, json={"task": words}, headers=headers) as reply:
        return reply.status, reply.headers.get("x-meshd-intent-target", ""), await reply.text()


async def _refused(client: Client, tool: str) -> str:
    """Call a tool and return in what words that is refused; empty where it is carried out."""
    try:
        result = await client.call_tool(tool, {})
    except Exception as error:  # noqa: BLE001 - whatever the SDK makes of a refusal
        return str(error)
    return _text(result) if result.is_error else ""


def _text(result: Any) -> str:
    return str(result.content[0].text) if result.content else ""
