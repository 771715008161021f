"""A stand-in provider that keeps books of its own and does what each request's header asks of it.

It shares no code with meshd. A request says in `x-act` (JSON) how it is to be treated, so that calls at the same time
do not disturb one another:

    words      output tokens that the model would like to write (default 5); the request's cap holds
    statuses   one status for each attempt with the same `id`, the last for all further ones
    id         names the attempts that belong together
    holds      the answer's head waits until `Provider.go_on(id)` is called
    pause_at   a stream stops after so many words until `Provider.go_on(id)` is called
    dies_at    a stream's connection is dropped after so many words
    encoding   content-encoding of the answer: gzip, br (with bytes that are none), bomb
    tool       the model calls this tool
    usage      false: no usage is reported
    reply      a body to send as it stands
    events     a stream of this text, `times` over
"""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.end_to_end.apis import Apis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

PRIMING_TOKENS = 3
BOMB_BYTES = 256 << 20


@dataclass
class Seen:
    """One request as it reached the provider."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    is_ended: threading.Event = field(default_factory=threading.Event)
    words_sent: int = 0

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class Provider:
    """Serves on a loop of its own, in a thread of the test's process."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.tokens: dict[str, int] = defaultdict(int)
        """Billed so far, by API key: what was read and what was generated, whether anybody listened or not."""
        self.attempts: dict[str, int] = defaultdict(int)
        self._apis = Apis()
        self._gates: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._loop = asyncio.new_event_loop()
        self._is_up = threading.Event()
        self.port = 0
        self._thread = threading.Thread(target=self._run, name="provider", daemon=True)
        self._thread.start()
        assert self._is_up.wait(20)

    @property
    def url(self) -> str:
        """Without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    def go_on(self, id: str) -> None:
        """Let the stream of this id go on."""
        self._loop.call_soon_threadsafe(lambda: self._gates[id].set())

    def of(self, id: str) -> list[Seen]:
        """The attempts with this id."""
        return [one for one in self.seen if json.loads(one.headers.get("x-act", "{}")).get("id") == id]

    def close(self) -> None:
        """End the server and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._runner = self._loop.run_until_complete(self._listen())
        self._is_up.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._runner.cleanup())
        self._loop.close()

    async def _listen(self) -> web.AppRunner:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{tail:.*}", self._serve)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
        self.port = runner.addresses[0][1]
        return runner

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        seen = Seen(request.method, request.path_qs, headers, await request.read())
        self.seen.append(seen)
        act = json.loads(request.headers.get("x-act", "{}"))
        id = act.get("id", "")
        self.attempts[id] += 1
        statuses = act.get("statuses", [200])
        status = statuses[min(self.attempts[id], len(statuses)) - 1]
        try:
            if act.get("holds"):
                await self._gates[id].wait()
            if status != 200:
                return self._failure(request, status, act)
            if "events" in act:
                return web.Response(body=act["events"].encode() * act["times"], content_type="text/event-stream")
            if "reply" in act:
                return web.Response(text=act["reply"], content_type="application/json")
            return await self._answer(request, seen, act)
        finally:
            seen.is_ended.set()

    def _failure(self, request: web.Request, status: int, act: dict[str, Any]) -> web.Response:
        headers = {"x-provider": "yes", "retry-after-ms": "5", **act.get("headers", {})}
        headers = {name: value for name, value in headers.items() if value is not None}
        if request.path.endswith("/messages"):
            body: Any = {"type": "error", "error": {"type": "overloaded_error", "message": f"words of theirs {status}"}}
        else:
            body = {"error": {"message": f"words of theirs {status}", "type": "theirs", "param": None, "code": "c1"}}
        return web.json_response(body, status=status, headers=headers)

    async def _answer(self, request: web.Request, seen: Seen, act: dict[str, Any]) -> web.StreamResponse:
        path = request.path
        if path.endswith("/models"):
            return web.json_response(
                {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "me"}]}
            )
        key = request.headers.get("authorization", "").removeprefix("Bearer ") or request.headers.get("x-api-key", "")

        def bill(words: int) -> None:
            self.tokens[key] += words
            seen.words_sent += words

        if not path.endswith(("/chat/completions", "/messages", "/embeddings")):
            found = await self._apis.answer(request, seen.body, act, bill)
            if found is not None:
                return found  # type: ignore[no-any-return]
            return web.json_response({"path": request.path_qs, "body": len(seen.body)}, headers={"x-provider": "yes"})
        asked = seen.json
        job = Job(asked, act, input_tokens(asked))
        self.tokens[key] += job.input_tokens
        if path.endswith("/embeddings"):
            return web.json_response(embeddings(job))
        form = ANTHROPIC if path.endswith("/messages") else OPENAI
        if asked.get("stream"):
            return await self._stream(request, form, job, bill)
        bill(job.words)
        return encoded(json.dumps(form["whole"](job)).encode(), act.get("encoding", ""))

    async def _stream(
        self, request: web.Request, form: dict[str, Any], job: Job, bill: Callable[[int], None]
    ) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"content-type": "text/event-stream", "x-provider": "yes"})
        await reply.prepare(request)
        # What is generated is billed, though nobody may read it any more.
        is_heard = True
        async for text, words in self._pieces(form, job):
            bill(words)
            if job.act.get("dies_at") == job.written:
                assert request.transport is not None
                request.transport.abort()
                return reply
            if is_heard:
                try:
                    await reply.write(text)
                except (ConnectionError, OSError):
                    is_heard = False
        return reply

    async def _pieces(self, form: dict[str, Any], job: Job) -> AsyncIterator[tuple[bytes, int]]:
        yield form["opening"](job), 0
        for number in range(job.words):
            if job.act.get("pause_at") == number:
                await self._gates[job.act["id"]].wait()
            job.written = number + 1
            yield form["piece"](job, number), 1
            if number % 50 == 0:
                await asyncio.sleep(0)
        yield form["closing"](job), 0


class Job:
    """What a request asks for, and how far its answer has come."""

    def __init__(self, asked: dict[str, Any], act: dict[str, Any], input_tokens: int) -> None:
        caps = [asked[name] for name in ("max_completion_tokens", "max_tokens") if asked.get(name) is not None]
        self.asked = asked
        self.act = act
        self.input_tokens = input_tokens
        wanted = act.get("words", 5)
        self.is_cut = bool(caps) and min(caps) < wanted
        self.words = min([wanted, *caps])
        self.written = 0
        self.has_usage = act.get("usage", True)
        self.tool = act.get("tool", "")


def input_tokens(asked: dict[str, Any]) -> int:
    """Count as this provider's tokenizer does: every word is a token."""
    texts = [asked.get("system", ""), *(message["content"] for message in asked.get("messages", []))]
    given = asked.get("input", [])
    texts += [given] if isinstance(given, str) else given
    return PRIMING_TOKENS + sum(len(text.split()) for text in texts if isinstance(text, str))


def encoded(body: bytes, encoding: str) -> web.Response:
    headers = {"content-type": "application/json", "x-provider": "yes"}
    if encoding == "gzip":
        return web.Response(body=gzip.compress(body), headers={**headers, "content-encoding": "gzip"})
    if encoding == "br":
        return web.Response(
            body=b"\x0b\x02\x80bytes of a coding that meshd does not read\x03",
            headers={**headers, "content-encoding": "br"},
        )
    if encoding == "bomb":
        return web.Response(body=_bomb(), headers={**headers, "content-encoding": "gzip"})
    return web.Response(body=body, headers=headers)


_BOMB: list[bytes] = []


def _bomb() -> bytes:
    if not _BOMB:
        _BOMB.append(gzip.compress(bytes(BOMB_BYTES), 6))
    return _BOMB[0]


def embeddings(job: Job) -> dict[str, Any]:
    return {
        "object": "list",
        "model": job.asked["model"],
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}],
        "usage": {"prompt_tokens": job.input_tokens, "total_tokens": job.input_tokens},
    }


def _event(data: Any, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()


# ---------------------------------------------------------------------- chat completions


def _usage(job: Job) -> dict[str, int]:
    return {
        "prompt_tokens": job.input_tokens,
        "completion_tokens": job.words,
        "total_tokens": job.input_tokens + job.words,
    }


def _tool_call(job: Job) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": job.tool, "arguments": '{"x": 1}'}}


def _chat(job: Job) -> dict[str, Any]:
    finish = "tool_calls" if job.tool else "length" if job.is_cut else "stop"
    message: dict[str, Any] = {"role": "assistant", "content": None if job.tool else " ".join(["word"] * job.words)}
    if job.tool:
        message["tool_calls"] = [_tool_call(job)]
    found = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": job.asked["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
    }
    return found | ({"usage": _usage(job)} if job.has_usage else {})


def _chunk(job: Job, delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
    return _event(
        {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": job.asked["model"], "choices": choices}
        | more
    )


def _chat_piece(job: Job, number: int) -> bytes:
    if job.tool and number == 0:
        return _chunk(job, {"tool_calls": [{"index": 0, **_tool_call(job)}]})
    return _chunk(job, {"content": "word "})


def _chat_closing(job: Job) -> bytes:
    finish = "tool_calls" if job.tool else "length" if job.is_cut else "stop"
    closing = _chunk(job, {}, finish)
    if (job.asked.get("stream_options") or {}).get("include_usage") and job.has_usage:
        closing += _chunk(job, None, usage=_usage(job))
    return closing + b"data: [DONE]\n\n"


OPENAI: dict[str, Any] = {
    "whole": _chat,
    "opening": lambda job: _chunk(job, {"role": "assistant", "content": ""}),
    "piece": _chat_piece,
    "closing": _chat_closing,
}


# ---------------------------------------------------------------------- messages


def _message(job: Job, content: list[Any], stop: str | None, output_tokens: int) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": job.asked["model"],
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {"input_tokens": job.input_tokens, "output_tokens": output_tokens},
    }


def _messages(job: Job) -> dict[str, Any]:
    block: dict[str, Any] = {"type": "text", "text": " ".join(["word"] * job.words)}
    if job.tool:
        block = {"type": "tool_use", "id": "toolu_1", "name": job.tool, "input": {"x": 1}}
    return _message(job, [block], _stop(job), job.words)


def _stop(job: Job) -> str:
    return "tool_use" if job.tool else "max_tokens" if job.is_cut else "end_turn"


def _messages_opening(job: Job) -> bytes:
    block: dict[str, Any] = {"type": "text", "text": ""}
    if job.tool:
        block = {"type": "tool_use", "id": "toolu_1", "name": job.tool, "input": {}}
    return _event({"type": "message_start", "message": _message(job, [], None, 1)}, "message_start") + _event(
        {"type": "content_block_start", "index": 0, "content_block": block}, "content_block_start"
    )


def _messages_piece(job: Job, number: int) -> bytes:
    delta: dict[str, Any] = {"type": "text_delta", "text": "word "}
    if job.tool:
        delta = {"type": "input_json_delta", "partial_json": '{"x": 1}' if number == 0 else " "}
    return _event({"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta")


def _messages_closing(job: Job) -> bytes:
    return (
        _event({"type": "content_block_stop", "index": 0}, "content_block_stop")
        + _event(
            {
                "type": "message_delta",
                "delta": {"stop_reason": _stop(job), "stop_sequence": None},
                "usage": {"output_tokens": job.words},
            },
            "message_delta",
        )
        + _event({"type": "message_stop"}, "message_stop")
    )


ANTHROPIC: dict[str, Any] = {
    "whole": _messages,
    "opening": _messages_opening,
    "piece": _messages_piece,
    "closing": _messages_closing,
}
