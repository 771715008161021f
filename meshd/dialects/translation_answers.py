"""What answers have in common in both directions: why they stop, what they cost, what went wrong."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from meshd.dialects.counting import count, respelled
from meshd.dialects.openai_usage import usage_of
from meshd.dialects.translation_contract import TranslationError, lost

_NONSENSE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_MESSAGE_CHARACTERS_MAX: Final = 2_048

_FINISH_OF: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    # A turn that may be continued is none that has ended.
    "pause_turn": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_STOP_OF: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_ANTHROPIC_TYPES: Final = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 422: "invalid_request_error", 429: "rate_limit_error",
    503: "overloaded_error", 504: "timeout_error", 529: "overloaded_error",
}  # fmt: skip
_OPENAI_CODES: Final = {
    "authentication_error": "invalid_api_key", "not_found_error": "model_not_found",
    "rate_limit_error": "rate_limit_exceeded", "billing_error": "insufficient_quota",
    "overloaded_error": "server_overloaded",
}  # fmt: skip
_OVERLOADED: Final = 529
"""A status of Anthropic's own; elsewhere it is 503."""
_TOO_LONG: Final = "prompt is too long"


def decode(data: bytes, decoder: Any, what: str) -> Any:
    """Return a decoded answer, also where only a tolerant parser reads it. Raises TranslationError."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError:
        lost(f"{what} has not the shape of one")
    except _NONSENSE:
        pass
    try:
        return decoder.decode(respelled(data))
    except _NONSENSE as error:
        raise TranslationError(f"{what} is no JSON object") from error


def text_of(value: Any) -> str:
    """Return the text of a content: a string, or parts with a `text`."""
    if type(value) is str:
        return value
    if type(value) is list:
        texts = [part.get("text") for part in value if type(part) is dict]
        return "".join([text for text in texts if type(text) is str])
    return ""


def finish_reason(stop_reason: Any, *, has_calls: bool) -> str:
    """Return OpenAI's word for why an answer of Anthropic's stopped."""
    known = _FINISH_OF.get(stop_reason) if type(stop_reason) is str else None
    return known or ("tool_calls" if has_calls else "stop")


def stop_reason(finish: Any, *, has_calls: bool, is_refused: bool) -> str:
    """Return Anthropic's word for why an answer of OpenAI's stopped.

    A call that the request demanded by name ends with `stop` there, and here it is one all the same.
    """
    known = _STOP_OF.get(finish, "end_turn") if type(finish) is str else "end_turn"
    if known == "end_turn" and (is_refused or has_calls):
        return "refusal" if is_refused else "tool_use"
    return known


def chat_usage(said: Any) -> dict[str, Any] | None:
    """Return Anthropic's report of tokens as OpenAI's; None where it is missing or absurd.

    There cached tokens are beside the input and thinking is within the output; here both are within.
    """
    if type(said) is not dict:
        return None
    given, made = count(said.get("input_tokens")), count(said.get("output_tokens"))
    if given is None or made is None:
        return None
    written = count(said.get("cache_creation_input_tokens")) or 0
    cached = count(said.get("cache_read_input_tokens")) or 0
    details = said.get("output_tokens_details")
    thought = (count(details.get("thinking_tokens")) or 0) if type(details) is dict else 0
    prompt = given + written + cached
    usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
    usage["prompt_tokens_details"] = {"cached_tokens": cached, "cache_write_tokens": written}
    usage["completion_tokens_details"] = {"reasoning_tokens": min(thought, made)}
    return usage


def message_usage(said: Any) -> dict[str, Any]:
    """Return OpenAI's report of tokens as Anthropic's, zeros where it is missing or absurd: there must be one."""
    usage = None
    if type(said) is dict:
        given, made = said.get("prompt_tokens"), said.get("completion_tokens")
        details, made_details = said.get("prompt_tokens_details"), said.get("completion_tokens_details")
        usage = usage_of(given, made, said.get("total_tokens"), details, made_details, True)
    if usage is None:
        return {"input_tokens": 0, "output_tokens": 0}
    written = usage.billed.cache_write_tokens if usage.billed is not None else 0
    written = min(written, usage.input_tokens - usage.cached_tokens)
    return {
        "input_tokens": usage.input_tokens - usage.cached_tokens - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def merged_usage(known: dict[str, Any], said: Any) -> dict[str, Any]:
    """Return a report with what a later one says anew: each of Anthropic's is of all tokens so far."""
    if type(said) is not dict:
        return known
    return known | {name: value for name, value in said.items() if value is not None}


def _read(body: bytes) -> tuple[str, str, str]:
    """Return message, type and code of an error's body, empty where it says none."""
    try:
        said: Any = msgspec.json.decode(body)
    except _NONSENSE:
        return "", "", ""
    if type(said) is list and said:
        # Google's server that speaks OpenAI's language says errors so.
        said = said[0]
    if type(said) is not dict:
        return "", "", ""
    return _said(said.get("error", said))


def _said(error: Any) -> tuple[str, str, str]:
    """Return message, type and code of an error, empty where it says none."""
    if type(error) is str:
        return error[:_MESSAGE_CHARACTERS_MAX], "", ""
    if type(error) is not dict:
        return "", "", ""
    found = [error.get(name) for name in ("message", "type", "code")]
    message, kind, code = [one[:_MESSAGE_CHARACTERS_MAX] if type(one) is str else "" for one in found]
    return message, kind, code


def anthropic_error(status: int, body: bytes) -> tuple[int, bytes]:
    """Return an error of OpenAI's as Anthropic's."""
    message, kind, code = _read(body)
    if "insufficient_quota" in (kind, code):
        return 402, _anthropic_body("billing_error", message)
    known = _ANTHROPIC_TYPES.get(status)
    if known is None:
        known = "api_error" if status >= 500 else "invalid_request_error"
    return status, _anthropic_body(known, message or f"the provider answered with status {status}")


def _anthropic_body(kind: str, message: str) -> bytes:
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}})


def anthropic_error_event(error: Any) -> bytes:
    """Return an error within a stream of OpenAI's as Anthropic's event."""
    message, kind, code = _said(error)
    known = "api_error"
    if "rate_limit" in code or "rate_limit" in kind:
        known = "rate_limit_error"
    elif "overloaded" in code or "overloaded" in kind:
        known = "overloaded_error"
    return b"event: error\ndata: " + _anthropic_body(known, message or "the provider's stream failed") + b"\n\n"


def openai_error(status: int, body: bytes) -> tuple[int, bytes]:
    """Return an error of Anthropic's as OpenAI's."""
    message, kind, _ = _read(body)
    error = _openai_object(kind, message or f"the provider answered with status {status}")
    if status == 429 and error["code"] is None:
        error["code"] = "rate_limit_exceeded"
    return 503 if status == _OVERLOADED else status, msgspec.json.encode({"error": error})


def _openai_object(kind: str, message: str) -> dict[str, str | None]:
    code = "context_length_exceeded" if _TOO_LONG in message else _OPENAI_CODES.get(kind)
    return {"message": message, "type": kind or "server_error", "param": None, "code": code}


def openai_error_event(error: Any) -> bytes:
    """Return an error within a stream of Anthropic's as OpenAI's event."""
    message, kind, _ = _said(error)
    said = _openai_object(kind, message or "the provider's stream failed")
    return b"data: " + msgspec.json.encode({"error": said}) + b"\n\n"
