"""A text as a well-formed answer: what a client gets where no model was asked.

The answer costs nothing and says so, ends as a finished one, and its model's name says what it is. As the official
SDKs read them: OpenAI chat and completions, OpenAI responses, and Anthropic messages, plain and streamed. MCP gets a
tool's result, A2A a message; for all else that is no LLM the text is the body itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from meshd.call import Ask
    from meshd.dialects.contract import Dialect

JSON: Final = b"application/json"
STREAM: Final = b"text/event-stream; charset=utf-8"
_TEXT: Final = b"text/plain; charset=utf-8"
_CHOICES_MAX: Final = 128
_ABLE: Final = frozenset(
    {("openai", "chat"), ("openai", "text_completion"), ("openai", "responses"), ("anthropic", "chat")}
)


_RPC_ABLE: Final = frozenset({("mcp", "tools/call"), ("a2a", "message/send"), ("a2a", "SendMessage")})


class Canned:
    """What a canned answer says of itself."""

    __slots__ = ("created", "id", "model", "text")

    def __init__(self, text: str, model: str, id: str, created: int) -> None:
        # A stranger's code may return what is no text at all.
        self.text = text.encode("utf-8", "replace").decode()
        self.model = model
        """Not that of any provider: what made the text."""
        self.id = id
        self.created = created
        """Unix seconds."""


def can_answer(dialect: Dialect, ask: Ask | None, rpc: Any) -> bool:
    """Say whether a text can be made an answer to a request. `rpc` is what a JSON-RPC call asks for, else None."""
    if rpc is not None:
        return bool(rpc.id) and (rpc.protocol, rpc.method) in _RPC_ABLE
    if ask is not None:
        return (dialect.name, ask.operation) in _ABLE
    return dialect.name == "plain"


def answer(dialect: Dialect, ask: Ask | None, rpc: Any, canned: Canned) -> tuple[bytes, bytes]:
    """Return (content type, body). `can_answer` must have said that there is one."""
    if rpc is not None:
        return _rpc(rpc, canned)
    if ask is None:
        return _plain(canned.text)
    if dialect.name == "anthropic":
        return (STREAM, _messages_stream(canned)) if ask.is_stream else (JSON, _encode(_message(canned, "end_turn")))
    if ask.operation == "responses":
        return (STREAM, _responses_stream(canned)) if ask.is_stream else (JSON, _encode(_response(canned, True)))
    is_chat = ask.operation == "chat"
    if ask.is_stream:
        return STREAM, _chat_stream(canned, ask, is_chat=is_chat)
    return JSON, _encode(_completion(canned, ask, is_chat=is_chat))


def _plain(text: str) -> tuple[bytes, bytes]:
    body = text.encode("utf-8", "replace")
    try:
        is_json = isinstance(msgspec.json.decode(body), dict | list)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        is_json = False
    return (JSON if is_json else _TEXT), body


def _rpc(rpc: Any, canned: Canned) -> tuple[bytes, bytes]:
    """As MCP has a tool's result, and A2A 0.3 and 1.0 a message for an answer."""
    if rpc.protocol == "mcp":
        content = [{"type": "text", "text": canned.text}]
        result: dict[str, Any] = {"content": content, "isError": False, "resultType": "complete"}
    elif rpc.method == "SendMessage":
        said = {"messageId": canned.id, "role": "ROLE_AGENT", "parts": [{"text": canned.text}]}
        result = {"message": said}
    else:
        parts = [{"kind": "text", "text": canned.text}]
        result = {"kind": "message", "messageId": canned.id, "role": "agent", "parts": parts}
    body = b'{"jsonrpc":"2.0","id":' + rpc.id + b',"result":' + _encode(result) + b"}"
    return (JSON, body) if rpc.is_json_taken else (STREAM, b"event: message\ndata: " + body + b"\n\n")


def _encode(value: Any) -> bytes:
    body: bytes = msgspec.json.encode(value)
    return body


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + _encode(value) + b"\n\n"


def _named(value: dict[str, Any]) -> bytes:
    return b"event: " + str(value["type"]).encode() + b"\n" + _event(value)


# ---------------------------------------------------------------------- chat completions, and completions


_NO_USAGE: Final = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def _frame(canned: Canned, shape: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{canned.id}",
        "object": shape,
        "created": canned.created,
        "model": canned.model,
        "choices": choices,
    }


def _completion(canned: Canned, ask: Ask, *, is_chat: bool) -> dict[str, Any]:
    if is_chat:
        said: dict[str, Any] = {"message": {"role": "assistant", "content": canned.text, "refusal": None}}
    else:
        said = {"text": canned.text}
    choices = [
        {"index": index, **said, "logprobs": None, "finish_reason": "stop"}
        for index in range(min(ask.choices, _CHOICES_MAX))
    ]
    shape = "chat.completion" if is_chat else "text_completion"
    return {**_frame(canned, shape, choices), "usage": _NO_USAGE}


def _chat_stream(canned: Canned, ask: Ask, *, is_chat: bool) -> bytes:
    shape = "chat.completion.chunk" if is_chat else "text_completion"
    out: list[bytes] = []
    for index in range(min(ask.choices, _CHOICES_MAX)):
        first: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": None}
        last: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": "stop"}
        if is_chat:
            first["delta"], last["delta"] = {"role": "assistant", "content": canned.text}, {}
        else:
            first["text"], last["text"] = canned.text, ""
        out += (_event(_frame(canned, shape, [first])), _event(_frame(canned, shape, [last])))
    if ask.is_usage_asked:
        out.append(_event({**_frame(canned, shape, []), "usage": _NO_USAGE}))
    return b"".join(out) + b"data: [DONE]\n\n"


# ---------------------------------------------------------------------- responses


def _response(canned: Canned, is_done: bool) -> dict[str, Any]:
    usage = {
        "input_tokens": 0,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 0,
    }
    return {
        "id": f"resp_{canned.id}",
        "object": "response",
        "created_at": canned.created,
        "status": "completed" if is_done else "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "model": canned.model,
        "output": [_item(canned, True)] if is_done else [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage if is_done else None,
    }


def _item(canned: Canned, is_done: bool) -> dict[str, Any]:
    return {
        "type": "message",
        "id": f"msg_{canned.id}",
        "status": "completed" if is_done else "in_progress",
        "role": "assistant",
        "content": [_part(canned.text)] if is_done else [],
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _responses_stream(canned: Canned) -> bytes:
    where = {"item_id": f"msg_{canned.id}", "output_index": 0, "content_index": 0}
    events: tuple[dict[str, Any], ...] = (
        {"type": "response.created", "response": _response(canned, False)},
        {"type": "response.in_progress", "response": _response(canned, False)},
        {"type": "response.output_item.added", "output_index": 0, "item": _item(canned, False)},
        {"type": "response.content_part.added", **where, "part": _part("")},
        {"type": "response.output_text.delta", **where, "delta": canned.text, "logprobs": []},
        {"type": "response.output_text.done", **where, "text": canned.text, "logprobs": []},
        {"type": "response.content_part.done", **where, "part": _part(canned.text)},
        {"type": "response.output_item.done", "output_index": 0, "item": _item(canned, True)},
        {"type": "response.completed", "response": _response(canned, True)},
    )
    return b"".join([_named({**event, "sequence_number": number}) for number, event in enumerate(events)])


# ---------------------------------------------------------------------- messages


def _message(canned: Canned, stop_reason: str | None) -> dict[str, Any]:
    return {
        "id": f"msg_{canned.id}",
        "type": "message",
        "role": "assistant",
        "model": canned.model,
        "content": [{"type": "text", "text": canned.text}] if stop_reason is not None else [],
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }


def _messages_stream(canned: Canned) -> bytes:
    events: tuple[dict[str, Any], ...] = (
        {"type": "message_start", "message": _message(canned, None)},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": canned.text}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"input_tokens": 0, "output_tokens": 0},
        },
        {"type": "message_stop"},
    )
    return b"".join([_named(event) for event in events])
