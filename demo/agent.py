"""An agent in a process of its own: a small HTTP server that uses an official SDK and calls other agents.

    python -m demo.agent NAME [--port N]

What each agent does stands in `demo.roles`. It knows one address, `MESHD_URL`, and the two that the SDKs read for
themselves (`OPENAI_BASE_URL`, `ANTHROPIC_BASE_URL`). All that it does for meshd is to pass on the context header that
it received (`carry`). What it sees goes to standard output, one JSON object a line, for the terminal of the demo.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import signal
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import aiohttp
from aiohttp import web

if TYPE_CHECKING:
    from anthropic.types import MessageParam

CONTEXT_HEADER = "x-meshd-context"
_AGENT_TIMEOUT = aiohttp.ClientTimeout(total=50)
Result = dict[str, Any]
Role = Callable[["Agent", Result, dict[str, str]], Awaitable[Result]]


class Agent:
    """One agent: a name, a role, and a way to think."""

    def __init__(self, name: str, role: Role) -> None:
        self.name = name
        self.role = role
        self.mesh_url = os.environ["MESHD_URL"]
        self.model = os.environ.get("DEMO_MODEL", "stand-in")
        self.uses_anthropic = name == "researcher" and "ANTHROPIC_API_KEY" in os.environ
        self.session: aiohttp.ClientSession | None = None

    def say(self, event: str, **fields: Any) -> None:
        """Tell the terminal what happened."""
        print(json.dumps({"event": event, "agent": self.name, **fields}), flush=True)

    async def run(self, request: web.Request) -> web.Response:
        """Answer `POST /run` with a body `{"task": ...}`."""
        try:
            body = await request.json()
            task = str(body["task"])
        except (ValueError, KeyError, TypeError) as error:
            return web.json_response({"error": f"expected a JSON object with a task: {error!r}"}, status=400)
        carry = {key: value for key, value in request.headers.items() if key.lower() == CONTEXT_HEADER}
        seen = {key.lower(): value for key, value in request.headers.items() if key.lower().startswith("x-meshd-")}
        self.say("received", task=task, seen=seen)
        return web.json_response(await self.role(self, body, carry))

    async def call(self, agent: str, body: Result, carry: dict[str, str]) -> Result:
        """Call another agent through meshd; a refusal comes back as a result with `refused`."""
        assert self.session is not None
        async with self.session.post(f"{self.mesh_url}/{agent}/run", json=body, headers=carry) as reply:
            raw = await reply.text()
            if reply.status == 200:
                return cast("Result", json.loads(raw))
            reason = reply.headers.get("x-meshd-reason", "")
            self.say("refused", target=agent, status=reply.status, reason=reason)
            return {"refused": {"by_call_to": agent, "status": reply.status, "reason": reason, "body": raw[:2000]}}

    async def think(self, prompt: str, carry: dict[str, str]) -> str:
        """Ask the LLM with the official SDK of this agent's choice, streaming."""
        if self.uses_anthropic:
            return await self._think_anthropic(prompt, carry)
        return await self._think_openai(prompt, carry)

    async def _think_openai(self, prompt: str, carry: dict[str, str]) -> str:
        from openai import AsyncOpenAI

        async with AsyncOpenAI() as client:
            stream = await client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": prompt}], stream=True, extra_headers=carry
            )
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        self.say("thought", sdk="openai", pieces=len(pieces))
        return "".join(pieces)

    async def _think_anthropic(self, prompt: str, carry: dict[str, str]) -> str:
        from anthropic import AsyncAnthropic

        messages: list[MessageParam] = [{"role": "user", "content": prompt}]
        async with (
            AsyncAnthropic() as client,
            client.messages.stream(model=self.model, max_tokens=400, messages=messages, extra_headers=carry) as stream,
        ):
            pieces = [text async for text in stream.text_stream]
        self.say("thought", sdk="anthropic", pieces=len(pieces))
        return "".join(pieces)


async def _main(name: str, port: int) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    from demo.roles import ROLES, WITHOUT_MODEL

    agent = Agent(name, ROLES[name])
    if name not in WITHOUT_MODEL:
        importlib.import_module("anthropic" if agent.uses_anthropic else "openai")  # slow: before it says ready
    app = web.Application()
    app.router.add_post("/run", agent.run)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    async with aiohttp.ClientSession(timeout=_AGENT_TIMEOUT) as agent.session:
        agent.say("ready", port=runner.addresses[0][1])
        await ended.wait()
        await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m demo.agent")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    asyncio.run(_main(arguments.name, arguments.port))
