"""The stand-in provider's other APIs of OpenAI's: responses, completions, images, audio, rerank.

Shapes as the provider's reference has them. `tests.end_to_end.provider` asks here for what it does not serve itself;
what a request wants done to it stands in its `x-act`, as there, and `Apis` remembers what runs in the background.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Bill = Callable[[int], None]

PIXEL = "iVBORw0KGgo="


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event of the kind that names itself."""
    return f"event: {data['type']}\ndata: {json.dumps(data)}\n\n".encode()


class Response:
    """One response, plain, streamed or in the background."""

    def __init__(self, asked: dict[str, Any], act: dict[str, Any], number: int) -> None:
        wanted = act.get("words", 5)
        cap = asked.get("max_output_tokens")
        self.asked = asked
        self.id = f"resp_{number}"
        self.is_cut = cap is not None and cap < wanted
        self.words = min(wanted, cap) if cap is not None else wanted
        self.input_tokens = 3 + len(json.dumps(asked.get("input", "")).split())

    def body(self, status: str, written: int = 0) -> dict[str, Any]:
        """The object as it is after so many words."""
        text = "word " * written
        item = {
            "id": f"msg_{self.id}", "type": "message", "role": "assistant",
            "status": "completed" if status == "completed" else "incomplete",
            "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}],
        }  # fmt: skip
        is_over = status in ("completed", "incomplete")
        return {
            "id": self.id, "object": "response", "created_at": 1, "model": self.asked.get("model"), "status": status,
            "background": self.asked.get("background", False), "error": None, "instructions": None, "metadata": {},
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "max_output_tokens": self.asked.get("max_output_tokens"), "parallel_tool_calls": True,
            "output": [item] if is_over else [], "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0,
            "usage": self.usage(written) if is_over else None,
        }  # fmt: skip

    def usage(self, written: int) -> dict[str, Any]:
        return {
            "input_tokens": self.input_tokens, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": written, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.input_tokens + written,
        }  # fmt: skip

    @property
    def end(self) -> str:
        return "incomplete" if self.is_cut else "completed"

    def events(self, bill: Bill, words: int) -> Iterator[bytes]:
        """The stream: it may run past its cap, where the test has it do so."""
        place = {"item_id": f"msg_{self.id}", "output_index": 0, "content_index": 0}
        opened = self.body("incomplete")["output"][0] | {"status": "in_progress", "content": []}
        numbered = [
            {"type": "response.created", "response": self.body("in_progress")},
            {"type": "response.in_progress", "response": self.body("in_progress")},
            {"type": "response.output_item.added", "output_index": 0, "item": opened},
            {
                "type": "response.content_part.added", **place,
                "part": {"type": "output_text", "text": "", "annotations": [], "logprobs": []},
            },
        ]  # fmt: skip
        for number, data in enumerate(numbered):
            yield event(data | {"sequence_number": number})
        for number in range(words):
            bill(1)
            delta = {"type": "response.output_text.delta", **place, "delta": "word ", "logprobs": []}
            yield event(delta | {"sequence_number": 4 + number})
        whole = self.body(self.end, words)
        item = {"type": "response.output_item.done", "output_index": 0, "item": whole["output"][0]}
        yield event(item | {"sequence_number": 4 + words})
        yield event({"type": f"response.{self.end}", "response": whole, "sequence_number": 5 + words})


class Apis:
    """What the provider serves beside chat, messages and embeddings."""

    def __init__(self) -> None:
        self._begun: dict[str, list[Any]] = {}
        self._number = 0

    async def answer(self, request: web.Request, body: bytes, act: dict[str, Any], bill: Bill) -> Any:
        """Return the reply to a request; None for what is not served here either. `bill` is told of each token."""
        path = request.path
        if request.method == "GET" and "/responses/" in path:
            return self._read(path.rpartition("/")[2], bill)
        if request.method != "POST":
            return None
        if path.endswith("/responses"):
            return await self._respond(request, json.loads(body), act, bill)
        if path.endswith("/rerank"):
            return _ranked(json.loads(body), bill)
        if path.endswith("/images/edits"):
            return await _drawn(request, {}, bill)
        if path.endswith("/images/generations"):
            return await _drawn(request, json.loads(body), bill)
        if path.endswith("/audio/speech"):
            bill(len(json.loads(body)["input"]))
            return web.Response(body=b"ID3\x04 sound \xff\xfb" * 50, content_type="audio/mpeg")
        if path.endswith("/audio/transcriptions"):
            bill(14 + 5)
            usage = {"type": "tokens", "input_tokens": 14, "output_tokens": 5, "total_tokens": 19}
            return web.json_response({"text": "word " * 5, "usage": usage})
        if path.endswith("/completions") and not path.endswith("/chat/completions"):
            return await _completed(request, json.loads(body), act, bill)
        return None

    async def _respond(self, request: web.Request, asked: dict[str, Any], act: dict[str, Any], bill: Bill) -> Any:
        self._number += 1
        made = Response(asked, act, self._number)
        if asked.get("background"):
            # Two readings later it is done, and it bills whether it is read or not.
            self._begun[made.id] = [made, 2]
            bill(made.input_tokens + made.words)
            return web.json_response(made.body("queued"))
        bill(made.input_tokens)
        if not asked.get("stream"):
            bill(made.words)
            return web.json_response(made.body(made.end, made.words))
        words = act.get("words", 5) if act.get("ignores_cap") else made.words
        return await _streamed(request, made.events(bill, words))

    def _read(self, id: str, bill: Bill) -> Any:
        if id not in self._begun:
            return web.json_response({"error": {"message": "no such response", "type": "theirs"}}, status=404)
        entry = self._begun[id]
        entry[1] -= 1
        made = entry[0]
        return web.json_response(made.body("in_progress") if entry[1] >= 0 else made.body(made.end, made.words))


async def _streamed(request: web.Request, pieces: Iterator[bytes]) -> web.StreamResponse:
    reply = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await reply.prepare(request)
    try:
        for piece in pieces:
            await reply.write(piece)
    except (ConnectionError, OSError):
        for _ in pieces:
            pass  # what is generated is billed, though nobody may read it any more
    return reply


async def _drawn(request: web.Request, asked: dict[str, Any], bill: Bill) -> Any:
    count = asked.get("n", 1)
    bill(10 + 272 * count)
    usage = {"input_tokens": 10, "input_tokens_details": {"text_tokens": 10, "image_tokens": 0}}
    usage |= {"output_tokens": 272 * count, "total_tokens": 10 + 272 * count}
    if not asked.get("stream"):
        return web.json_response({"created": 1, "data": [{"b64_json": PIXEL}] * count, "usage": usage})
    # Longer than any text: an image comes as one event.
    image = {"b64_json": PIXEL * 200_000, "created_at": 1, "size": "1024x1024", "quality": "low"}
    image |= {"background": "opaque", "output_format": "png"}
    part = {"type": "image_generation.partial_image", "partial_image_index": 0}
    return await _streamed(
        request, iter([event(part | image), event({"type": "image_generation.completed", "usage": usage} | image)])
    )


def _ranked(asked: dict[str, Any], bill: Bill) -> web.Response:
    query = len(asked["query"].split())
    tokens = sum(query + len(document.split()) for document in asked["documents"])
    bill(tokens)
    results = [{"index": 0, "relevance_score": 0.9}]
    return web.json_response({"model": asked["model"], "results": results, "usage": {"total_tokens": tokens}})


async def _completed(request: web.Request, asked: dict[str, Any], act: dict[str, Any], bill: Bill) -> Any:
    prompts = asked["prompt"] if isinstance(asked["prompt"], list) else [asked["prompt"]]
    given = sum(len(prompt.split()) for prompt in prompts)
    words = min(act.get("words", 5), asked.get("max_tokens") or 16)
    count = len(prompts) * asked.get("n", 1)
    bill(given + words * count)
    usage = {"prompt_tokens": given, "completion_tokens": words * count, "total_tokens": given + words * count}
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": asked["model"]}
    choice = {"logprobs": None, "finish_reason": "stop"}
    if not asked.get("stream"):
        choices = [choice | {"index": index, "text": "word " * words} for index in range(count)]
        return web.json_response(head | {"choices": choices, "usage": usage})
    chunks = [head | {"choices": [choice | {"index": 0, "text": "word ", "finish_reason": None}]}] * words
    chunks.append(head | {"choices": [choice | {"index": 0, "text": ""}]})
    if (asked.get("stream_options") or {}).get("include_usage"):
        chunks.append(head | {"choices": [], "usage": usage})
    lines = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]
    return await _streamed(request, iter([*lines, b"data: [DONE]\n\n"]))
