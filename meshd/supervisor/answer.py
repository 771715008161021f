"""What a supervisor may answer. Whatever else comes is nonsense, and is said to be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from meshd.turns.supervision import Verdict

if TYPE_CHECKING:
    from meshd.turns.supervision import Story

TURNS_MAX: Final = 100_000
REASON_CHARACTERS_MAX: Final = 1000
ANSWER_BYTES_MAX: Final = 1 << 20


class NonsenseError(ValueError):
    """An answer that is none; the message says why, and holds nothing of it."""


class _Answer(msgspec.Struct, frozen=True):
    action: Literal["continue", "redirect", "finish", "stop"]
    turns: int = 0
    target: str = ""
    answer: Any = None
    content_type: str = ""
    reason: str = ""


_decode = msgspec.json.Decoder(_Answer).decode


def read(body: bytes, story: Story, by: str) -> Verdict:
    """Return the verdict in a JSON object such as `meshd.supervisor.story.EXAMPLES`. Raises NonsenseError.

    `by` is who has answered. Keys that are not known are passed over: a newer supervisor may say more.
    """
    try:
        said = _decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise NonsenseError(f"no answer that meshd takes: {str(error)[:200]}") from None
    if said.action not in story.actions:
        raise NonsenseError(f"{said.action} is no answer here; there are {', '.join(story.actions)}")
    reason = said.reason[:REASON_CHARACTERS_MAX]
    if said.action == "continue":
        if not 1 <= said.turns <= TURNS_MAX:
            raise NonsenseError(f"continue needs turns, from 1 to {TURNS_MAX}")
        return Verdict(action="continue", turns=said.turns, reason=reason, by=by)
    if said.action == "redirect":
        if not said.target:
            raise NonsenseError("redirect needs a target, the name of an upstream")
        return Verdict(action="redirect", target=said.target[:64], reason=reason, by=by)
    if said.action == "finish":
        return _finished(said, reason, by)
    return Verdict(action="stop", reason=reason, by=by)


def _finished(said: _Answer, reason: str, by: str) -> Verdict:
    if said.answer is None:
        raise NonsenseError("finish needs an answer")
    is_text = type(said.answer) is str
    content_type = said.content_type or ("text/plain; charset=utf-8" if is_text else "application/json")
    if not (content_type.isascii() and content_type.isprintable() and len(content_type) <= 128):
        raise NonsenseError("content_type is no media type")
    answer = said.answer.encode("utf-8", "replace") if is_text else msgspec.json.encode(said.answer)
    if len(answer) > ANSWER_BYTES_MAX:
        raise NonsenseError(f"the answer is over {ANSWER_BYTES_MAX} bytes")
    return Verdict(action="finish", answer=answer, content_type=content_type, reason=reason, by=by)
