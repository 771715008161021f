"""Bodies of requests and answers, as agents, tools and a model really write them."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.wrappers_pb2 import StringValue

GRPC_METHOD = "/loops.v1.Agent/Run"
SYSTEM = "You are one of several agents that work on a task together. Use your tools where they help."


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def text_of(speech: Any) -> str:
    """Return a speech as one text."""
    return speech if isinstance(speech, str) else json.dumps(speech, ensure_ascii=False)


def request(via: str, target: str, path: str, speech: Any, number: int, id: str) -> tuple[str, str, bytes | None]:
    """Return (method, path, body) of a call of an agent or a tool; `id` is what a client would make up anew."""
    if via == "get":
        return "GET", path, None
    if via == "mcp":
        arguments = speech if isinstance(speech, dict) else {"query": speech}
        return (
            "POST",
            "/mcp",
            _rpc(number, "tools/call", {"name": target.removeprefix("tool."), "arguments": arguments}),
        )
    if via == "a2a":
        method = "message/send" if path == "/run" else path
        params = speech if isinstance(speech, dict) else {"message": _message("user", speech, id)}
        return "POST", "/", _rpc(number, method, params)
    if via == "grpc":
        return "POST", GRPC_METHOD, StringValue(value=text_of(speech)).SerializeToString()
    return "POST", path, _json(speech if isinstance(speech, dict) else {"task": speech})


def answer(via: str, speech: Any, number: int, id: str, *, fails: bool) -> bytes:
    """Return the body of the answer to such a call."""
    if via == "mcp":
        result: Any = {"content": [{"type": "text", "text": text_of(speech)}], "isError": fails}
        return _json({"jsonrpc": "2.0", "id": number, "result": result})
    if via == "a2a":
        result = speech if isinstance(speech, dict) else _message("agent", speech, id)
        return _json({"jsonrpc": "2.0", "id": number, "result": result})
    if via == "grpc":
        return StringValue(value=text_of(speech)).SerializeToString()
    return _json(speech if isinstance(speech, dict) else {"result": speech})


def _rpc(number: int, method: str, params: Any) -> bytes:
    return _json({"jsonrpc": "2.0", "id": number, "method": method, "params": params})


def _message(role: str, text: str, id: str) -> dict[str, Any]:
    return {"kind": "message", "role": role, "messageId": id, "parts": [{"kind": "text", "text": text}]}


def chat(messages: list[dict[str, Any]], temperature: float | None = None) -> bytes:
    """Return a request to the model."""
    sampling = {} if temperature is None else {"temperature": temperature}
    return _json({"model": "m", "max_tokens": 400, **sampling, "messages": messages})


def completion(message: dict[str, Any], tokens: int, id: str) -> bytes:
    """Return the model's answer; three quarters of `tokens` were read, a quarter written."""
    written = tokens // 4
    usage = {"prompt_tokens": tokens - written, "completion_tokens": written, "total_tokens": tokens}
    finish = "tool_calls" if "tool_calls" in message else "stop"
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
    made = {"id": f"chatcmpl-{id}", "object": "chat.completion", "created": 1, "model": "m"}
    return _json(made | {"choices": [choice], "usage": usage})


def tool_call(tool: str, speech: Any, id: str) -> dict[str, Any]:
    """Return the model's message that calls a tool."""
    arguments = speech if isinstance(speech, dict) else {"query": speech}
    function = {"name": tool, "arguments": json.dumps(arguments, ensure_ascii=False)}
    calls = [{"id": f"call_{id.replace('-', '')[:24]}", "type": "function", "function": function}]
    return {"role": "assistant", "content": None, "tool_calls": calls}
