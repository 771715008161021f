"""What an event, a topic and a group must be, and which topics a wildcard stands for: the same for every bus."""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Final

import msgspec

from meshd.engines.bus_moment import EXPIRY, unix_ns
from meshd.engines.bus_port import Event, EventMalformed
from meshd.engines.bus_terms import EVENT_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

TOPIC_CHARACTERS_MAX: Final = 255
NAME_CHARACTERS_MAX: Final = 1024
"""Of each attribute that is a text."""
DATA_BYTES_MAX: Final = 2**20
"""What every engine that is to come can carry as it is set up by default."""
EXTENSIONS_MAX: Final = 64
EXTENSION_CHARACTERS_MAX: Final = 4096
TOKEN_BYTES_MAX: Final = 16 * 1024
TIME_NS_MAX: Final = 2**63 - 1
SECONDS_MAX: Final = 7 * 86_400.0
"""The longest handling time, and the longest wait before a retry."""
HANDLING_S_LEAST: Final = 0.1
REASON_CHARACTERS_MAX: Final = 1000

_WORD = r"[A-Za-z0-9_-]+"
_TOPIC = re.compile(rf"{_WORD}(?:\.{_WORD})*")
_PATTERN = re.compile(rf"(?:(?:{_WORD}|\*)(?:\.(?:{_WORD}|\*))*(?:\.>)?|>)")
# CloudEvents 1.0, Naming Conventions: lower-case letters and digits, which SHOULD NOT exceed 20 characters.
_EXTENSION = re.compile(r"[a-z0-9]{1,20}")
_DATA: Final = "data"
"""What CloudEvents 1.0, "Naming Conventions", lets no attribute be called."""
_TEXTS: Final = ("id", "source", "type", "subject", "data_content_type", "data_schema", "data_ref", "partition_key",
                 "correlation_id", "causation_id")  # fmt: skip
_texts: Final = operator.attrgetter(*_TEXTS)


def sequence_text(place: int) -> str:
    """Return a place as the attribute `sequence` says it."""
    return f"{place:020}"


def size_of(event: Event) -> int:
    """Return how many bytes an event counts as, as `keep_bytes` counts them."""
    texts = (event.topic, event.source, event.id, event.type, event.subject, event.data_ref, event.partition_key)
    return EVENT_BYTES + len(event.data) + len(event.token) + len(event.clock) + sum(map(len, texts))


def check_topic(topic: str) -> None:
    """Raises EventMalformed for what cannot be published to."""
    if len(topic) > TOPIC_CHARACTERS_MAX:
        raise EventMalformed("topic", f"is longer than {TOPIC_CHARACTERS_MAX} characters")
    if _TOPIC.fullmatch(topic) is None:
        raise EventMalformed(
            "topic",
            f"{topic[:80]!r} is not words of letters, digits, - and _ with dots between, such as task.completed",
        )


def check_pattern(topic: str) -> None:
    """Raises EventMalformed for what cannot be subscribed to."""
    if len(topic) > TOPIC_CHARACTERS_MAX:
        raise EventMalformed("topic", f"is longer than {TOPIC_CHARACTERS_MAX} characters")
    if _PATTERN.fullmatch(topic) is None:
        raise EventMalformed(
            "topic",
            f"{topic[:80]!r} is no topic: words with dots between, a * in the place of one, "
            "a > at the end for one or more",
        )


def is_topic(pattern: str) -> bool:
    """Say whether what may be subscribed to is one topic."""
    return "*" not in pattern and ">" not in pattern


def check_group(group: str) -> None:
    """Raises EventMalformed for what is no name of a group."""
    if len(group) > TOPIC_CHARACTERS_MAX or _TOPIC.fullmatch(group) is None:
        raise EventMalformed(
            "group",
            f"{group[:80]!r} is not words of letters, digits, - and _ with dots between, "
            f"at most {TOPIC_CHARACTERS_MAX} characters",
        )


def check_seconds(field: str, seconds: float, least_s: float = 0.0) -> None:
    """Raises EventMalformed for what is no time to wait."""
    if not least_s <= seconds <= SECONDS_MAX:  # also for NaN
        raise EventMalformed(field, f"{seconds} is not a number of seconds from {least_s:g} to {SECONDS_MAX:.0f}")


def matcher(topic: str) -> Callable[[str], bool]:
    """Return what says whether a topic is one that `topic`, a valid one, stands for."""
    if is_topic(topic):
        return topic.__eq__
    words = topic.split(".")
    ends = words[-1] == ">"
    text = r"\.".join(r"[^.]+" if word == "*" else re.escape(word) for word in (words[:-1] if ends else words))
    if ends:
        text = rf"{text}\..+" if text else ".+"
    pattern = re.compile(text)
    return lambda one: pattern.fullmatch(one) is not None


def completed(event: Event, wall_ns: int, new_id: Callable[[], str]) -> Event:
    """Return an event as it is kept: checked, with what was left empty. Raises EventMalformed."""
    check_topic(event.topic)
    if not event.source:
        raise EventMalformed("source", "is empty: an event says whose it is")
    texts = "".join(_texts(event))
    if len(texts) > NAME_CHARACTERS_MAX or not texts.isascii():
        _check_texts(event)
    if len(event.data) > DATA_BYTES_MAX:
        raise EventMalformed(
            "data", f"is longer than {DATA_BYTES_MAX} bytes: keep it elsewhere and say where in data_ref"
        )
    if len(event.token) + len(event.clock) > TOKEN_BYTES_MAX:
        raise EventMalformed("token", f"and clock are longer than {TOKEN_BYTES_MAX} bytes")
    if not 0 <= event.time_ns <= TIME_NS_MAX:
        raise EventMalformed("time", "is before 1970 or after 2262")
    if event.extensions:
        _check_extensions(event.extensions)
    return msgspec.structs.replace(
        event,
        id=event.id or new_id(),
        type=event.type or event.topic,
        time_ns=event.time_ns or wall_ns,
        data_content_type=event.data_content_type or "application/json",
        sequence="",
    )


def _check_extensions(extensions: dict[str, str]) -> None:
    if len(extensions) > EXTENSIONS_MAX:
        raise EventMalformed("extensions", f"are more than {EXTENSIONS_MAX}")
    for name, text in extensions.items():
        if _EXTENSION.fullmatch(name) is None:
            raise EventMalformed(
                "extensions", f"{name[:40]!r} is not a name of lower-case letters and digits, at most 20 characters"
            )
        if name == _DATA:
            raise EventMalformed("extensions", f"{name} is no name of an attribute: an event's JSON has its data there")
        if len(text) > EXTENSION_CHARACTERS_MAX:
            raise EventMalformed("extensions", f"{name} is longer than {EXTENSION_CHARACTERS_MAX} characters")
        _check_text("extensions", text)
    if EXPIRY in extensions:
        unix_ns(EXPIRY, extensions[EXPIRY])


def _check_texts(event: Event) -> None:
    for name, text in zip(_TEXTS, _texts(event), strict=True):
        if len(text) > NAME_CHARACTERS_MAX:
            raise EventMalformed(name, f"is longer than {NAME_CHARACTERS_MAX} characters")
        if not text.isascii():
            _check_text(name, text)


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise EventMalformed(name, "holds half of a surrogate pair, which is no text") from None
