"""What a request to a model asks, and how often its history goes round already.

A model that is stuck shows it in the request itself: the same answer of its own and the same result of a tool, one
round after the other at the end of the history. Nothing need be remembered for that. What is asked is what stands
behind the model's last answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.dialects.marks_shapes import ChatMessage, GeminiContent, InputItem
from meshd.turns.rewording import STRIDES, says_the_same
from meshd.turns.said import DECORATED, Said
from meshd.turns.sample import sampled
from meshd.turns.seen import Seen
from meshd.turns.turn import AGENT, LLM

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Ask

_Message = tuple[bool, bytes, bool]
"""Whether it is the model's, what it says, and whether it has to do with a tool."""

MESSAGES_MAX: Final = 64
"""At the end of a history that are looked at."""
PERIOD_MAX: Final = 16
"""Messages of one round."""
MESSAGE_BYTES_MAX: Final = 4096
_COLD: Final = frozenset((b"0", b"0.0", b"null"))
NONSENSE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_chat: Final = msgspec.json.Decoder(list[ChatMessage])
_items: Final = msgspec.json.Decoder(list[InputItem])
_contents: Final = msgspec.json.Decoder(list[GeminiContent])


class Asking:
    """What one request asks."""

    __slots__ = ("is_sampled", "payload", "period", "rounds")

    def __init__(self, payload: bytes, rounds: int, period: int, is_sampled: bool) -> None:
        self.is_sampled = is_sampled
        """There is no talk yet, and chance is asked for: whoever sends it again wants another sample."""
        self.payload = payload
        self.rounds = rounds
        """How often the end of the history says the same, model and tools together; 0 where it does not."""
        self.period = period
        """Messages of one such round."""


def asking_of(dialect: str, ask: Ask, periods: int, bytes_max: int) -> Asking | None:
    """Return what a request asks that was read by its dialect; None where nothing of it can be read."""
    reader = _READERS.get((dialect, ask.operation))
    pairs = getattr(ask.fields, "pairs", None)
    if reader is None or pairs is None:
        return None
    key, read = reader
    raw = pairs.get(key)
    if raw is None:
        return None
    try:
        messages = read(raw)
    except NONSENSE:
        return None
    at = len(messages)
    while at and not messages[at - 1][0]:
        at -= 1
    payload = b"\n".join([said for _, said, _ in messages[at:]])
    period = 0
    if len(messages) > 2 * periods:
        period = round_of(messages[-MESSAGES_MAX:], periods) or reworded_round_of(messages[-MESSAGES_MAX:], periods)
    is_sampled = not any(message[0] for message in messages) and bytes(pairs.get("temperature", b"0")) not in _COLD
    return Asking(sampled(payload, bytes_max), periods if period else 0, period, is_sampled)


def round_of(messages: list[_Message], periods: int) -> int:
    """Return how many messages one round is, where the last ones are `periods` rounds of the same; else 0."""
    count = len(messages)
    last = messages[-1]
    if last[0]:
        return 0
    said: dict[int, Said] = {}
    """What was compared with already, by its place."""
    seen = Seen()
    for period in range(2, min(PERIOD_MAX, (count - 1) // periods) + 1):
        if not _is_same(messages, count - 1, period, said, seen):
            continue
        begins = count - period * (periods - 1)
        if all(_is_same(messages, at, period, said, seen) for at in range(count - 2, begins - 1, -1)):
            found = Said(last[1], True).features()
            return 0 if found is not None and found.is_underway else period
    return 0


def reworded_round_of(messages: list[_Message], periods: int) -> int:
    """Return how many messages one round is, where a talk without tools goes round in other words; else 0."""
    if messages[-1][0]:
        return 0
    for stride in range(1, STRIDES + 1):
        period = 2 * stride
        first = len(messages) - 1 - period * periods
        if first < 0:
            return 0
        if any(one[2] or one[0] is (at % 2 == 0) for at, one in enumerate(messages[first:])):
            return 0
        questions = [Said(one[1]) for one in messages[first::period]]
        answers = [Said(one[1], True) for one in messages[first + period - 1 :: period]]
        if says_the_same(questions, answers, LLM, is_polled=False):
            return period
    return 0


def _is_same(messages: list[_Message], at: int, period: int, said: dict[int, Said], seen: Seen) -> bool:
    (is_model, one, _), (was_model, before, _) = messages[at], messages[at - period]
    if is_model is not was_model:
        return False
    if one == before:
        return True
    apart = len(one) - len(before)
    if (apart if apart > 0 else -apart) > 40 + min(len(one), len(before)):
        return False
    that = said.get(at - period)
    if that is None:
        that = said[at - period] = Said(before, not is_model)
    return Said(one, not is_model).nearness(that, seen, AGENT) > DECORATED


def _of_chat(raw: Any) -> list[_Message]:
    return [
        (
            message.role == "assistant",
            bytes(message.content)[:MESSAGE_BYTES_MAX] + bytes(message.tool_calls)[:MESSAGE_BYTES_MAX],
            message.role == "tool" or bool(bytes(message.tool_calls)),
        )
        for message in _chat.decode(raw)
    ]


def _of_response(raw: Any) -> list[_Message]:
    data = bytes(raw)
    if data[:1] != b"[":
        return [(False, data[:MESSAGE_BYTES_MAX], False)]
    found: list[_Message] = []
    for item in _items.decode(data):
        kind = item.type if type(item.type) is str else "message"
        if kind == "reasoning":
            continue
        arguments = item.arguments.encode() if type(item.arguments) is str else b""
        said = bytes(item.content)[:MESSAGE_BYTES_MAX] + bytes(item.output)[:MESSAGE_BYTES_MAX] + arguments
        is_call = kind.endswith("_call")
        found.append((item.role == "assistant" or is_call, said, kind != "message"))
    return found


def _of_gemini(raw: Any) -> list[_Message]:
    found: list[_Message] = []
    for one in _contents.decode(raw):
        said = bytes(one.parts)[:MESSAGE_BYTES_MAX]
        found.append((one.role == "model", said, b'"function' in said))
    return found


_READERS: Final[dict[tuple[str, str], tuple[str, Callable[[Any], list[_Message]]]]] = {
    ("openai", "chat"): ("messages", _of_chat),
    ("openai", "responses"): ("input", _of_response),
    ("anthropic", "chat"): ("messages", _of_chat),
    ("gemini", "chat"): ("contents", _of_gemini),
    ("ollama", "chat"): ("messages", _of_chat),
}
"""By dialect and operation: the member that holds the history, and how it is read."""
