"""What the stand-in provider understands and says: its own count of tokens, and the bodies of its two dialects.

One word in the last message decides how long an answer would be without a cap: "... in 300 words".
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Protocol

_TOKEN = re.compile(r"\w+|[^\w\s]+")
_LENGTH = re.compile(r"\bin (\d{1,6}) words\b")
_MESSAGE_OVERHEAD_TOKENS = 3
_WORDS_DEFAULT = 40
_PIECE_WORDS = 6
_VOCABULARY = ("one", "call", "and", "then", "the", "next", "so", "no", "turn", "goes", "past", "its", "end")


def count_tokens(text: str) -> int:
    """Count tokens as this provider bills them: every word, and every run of marks."""
    return sum(1 for _ in _TOKEN.finditer(text))


@dataclass
class Account:
    """What one API key has been billed."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    paths: dict[str, int] = field(default_factory=dict)
    """How often each path was asked for: it tells the dialects apart."""


@dataclass
class Job:
    """One request, understood: what it costs to read, and what will be said."""

    model: str
    input_tokens: int
    words: list[str]
    is_capped: bool
    is_stream: bool
    is_usage_asked: bool
    account: Account

    def bill(self, words: list[str]) -> None:
        """Bill what was just generated: one token a word."""
        self.account.output_tokens += len(words)


class BadRequestError(Exception):
    """The request is not one that this provider understands."""


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return ""


def _cap(body: dict[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        cap = body.get(name)
        if cap is not None:
            if not isinstance(cap, int) or isinstance(cap, bool) or cap < 1:
                raise BadRequestError(f"{name} must be a positive integer")
            return cap
    return None


def understand(raw: bytes, account: Account) -> Job:
    """Read a request body and bill its input. Raises BadRequestError, and then bills nothing."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"body is not JSON: {error}") from error
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list) or not body["messages"]:
        raise BadRequestError("messages must be a list that is not empty")
    if not all(isinstance(message, dict) for message in body["messages"]):
        raise BadRequestError("every message must be an object")
    texts = [_text_of(message.get("content")) for message in body["messages"]]
    if "system" in body:
        texts.append(_text_of(body["system"]))
    asked = _LENGTH.search(texts[len(body["messages"]) - 1])
    wanted = int(asked.group(1)) if asked else _WORDS_DEFAULT
    cap = _cap(body)
    length = wanted if cap is None else min(wanted, cap)
    input_tokens = sum(count_tokens(text) + _MESSAGE_OVERHEAD_TOKENS for text in texts)
    account.calls += 1
    account.input_tokens += input_tokens
    options = body.get("stream_options")
    return Job(
        model=str(body.get("model", "stand-in")),
        input_tokens=input_tokens,
        words=[_VOCABULARY[index % len(_VOCABULARY)] + " " for index in range(length)],
        is_capped=length < wanted,
        is_stream=body.get("stream") is True,
        is_usage_asked=isinstance(options, dict) and options.get("include_usage") is True,
        account=account,
    )


def pieces(words: list[str]) -> list[list[str]]:
    """Cut an answer into what goes out at once."""
    return [words[start : start + _PIECE_WORDS] for start in range(0, len(words), _PIECE_WORDS)]


class Form(Protocol):
    """How one dialect says things."""

    def whole(self, job: Job) -> dict[str, Any]:
        """Return the body of a plain reply."""
        ...

    def opening(self, job: Job) -> bytes:
        """Return the first events of a stream."""
        ...

    def piece(self, job: Job, words: list[str]) -> bytes:
        """Return the event of a few words."""
        ...

    def closing(self, job: Job) -> bytes:
        """Return the events that end a stream, with usage where the real API reports it."""
        ...

    def error(self, message: str, kind: str) -> dict[str, Any]:
        """Return the body of an error."""
        ...


class OpenAI:
    """Bodies of chat completions."""

    def usage(self, job: Job) -> dict[str, int]:
        output = len(job.words)
        return {
            "prompt_tokens": job.input_tokens,
            "completion_tokens": output,
            "total_tokens": job.input_tokens + output,
        }

    def whole(self, job: Job) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(job.words)}
        reason = "length" if job.is_capped else "stop"
        return {
            "id": "chatcmpl-stand-in",
            "object": "chat.completion",
            "created": 0,
            "model": job.model,
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": self.usage(job),
        }

    def _chunk(self, job: Job, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        chunk: dict[str, Any] = {
            "id": "chatcmpl-stand-in",
            "object": "chat.completion.chunk",
            "created": 0,
            "model": job.model,
            "choices": choices,
        }
        if job.is_usage_asked:
            chunk["usage"] = usage
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"

    def opening(self, job: Job) -> bytes:
        return self._chunk(job, [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])

    def piece(self, job: Job, words: list[str]) -> bytes:
        return self._chunk(job, [{"index": 0, "delta": {"content": "".join(words)}, "finish_reason": None}])

    def closing(self, job: Job) -> bytes:
        reason = "length" if job.is_capped else "stop"
        end = self._chunk(job, [{"index": 0, "delta": {}, "finish_reason": reason}])
        usage = self._chunk(job, [], self.usage(job)) if job.is_usage_asked else b""
        return end + usage + b"data: [DONE]\n\n"

    def error(self, message: str, kind: str) -> dict[str, Any]:
        return {"error": {"message": message, "type": kind, "code": None, "param": None}}


class Anthropic:
    """Bodies of messages."""

    def _reason(self, job: Job) -> str:
        return "max_tokens" if job.is_capped else "end_turn"

    def _message(
        self, job: Job, content: list[dict[str, Any]], reason: str | None, output_tokens: int
    ) -> dict[str, Any]:
        return {
            "id": "msg_stand_in",
            "type": "message",
            "role": "assistant",
            "model": job.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": {"input_tokens": job.input_tokens, "output_tokens": output_tokens},
        }

    def whole(self, job: Job) -> dict[str, Any]:
        content = [{"type": "text", "text": "".join(job.words)}]
        return self._message(job, content, self._reason(job), len(job.words))

    def _event(self, name: str, **fields: Any) -> bytes:
        return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()

    def opening(self, job: Job) -> bytes:
        start = self._event("message_start", message=self._message(job, [], None, 1))
        return start + self._event("content_block_start", index=0, content_block={"type": "text", "text": ""})

    def piece(self, job: Job, words: list[str]) -> bytes:
        delta = {"type": "text_delta", "text": "".join(words)}
        return self._event("content_block_delta", index=0, delta=delta)

    def closing(self, job: Job) -> bytes:
        delta = {"stop_reason": self._reason(job), "stop_sequence": None}
        return (
            self._event("content_block_stop", index=0)
            + self._event("message_delta", delta=delta, usage={"output_tokens": len(job.words)})
            + self._event("message_stop")
        )

    def error(self, message: str, kind: str) -> dict[str, Any]:
        return {"type": "error", "error": {"type": kind, "message": message}}
