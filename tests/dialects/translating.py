"""How the tests of translation ask for one: a body as a caller sends it, read by the caller's dialect first."""

from __future__ import annotations

import json
from typing import Any

from meshd.call import Ask
from meshd.dialects.table import DIALECTS
from meshd.dialects.translation import Translation, translation

OTHER = {"openai": "anthropic", "anthropic": "openai"}
MODELS = {"openai": "gpt-4o", "anthropic": "claude-sonnet-4-6"}
"""A model of each that takes all that its dialect can say."""
USER = {"role": "user", "content": "Is it foggy?"}


def body_of(caller: str, **members: Any) -> dict[str, Any]:
    """Return the smallest request of a dialect, with members beside or in the place of its own."""
    least: dict[str, Any] = {"model": MODELS[caller], "messages": [USER]}
    if caller == "anthropic":
        least["max_tokens"] = 100
    return {name: value for name, value in (least | members).items() if value is not ...}


def read(caller: str, asked: dict[str, Any]) -> tuple[Ask, bytes]:
    body = json.dumps(asked).encode()
    return DIALECTS[caller].read("chat", body), body


def between(caller: str) -> Translation:
    made = translation(caller, OTHER[caller], "chat")
    assert made is not None
    return made


def sent(caller: str, asked: dict[str, Any], model: str = "", output_cap: int | None = None) -> dict[str, Any]:
    """Return what the other dialect's upstream is sent for a request of the caller's."""
    ask, body = read(caller, asked)
    model = model or MODELS[OTHER[caller]]
    made = between(caller)
    assert made.why_not(ask, model) == ""
    _, written = made.request(ask, body, model=model, output_cap=output_cap)
    # The other dialect reads it as it would a caller's own.
    assert DIALECTS[OTHER[caller]].read("chat", written).model == model
    return json.loads(written)


def why_not(caller: str, asked: dict[str, Any], model: str = "") -> str:
    """Return why a request cannot be translated, having seen that it is not."""
    ask, _ = read(caller, asked)
    return between(caller).why_not(ask, model)


def asking(caller: str, model: str = "", **members: Any) -> Translation:
    """Return a translation whose request has been sent."""
    ask, body = read(caller, body_of(caller, **members))
    made = between(caller)
    made.request(ask, body, model=model or MODELS[OTHER[caller]], output_cap=None)
    return made


def stream_of(caller: str, events: list[Any], *, is_ended: bool = True, **members: Any) -> bytes:
    """Return the translated stream of events of the upstream's dialect."""
    stream = asking(caller, stream=True, **members).stream(created=7)
    said = b"".join(stream.feed(sse(event)) for event in events)
    return said + stream.end() if is_ended else said


def sse(event: Any) -> bytes:
    """Return an event as a server writes it: a dict as JSON, with its type for a name where it has one."""
    if isinstance(event, bytes):
        return event
    name = f"event: {event['type']}\n" if "type" in event else ""
    return f"{name}data: {json.dumps(event)}\n\n".encode()


def datas(stream: bytes) -> list[Any]:
    """Return what the events of a stream say, `[DONE]` as it stands."""
    found = [line[6:] for line in stream.split(b"\n") if line.startswith(b"data: ")]
    return ["[DONE]" if data == b"[DONE]" else json.loads(data) for data in found]
