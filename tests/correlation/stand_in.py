"""A stand-in for LLM APIs that knows which run each request is of: the run's name is its API key, which meshd reads for
nothing of this. OpenAI chat and responses, Anthropic messages; plain and streamed; with tools it calls one.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import random
from typing import Any, Final

from aiohttp import web

_WORDS: Final = (
    "river", "stone", "market", "winter", "signal", "copper", "garden", "method", "orbit",
    "letter", "harbour", "engine", "velvet", "summit", "ledger", "window", "forest", "planet",
    "bridge", "candle", "mirror", "thunder", "carpet", "silver", "island", "meadow", "pepper",
    "lantern", "compass", "feather",
)  # fmt: skip


class StandIn:
    """The server. `truth` is what the measure compares with: response id -> run."""

    def __init__(self, seed: int = 7) -> None:
        self.truth: dict[str, str] = {}
        self.deterministic: set[str] = set()
        """Runs that get the same answer to the same request, and tool calls numbered from 0."""
        self.url = ""
        self._chance = random.Random(seed)
        self._numbers = itertools.count(1)
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen on a free port of loopback."""
        app = web.Application(client_max_size=32 << 20)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/responses", self._responses)
        app.router.add_post("/v1/messages", self._messages)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """End."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _begin(self, request: web.Request, prefix: str) -> tuple[dict[str, Any], str, str, random.Random]:
        """Return the body, the run, the response's id and the dice that its answer is thrown with."""
        key = request.headers.get("authorization", "").removeprefix("Bearer ") or request.headers.get("x-api-key", "")
        raw = await request.read()
        body = json.loads(raw)
        id = f"{prefix}_{next(self._numbers):06d}"
        self.truth[id] = key
        await asyncio.sleep(self._chance.uniform(0.002, 0.03))
        if key in self.deterministic:
            return body, key, id, random.Random(hashlib.sha256(raw).digest())
        return body, key, id, self._chance

    def _call_id(self, key: str, body: dict[str, Any], prefix: str) -> str:
        if key in self.deterministic:
            return f"{prefix}_{len(body.get('messages', ()))}"
        return f"{prefix}_{self._chance.getrandbits(64):016x}"

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body, key, id, dice = await self._begin(request, "chatcmpl")
        wants_tool = bool(body.get("tools")) and body.get("tool_choice") != "none"
        head = {"id": id, "created": 1, "model": body["model"]}
        usage = {"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 29}
        message: dict[str, Any] = {"role": "assistant", "content": None if wants_tool else sentence(dice)}
        if wants_tool:
            function = {"name": "look_up", "arguments": json.dumps({"query": sentence(dice, 5)})}
            message["tool_calls"] = [{"id": self._call_id(key, body, "call"), "type": "function", "function": function}]
        finish = "tool_calls" if wants_tool else "stop"
        if not body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
            return web.json_response(head | {"object": "chat.completion", "choices": [choice], "usage": usage})
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        if wants_tool:
            first = message["tool_calls"][0] | {"index": 0}
            deltas.append({"tool_calls": [first | {"function": {"name": "look_up", "arguments": ""}}]})
            deltas += [
                {"tool_calls": [{"index": 0, "function": {"arguments": p}}]} for p in pieces(function["arguments"])
            ]
        else:
            deltas += [{"content": piece} for piece in pieces(message["content"])]
        chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}, {"choices": [], "usage": usage}]
        events = [json.dumps(head | {"object": "chat.completion.chunk"} | chunk) for chunk in chunks]
        return await _stream(request, ["data: " + event for event in [*events, "[DONE]"]])

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        body, _, id, dice = await self._begin(request, "resp")
        usage = {
            "input_tokens": 20, "output_tokens": 9, "total_tokens": 29, "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }  # fmt: skip
        if body.get("tools") and body.get("tool_choice") != "none":
            item: dict[str, Any] = {
                "type": "function_call", "id": f"fc_{id}", "call_id": f"call_{self._chance.getrandbits(64):016x}",
                "name": "look_up", "arguments": json.dumps({"query": sentence(dice, 5)}), "status": "completed",
            }  # fmt: skip
        else:
            part = {"type": "output_text", "text": sentence(dice), "annotations": []}
            item = {"type": "message", "id": f"msg_{id}", "role": "assistant", "status": "completed", "content": [part]}
        whole = {
            "id": id, "object": "response", "created_at": 1, "status": "completed", "model": body["model"],
            "output": [item], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "usage": usage,
        }  # fmt: skip
        if not body.get("stream"):
            return web.json_response(whole)
        begun = whole | {"status": "in_progress", "output": [], "usage": None}
        events = [
            {"type": "response.created", "response": begun},
            {"type": "response.output_item.added", "output_index": 0, "item": item | {"status": "in_progress"}},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": "response.completed", "response": whole},
        ]
        return await _stream(
            request,
            [f"event: {e['type']}\ndata: {json.dumps(e | {'sequence_number': n})}" for n, e in enumerate(events)],
        )

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        body, key, id, dice = await self._begin(request, "msg")
        wants_tool = bool(body.get("tools")) and body.get("tool_choice", {}).get("type") != "none"
        block: dict[str, Any] = {"type": "text", "text": sentence(dice)}
        if wants_tool:
            query = {"query": sentence(dice, 5)}
            block = {"type": "tool_use", "id": self._call_id(key, body, "toolu"), "name": "look_up", "input": query}
        usage = {"input_tokens": 20, "output_tokens": 9}
        stop = "tool_use" if wants_tool else "end_turn"
        message = {
            "id": id, "type": "message", "role": "assistant", "model": body["model"], "content": [block],
            "stop_reason": stop, "stop_sequence": None, "usage": usage,
        }  # fmt: skip
        if not body.get("stream"):
            return web.json_response(message)
        text = json.dumps(block["input"]) if wants_tool else block["text"]
        kind, member = ("input_json_delta", "partial_json") if wants_tool else ("text_delta", "text")
        opened = block | ({"input": {}} if wants_tool else {"text": ""})
        events: list[dict[str, Any]] = [
            {"type": "message_start", "message": message | {"content": [], "stop_reason": None}},
            {"type": "content_block_start", "index": 0, "content_block": opened},
        ]
        deltas = [{"type": kind, member: piece} for piece in pieces(text)]
        events += [{"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas]
        events += [
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": usage},
            {"type": "message_stop"},
        ]
        return await _stream(request, [f"event: {event['type']}\ndata: {json.dumps(event)}" for event in events])


def sentence(dice: random.Random, words: int = 14) -> str:
    """Return a text such as a model might write."""
    return "The " + " ".join(dice.choices(_WORDS, k=words)) + "."


def pieces(text: str) -> list[str]:
    """Cut a text into what is streamed at once."""
    return [text[at : at + 12] for at in range(0, len(text), 12)]


async def _stream(request: web.Request, events: list[str]) -> web.StreamResponse:
    reply = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await reply.prepare(request)
    for event in events:
        await reply.write(event.encode() + b"\n\n")
        await asyncio.sleep(0)
    await reply.write_eof()
    return reply
