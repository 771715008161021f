"""An agent in a process of its own: a small HTTP server that uses an official SDK and calls other agents.

    python -m demo.agent NAME [--port N]

It knows one address, `MESHD_URL`, and the two that the SDKs read for themselves (`OPENAI_BASE_URL`,
`ANTHROPIC_BASE_URL`). All that it does for meshd is to pass on the context header that it received (`carry`).
What it sees goes to standard output, one JSON object a line, for the terminal of the demo.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import signal
from typing import TYPE_CHECKING, Any, cast

import aiohttp
from aiohttp import web

if TYPE_CHECKING:
    from anthropic.types import MessageParam

CONTEXT_HEADER = "x-meshd-context"
_RUNAWAY_WORKERS = 6
_RUNAWAY_CALLS_MAX = 400
_AGENT_TIMEOUT = aiohttp.ClientTimeout(total=50)
Result = dict[str, Any]


def say(event: str, **fields: Any) -> None:
    """Tell the terminal what happened."""
    print(json.dumps({"event": event, **fields}), flush=True)


class Agent:
    """One agent: a name, a role, and a way to think."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.mesh_url = os.environ["MESHD_URL"]
        self.model = os.environ.get("DEMO_MODEL", "stand-in")
        self.uses_anthropic = name == "researcher" and "ANTHROPIC_API_KEY" in os.environ
        self.session: aiohttp.ClientSession | None = None

    async def run(self, request: web.Request) -> web.Response:
        """Answer `POST /run` with a body `{"task": ...}`."""
        try:
            body = await request.json()
            task = str(body["task"])
        except (ValueError, KeyError, TypeError) as error:
            return web.json_response({"error": f"expected a JSON object with a task: {error!r}"}, status=400)
        carry = {key: value for key, value in request.headers.items() if key.lower() == CONTEXT_HEADER}
        seen = {key.lower(): value for key, value in request.headers.items() if key.lower().startswith("x-meshd-")}
        say("received", agent=self.name, task=task, seen=seen)
        role = ROLES.get(self.name)
        if role is None:
            return web.json_response({"error": f"{self.name} has no role"}, status=500)
        return web.json_response(await role(self, body, carry))

    async def call(self, agent: str, body: Result, carry: dict[str, str]) -> Result:
        """Call another agent through meshd; a refusal comes back as a result with `refused`."""
        assert self.session is not None
        async with self.session.post(f"{self.mesh_url}/{agent}/run", json=body, headers=carry) as reply:
            raw = await reply.text()
            if reply.status == 200:
                return cast("Result", json.loads(raw))
            reason = reply.headers.get("x-meshd-reason", "")
            say("refused", agent=self.name, target=agent, status=reply.status, reason=reason)
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
        say("thought", agent=self.name, sdk="openai", pieces=len(pieces))
        return "".join(pieces)

    async def _think_anthropic(self, prompt: str, carry: dict[str, str]) -> str:
        from anthropic import AsyncAnthropic

        messages: list[MessageParam] = [{"role": "user", "content": prompt}]
        async with (
            AsyncAnthropic() as client,
            client.messages.stream(model=self.model, max_tokens=400, messages=messages, extra_headers=carry) as stream,
        ):
            pieces = [text async for text in stream.text_stream]
        say("thought", agent=self.name, sdk="anthropic", pieces=len(pieces))
        return "".join(pieces)


async def manage(agent: Agent, body: Result, carry: dict[str, str]) -> Result:
    """Plan, then have it researched."""
    plan = await agent.think("Plan a report on " + body["task"] + " in 20 words", carry)
    found = await agent.call("researcher", {"task": plan}, carry)
    return {"agent": agent.name, "next": found}


async def research(agent: Agent, body: Result, carry: dict[str, str]) -> Result:
    """Find facts, then have them written up."""
    facts = await agent.think("Find facts for this plan in 30 words", carry)
    written = await agent.call("writer", {"task": facts}, carry)
    return {"agent": agent.name, "next": written}


async def write(agent: Agent, body: Result, carry: dict[str, str]) -> Result:
    """Write the report, streaming."""
    text = await agent.think("Write the report in 60 words", carry)
    return {"agent": agent.name, "text": text}


async def answer_back(agent: Agent, body: Result, carry: dict[str, str]) -> Result:
    """Never content: whatever is said, the other one is asked again."""
    turn = int(body.get("turn", 1))
    await agent.think("Do you agree? Answer in 4 words", carry)
    other = "pong" if agent.name == "ping" else "ping"
    reply = await agent.call(other, {"task": "are you sure?", "turn": turn + 1}, carry)
    return {"turn": turn, "refused": reply["refused"]} if "turn" not in reply else reply


async def run_away(agent: Agent, body: Result, carry: dict[str, str]) -> Result:
    """Ask and ask again, several at once, and stop for nothing but the end of the budget."""
    from openai import APIStatusError, AsyncOpenAI

    counts = {"calls": 0, "answers": 0, "busy": 0, "shortened": 0, "reported_tokens": 0}
    refusals: list[Result] = []

    async def work(client: AsyncOpenAI) -> None:
        while not refusals and counts["calls"] < _RUNAWAY_CALLS_MAX:
            counts["calls"] += 1
            try:
                reply = await client.chat.completions.create(
                    model=agent.model,
                    messages=[{"role": "user", "content": f"{body['task']} in {body.get('words', 150)} words"}],
                    extra_headers=carry,
                )
            except APIStatusError as error:
                if error.status_code == 429:
                    counts["busy"] += 1
                    continue
                reason = error.response.headers.get("x-meshd-reason", "")
                said = error.body if isinstance(error.body, dict) else {}
                refusals.append(
                    {
                        "status": error.status_code,
                        "type": type(error).__name__,
                        "reason": reason,
                        "message": said.get("message", error.message),
                    }
                )
                return
            counts["answers"] += 1
            counts["shortened"] += reply.choices[0].finish_reason == "length"
            counts["reported_tokens"] += reply.usage.total_tokens if reply.usage else 0
            say("spent", agent=agent.name, tokens=counts["reported_tokens"], answers=counts["answers"])

    async with AsyncOpenAI() as client:
        await asyncio.gather(*(work(client) for _ in range(_RUNAWAY_WORKERS)))
    return {**counts, "refused": refusals[0] if refusals else None}


async def probe(agent: Agent, body: Result, carry: dict[str, str]) -> Result:
    """Make a few calls, one after the other, to the upstream that may be dead, without the SDK's own retries."""
    from openai import APIStatusError, AsyncOpenAI

    answers: list[tuple[int, str]] = []
    async with AsyncOpenAI(base_url=f"{agent.mesh_url}/flaky/v1", api_key="sk-demo-flaky", max_retries=0) as client:
        for _ in range(int(body.get("count", 1))):
            try:
                await client.chat.completions.create(
                    model="stand-in", messages=[{"role": "user", "content": "well? in 4 words"}], extra_headers=carry
                )
                answers.append((200, ""))
            except APIStatusError as error:
                answers.append((error.status_code, error.response.headers.get("x-meshd-reason", "")))
    return {"answers": answers}


ROLES = {
    "manager": manage,
    "researcher": research,
    "writer": write,
    "ping": answer_back,
    "pong": answer_back,
    "runaway": run_away,
    "prober": probe,
}


async def _main(name: str, port: int) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    agent = Agent(name)
    importlib.import_module("anthropic" if agent.uses_anthropic else "openai")  # slow: before it says ready
    app = web.Application()
    app.router.add_post("/run", agent.run)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    async with aiohttp.ClientSession(timeout=_AGENT_TIMEOUT) as agent.session:
        say("ready", agent=name, port=runner.addresses[0][1])
        await ended.wait()
        await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m demo.agent")
    parser.add_argument("name", choices=sorted(ROLES))
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    asyncio.run(_main(arguments.name, arguments.port))
