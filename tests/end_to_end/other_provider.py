"""The same stand-in provider, speaking Gemini's and Ollama's languages: see `provider` for what `x-act` asks of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.end_to_end.provider import PRIMING_TOKENS, Job, Provider, Seen, encoded

if TYPE_CHECKING:
    from collections.abc import Callable

TIME = "2026-03-01T06:00:00Z"


class OtherProvider(Provider):
    """Bills words as tokens, under the key that came in a header or in the query."""

    async def _answer(self, request: web.Request, seen: Seen, act: dict[str, Any]) -> web.StreamResponse:
        path = request.path
        key = request.headers.get("x-goog-api-key", "") or request.query.get("key", "")
        key = key or request.headers.get("authorization", "").removeprefix("Bearer ")
        if path.endswith((":generateContent", ":streamGenerateContent")):
            form = GEMINI_EVENTS if request.query.get("alt") == "sse" else GEMINI_ARRAY
            job, is_streamed = _gemini_job(request, seen, act), path.endswith(":streamGenerateContent")
        elif path in ("/api/chat", "/api/generate"):
            form = OLLAMA
            job, is_streamed = _ollama_job(seen, act), seen.json.get("stream", True)
        else:
            return await super()._answer(request, seen, act)
        self.tokens[key] += job.input_tokens

        def bill(words: int) -> None:
            self.tokens[key] += words
            seen.words_sent += words

        if is_streamed:
            return await self._stream_as(request, form, job, bill)
        bill(job.words)
        return encoded(json.dumps(form["whole"](job)).encode(), act.get("encoding", ""))

    async def _stream_as(
        self, request: web.Request, form: dict[str, Any], job: Job, bill: Callable[[int], None]
    ) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"content-type": form["type"], "x-provider": "yes"})
        await reply.prepare(request)
        is_heard = True
        async for text, words in self._pieces(form, job):
            bill(words)
            if is_heard:
                try:
                    await reply.write(text)
                except (ConnectionError, OSError):
                    is_heard = False
        return reply


def _words(text: str) -> int:
    return len(text.split())


def _gemini_job(request: web.Request, seen: Seen, act: dict[str, Any]) -> Job:
    asked = seen.json
    texts = [part.get("text", "") for content in asked["contents"] for part in content["parts"]]
    cap = asked.get("generationConfig", {}).get("maxOutputTokens")
    model = request.path.rpartition("/")[2].partition(":")[0]
    # What ignores its cap says so: the ask's own is no argument.
    caps = {"max_tokens": cap} if cap is not None and not act.get("uncapped") else {}
    return Job({"model": model} | caps, act, PRIMING_TOKENS + sum(map(_words, texts)))


def _ollama_job(seen: Seen, act: dict[str, Any]) -> Job:
    asked = seen.json
    texts = [message["content"] for message in asked.get("messages", [])] + [asked.get("prompt", "")]
    cap = asked.get("options", {}).get("num_predict", -1)
    caps = {"max_tokens": cap} if cap > 0 and not act.get("uncapped") else {}
    job = Job({"model": asked["model"]} | caps, act, PRIMING_TOKENS + sum(map(_words, texts)))
    job.is_generate = "messages" not in asked  # type: ignore[attr-defined]
    return job


# ---------------------------------------------------------------------- generateContent


def _chunk(job: Job, text: str, made: int, finish: str = "") -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    usage = {"promptTokenCount": job.input_tokens, "totalTokenCount": job.input_tokens + made}
    if made:
        usage["candidatesTokenCount"] = made
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": job.asked["model"], "responseId": "r-1"}


def _finish(job: Job) -> str:
    return "MAX_TOKENS" if job.is_cut else "STOP"


def _whole(job: Job) -> dict[str, Any]:
    return _chunk(job, " ".join(["word"] * job.words), job.words, _finish(job))


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\r\n\r\n"


GEMINI_EVENTS: dict[str, Any] = {
    "type": "text/event-stream",
    "whole": _whole,
    "opening": lambda job: _event(_chunk(job, "", 0)),
    "piece": lambda job, number: _event(_chunk(job, "word ", number + 1)),
    "closing": lambda job: _event(_chunk(job, "", job.words, _finish(job))),
}
GEMINI_ARRAY: dict[str, Any] = {
    "type": "application/json; charset=UTF-8",
    "whole": _whole,
    "opening": lambda job: b"[" + json.dumps(_chunk(job, "", 0)).encode(),
    "piece": lambda job, number: b"\n,\r\n" + json.dumps(_chunk(job, "word ", number + 1)).encode(),
    "closing": lambda job: b"\n,\r\n" + json.dumps(_chunk(job, "", job.words, _finish(job))).encode() + b"\n]\n",
}

# ---------------------------------------------------------------------- chat and generate


def _line(job: Any, text: str, **more: Any) -> dict[str, Any]:
    said = {"response": text} if job.is_generate else {"message": {"role": "assistant", "content": text}}
    return {"model": job.asked["model"], "created_at": TIME, **said, "done": False} | more


def _last(job: Job, text: str) -> dict[str, Any]:
    counts = {"prompt_eval_count": job.input_tokens, "eval_count": job.words, "total_duration": 5}
    return _line(job, text, done=True, done_reason="length" if job.is_cut else "stop", **counts)


OLLAMA: dict[str, Any] = {
    "type": "application/x-ndjson",
    "whole": lambda job: _last(job, " ".join(["word"] * job.words)),
    "opening": lambda _job: b"",
    "piece": lambda job, _number: json.dumps(_line(job, "word ")).encode() + b"\n",
    "closing": lambda job: json.dumps(_last(job, "")).encode() + b"\n",
}
