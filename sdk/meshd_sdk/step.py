"""What an agent says of its own reasoning: steps, notes, decisions, tools called in its own process. Stdlib only."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final

from meshd_sdk.link import Entry, new_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# What the sidecar takes of one entry: it refuses a record with more in it, and all that stands beside it.
TEXT_CHARS_MAX: Final = 4096
VALUE_CHARS_MAX: Final = 1024
NAME_CHARS_MAX: Final = 128
KEY_CHARS_MAX: Final = 64
PAIRS_MAX: Final = 32
OPTIONS_MAX: Final = 32
ENTRIES_MAX: Final = 1000
"""Of one step: what a loop writes without end is not kept without end."""


def cut(text: object, chars_max: int = TEXT_CHARS_MAX) -> str:
    """Return a text as the trace takes it: what is longer ends in dots, and half of a surrogate pair is a `?`."""
    said = str(text)
    if not said.isascii():
        said = said.encode("utf-8", "replace").decode()
    return said if len(said) <= chars_max else said[: chars_max - 3] + "..."


def word(text: object, chars_max: int = NAME_CHARS_MAX) -> str:
    """Return a name as the trace takes it: not empty, and each character can be seen."""
    return cut("".join([char if char.isprintable() else "?" for char in str(text)]), chars_max) or "?"


def entry(kind: str, parent_id: str, fields: dict[str, Any], attributes: Mapping[str, Any] | None = None) -> Entry:
    """Return an entry that begins now. ValueError for more than 32 attributes."""
    if attributes is not None and len(attributes) > PAIRS_MAX:
        raise ValueError(f"an entry has at most {PAIRS_MAX} attributes, not {len(attributes)}")
    said = {word(name, KEY_CHARS_MAX): cut(value, VALUE_CHARS_MAX) for name, value in (attributes or {}).items()}
    return Entry(new_id(), kind, fields, time.time(), parent_id, attributes=said)


def note_entry(parent_id: str, text: str, attributes: Mapping[str, Any]) -> Entry:
    """Return a note."""
    return entry("note", parent_id, {"text": cut(text)}, attributes)


def decision_entry(parent_id: str, question: str, choice: str, options: Sequence[str], rationale: str) -> Entry:
    """Return a decision."""
    fields = {
        "question": cut(question, VALUE_CHARS_MAX),
        "choice": cut(choice, VALUE_CHARS_MAX),
        "options": [cut(one, VALUE_CHARS_MAX) for one in options[:OPTIONS_MAX]],
        "rationale": cut(rationale),
    }
    return entry("decision", parent_id, fields)


def digest(value: Any) -> str:
    """Return SHA-256 of a value's JSON, in hex; empty where JSON has no word for it."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return ""
    import hashlib  # with the whole of OpenSSL

    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Step:
    """A step of reasoning, within its `with` block. What is noted in it goes out when it ends, in one record."""

    def __init__(self, name: str, parent_id: str, attributes: Mapping[str, Any]) -> None:
        self.entry = entry("step", parent_id, {"name": word(name), "summary": ""}, attributes)
        self.entries: list[Entry] = [self.entry]

    @property
    def id(self) -> str:
        """The entry's id: what is recorded within the step belongs under it."""
        return self.entry.id

    def note(self, text: str, **attributes: Any) -> None:
        """Keep a text of at most 4,096 characters. ValueError for the 1,000th entry of a step."""
        self._add(note_entry(self.id, text, attributes))

    def decide(self, question: str, choice: str, *, options: Sequence[str] = (), rationale: str = "") -> None:
        """Keep a choice that was made, and what else could have been."""
        self._add(decision_entry(self.id, question, choice, options, rationale))

    def summarize(self, text: str) -> None:
        """Say what the step came to, in at most 4,096 characters."""
        self.entry.fields["summary"] = cut(text)

    def _add(self, one: Entry) -> None:
        if len(self.entries) >= ENTRIES_MAX:
            raise ValueError(f"a step holds at most {ENTRIES_MAX} entries: begin another")
        self.entries.append(one)

    def end(self, error: BaseException | None) -> list[Entry]:
        """Return all of it, with the end in it."""
        self.entry.ended_s = time.time()
        if error is not None:
            self.entry.error = type(error).__name__
        return self.entries
