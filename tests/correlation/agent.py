"""An agent that knows nothing of meshd: it takes a task over HTTP and works on it with an official SDK.

It reads no header of the task but the one that says, to the measure alone, which run it is. How it works on each run
(its turns, its prompts, whether it streams) is what `Plan` says.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import anthropic
    import openai

SYSTEM: Final = "You are a careful research assistant. Use the tool to look things up, then answer in one paragraph."
FIXED: Final = "Do what the job in your queue says. Begin with the first step."
_TOOL: Final = {
    "name": "look_up",
    "description": "Looks something up.",
    "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
}


@dataclass(frozen=True)
class Plan:
    """How one run is worked on."""

    api: str = "chat"
    """chat, responses, anthropic."""
    turns: int = 4
    is_streamed: bool = False
    is_quoting: bool = True
    """The task's words stand in the prompt."""
    is_pruned: bool = False
    """The oldest turns are dropped from the history."""
    is_split: bool = False
    """Two more conversations run beside, each on a part of the first answer."""
    first_pause_s: float = 0.0
    """Of other work before the first call to the model."""
    base_url: str = ""
    """Of this run alone; empty for the agent's own."""


class Agent:
    """The HTTP server that a sidecar's `--app` names."""

    def __init__(self, make_openai: Callable[[str, str], openai.AsyncOpenAI], make_anthropic: Any) -> None:
        """Each of `make_...(base_url, api_key)` returns a client of an official SDK."""
        self.plans: dict[str, Plan] = {}
        self.url = ""
        self.is_busy = asyncio.Event()
        """Two tasks were under way at once."""
        self._under_way = 0
        self._openai = make_openai
        self._anthropic: Callable[[str, str], anthropic.AsyncAnthropic] = make_anthropic
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen on a free port of loopback."""
        app = web.Application()
        app.router.add_post("/tasks/{number}", self._task)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """End."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _task(self, request: web.Request) -> web.Response:
        run = request.headers["x-run"]
        asked = await request.json()
        self._under_way += 1
        if self._under_way > 1:
            self.is_busy.set()
        answer = await self.work(run, self.plans[run], asked["params"]["message"])
        self._under_way -= 1
        return web.json_response({"answer": answer})

    async def work_beside(self, run: str, plan: Plan, task: str) -> str:
        """Do a task of one's own, as soon as there are several to be done for others."""
        await self.is_busy.wait()
        return await self.work(run, plan, task)

    async def work(self, run: str, plan: Plan, task: str) -> str:
        """Do a task to its end; return the answer."""
        if plan.first_pause_s:
            await asyncio.sleep(plan.first_pause_s)
        prompt = f"A colleague asks for this:\n{task}\nAnswer it well." if plan.is_quoting else FIXED
        converse: dict[str, Callable[[str, Plan, str], Awaitable[str]]] = {
            "chat": self._chat,
            "responses": self._respond,
            "anthropic": self._message,
        }
        talk = converse[plan.api]
        answer = await talk(run, plan, prompt)
        if plan.is_split:
            parts = [f"Look closer at one half of this, half {half}:\n{answer}" for half in (1, 2)]
            await asyncio.gather(*[talk(run, plan, part) for part in parts])
        return answer

    async def _chat(self, run: str, plan: Plan, prompt: str) -> str:
        client = self._openai(plan.base_url, run)
        messages: list[Any] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
        for turn in range(plan.turns):
            is_last = turn == plan.turns - 1
            more: dict[str, Any] = {} if is_last else {"tools": [{"type": "function", "function": _TOOL}]}
            if plan.is_pruned and len(messages) > 5:
                # The calls of a tool and its results go together, as the API wants them; so does the task itself.
                messages = [messages[0], *messages[-2:]]
            if plan.is_streamed:
                text, calls = await _streamed_chat(client, messages, more)
            else:
                done = await client.chat.completions.create(model="m", messages=messages, max_tokens=400, **more)
                message = done.choices[0].message
                text = message.content or ""
                calls = [call.model_dump(exclude_none=True) for call in message.tool_calls or ()]
            if not calls:
                return text
            messages.append({"role": "assistant", "content": None, "tool_calls": calls})
            messages += [
                {"role": "tool", "tool_call_id": call["id"], "content": "Nothing was found, go on."} for call in calls
            ]
            await asyncio.sleep(0.005)
        return ""

    async def _respond(self, run: str, plan: Plan, prompt: str) -> str:
        client = self._openai(plan.base_url, run)
        asked: Any = prompt
        earlier: dict[str, Any] = {}
        tool = {"type": "function", **_TOOL}
        for turn in range(plan.turns):
            more: dict[str, Any] = {} if turn == plan.turns - 1 else {"tools": [tool]}
            more |= {"model": "m", "input": asked, "max_output_tokens": 400} | earlier
            if plan.is_streamed:
                async with client.responses.stream(**more) as stream:
                    done = await stream.get_final_response()
            else:
                done = await client.responses.create(**more)
            calls = [item for item in done.output if item.type == "function_call"]
            if not calls:
                return done.output_text
            earlier = {"previous_response_id": done.id}
            asked = [{"type": "function_call_output", "call_id": one.call_id, "output": "Nothing."} for one in calls]
        return ""

    async def _message(self, run: str, plan: Plan, prompt: str) -> str:
        client = self._anthropic(plan.base_url, run)
        messages: list[Any] = [{"role": "user", "content": prompt}]
        tool: Any = {"name": "look_up", "description": "Looks up.", "input_schema": _TOOL["parameters"]}
        for turn in range(plan.turns):
            more: dict[str, Any] = {} if turn == plan.turns - 1 else {"tools": [tool]}
            more |= {"model": "m", "system": SYSTEM, "messages": messages, "max_tokens": 400}
            if plan.is_streamed:
                async with client.messages.stream(**more) as stream:
                    done = await stream.get_final_message()
            else:
                done = await client.messages.create(**more)
            calls = [block for block in done.content if block.type == "tool_use"]
            if not calls:
                return "".join([block.text for block in done.content if block.type == "text"])
            messages.append({"role": "assistant", "content": [one.model_dump(exclude_none=True) for one in calls]})
            results = [{"type": "tool_result", "tool_use_id": one.id, "content": "Nothing."} for one in calls]
            messages.append({"role": "user", "content": results})
        return ""


async def _streamed_chat(client: openai.AsyncOpenAI, messages: list[Any], more: dict[str, Any]) -> Any:
    text = ""
    calls: dict[int, dict[str, Any]] = {}
    stream = await client.chat.completions.create(model="m", messages=messages, max_tokens=400, stream=True, **more)
    async for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            for piece in choice.delta.tool_calls or ():
                call = calls.setdefault(piece.index, {"type": "function", "function": {"name": "", "arguments": ""}})
                call["id"] = piece.id or call.get("id")
                if piece.function is not None:
                    call["function"]["name"] += piece.function.name or ""
                    call["function"]["arguments"] += piece.function.arguments or ""
    return text, [json.loads(json.dumps(call)) for _, call in sorted(calls.items())]
