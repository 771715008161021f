"""What is wrong with what a server says of itself, before a model or a person is shown any of it.

Three weights: refused is never shown; held is shown once a person has approved exactly that; noted is shown, and said.
A flaw concerns one entry: the others of its server, and all of other servers, are none the worse for it.
"""

from __future__ import annotations

import re
import unicodedata
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from meshd.discovery.entry import Sort
from meshd.discovery.schemas import SchemaEndless, SchemaOutside, SchemaTooLarge, words_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.discovery.entry import Entry

ENTRIES_MAX: Final = 2048
"""Of one server."""
NAME_CHARACTERS_MAX: Final = 128
URI_CHARACTERS_MAX: Final = 2048
DESCRIPTION_BYTES_MAX: Final = 16_384
SCHEMA_BYTES_MAX: Final = 131_072
DEFINITION_BYTES_MAX: Final = 262_144
INTENTS_MAX: Final = 64
SEARCHED_CHARACTERS: Final = 8192
"""Searched at once, which takes some 10 ms in which no other thread runs."""
OVERLAP_CHARACTERS: Final = 512


class Flaw(str, Enum):
    """What is wrong."""

    NAME = "name"
    """It is empty, too long, or not made of visible characters."""
    REPEATED = "repeated"
    """Another of the same server has the same name, and stands before it."""
    TOO_LARGE = "too_large"
    TOO_MANY = "too_many"
    SCHEMA = "schema"
    """It is no JSON object."""
    ENDLESS = "schema_endless"
    OUTSIDE = "schema_outside"
    HIDDEN = "hidden_characters"
    """Characters that people do not see, or that turn the order in which they read."""
    INSTRUCTIONS = "instructions"
    """It tells a model what to do, in place of saying what it is."""
    EAGER = "eager"
    """It praises itself for everything."""


class Weight(str, Enum):
    """What comes of a flaw."""

    REFUSED = "refused"
    HELD = "held"
    NOTED = "noted"


WEIGHTS: Final[dict[Flaw, Weight]] = {
    Flaw.NAME: Weight.REFUSED,
    Flaw.REPEATED: Weight.REFUSED,
    Flaw.TOO_LARGE: Weight.REFUSED,
    Flaw.TOO_MANY: Weight.REFUSED,
    Flaw.SCHEMA: Weight.REFUSED,
    Flaw.ENDLESS: Weight.REFUSED,
    Flaw.OUTSIDE: Weight.REFUSED,
    Flaw.HIDDEN: Weight.HELD,
    Flaw.INSTRUCTIONS: Weight.HELD,
    Flaw.EAGER: Weight.NOTED,
}


class Finding(NamedTuple):
    """One flaw of one entry, in words for an operator."""

    flaw: Flaw
    name: str
    """Cut to what can be shown."""
    detail: str


class Screened(NamedTuple):
    """What a server says, sorted."""

    kept: tuple[Entry, ...]
    """Those that are not refused."""
    held: dict[tuple[Sort, str, str], tuple[Finding, ...]]
    """By the key of an entry that is kept: what a person must look at first."""
    refused: tuple[Finding, ...]
    noted: tuple[Finding, ...]


_INSTRUCTIONS: Final = re.compile(
    r"<\s{0,8}/?\s{0,8}(?:important|system|secret|instructions?|assistant|hidden)\s{0,8}>"
    r"|\b(?:ignore|disregard|forget|override)\s+(?:all\s+|any\s+|the\s+|your\s+|my\s+)*"
    r"(?:previous|prior|above|earlier|preceding|other|system)\s+(?:instructions?|prompts?|messages?|tools?|rules?|directions?)"
    r"|\bdo(?:\s+not|n['\u2019]t)\s+(?:tell|inform|mention|reveal|show|notify|say)\s+(?:\w+\s+){0,3}(?:the\s+)?users?\b"
    r"|\bwithout\s+(?:telling|informing|notifying|asking)\s+(?:the\s+)?users?\b"
    r"|\bbefore\s+(?:using|calling|invoking)\s+(?:any|every|other|all)\s+(?:other\s+)?tools?\b"
    r"|\b(?:you\s+must|always)\s+(?:first\s+)?(?:call|use|invoke|run)\s+this\s+(?:tool\s+)?(?:first\b|before\b)"
    r"|\bsystem\s*prompt\b.{0,40}\b(?:reveal|print|include|send|pass)"
    r"|\b(?:read|include|pass|send|attach)\b.{0,60}(?:~/\.ssh|id_rsa|\.env\b|/etc/passwd|\.cursor/mcp\.json)",
    re.IGNORECASE,
)
"""As published attacks have them (tool poisoning, 2025): plain words, which a determined server can avoid. What holds
against that one is the pin, the allow-list and the approval. No two neighbours may share what they take without a
bound: a search holds the whole process, and a server writes what is searched."""
_EAGER: Final = re.compile(
    r"\b(?:use|call|prefer|choose|pick|select)\s+(?:me|this(?:\s+\w+)?)\s+(?:tool\s+)?(?:for|to\s+do)\s+"
    r"(?:everything|anything|any\s+\w+|all\s+\w+|every\s+\w+)"
    r"|\balways\s+(?:use|call|prefer|choose)\s+(?:me|this)\b"
    r"|\bthe\s+(?:best|only)\s+tool\s+(?:for|you)\b",
    re.IGNORECASE,
)
_JOINERS: Final = "\u200c\u200d"
"""Of scripts and emoji: between two characters beyond ASCII they are spelling."""


def hidden_in(text: str) -> str:
    """Return the first character of a text that people do not see, as its code point; empty where all are seen."""
    if text.isascii() and text.isprintable():
        return ""
    for at, char in enumerate(text):
        if char in "\n\r\t" or char.isprintable():
            if "\ufe00" <= char <= "\ufe0e" or "\U000e0100" <= char <= "\U000e01ef":
                return f"U+{ord(char):04X}"  # Selectors of variants carry any text that one likes.
            continue
        if char in _JOINERS and 0 < at < len(text) - 1 and not (text[at - 1] + text[at + 1]).isascii():
            continue
        if unicodedata.category(char) in ("Cf", "Cc", "Co", "Cn", "Cs", "Zl", "Zp"):
            return f"U+{ord(char):04X}"
    return ""


def screen(entries: Iterable[Entry]) -> Screened:
    """Sort what one server says by what is wrong with it."""
    kept: list[Entry] = []
    held: dict[tuple[Sort, str, str], tuple[Finding, ...]] = {}
    refused: list[Finding] = []
    noted: list[Finding] = []
    seen: set[tuple[Sort, str, str]] = set()
    for entry in entries:
        if len(kept) >= ENTRIES_MAX:
            refused.append(Finding(Flaw.TOO_MANY, shown(entry.name), f"a server may offer {ENTRIES_MAX}"))
            break
        findings = _findings(entry)
        if entry.key in seen:
            findings.insert(0, Finding(Flaw.REPEATED, shown(entry.name), "its server says the name twice"))
        heaviest = {WEIGHTS[one.flaw] for one in findings}
        if Weight.REFUSED in heaviest:
            refused.append(next(one for one in findings if WEIGHTS[one.flaw] is Weight.REFUSED))
            continue
        kept.append(entry)
        seen.add(entry.key)
        if Weight.HELD in heaviest:
            held[entry.key] = tuple(one for one in findings if WEIGHTS[one.flaw] is Weight.HELD)
        noted += [one for one in findings if WEIGHTS[one.flaw] is Weight.NOTED]
    return Screened(tuple(kept), held, tuple(refused), tuple(noted))


def shown(text: str, characters_max: int = 80) -> str:
    """Return a text as it can be put into a message: one line, without what is not seen."""
    return "".join(char if char.isprintable() else "?" for char in text[:characters_max])


def _findings(entry: Entry) -> list[Finding]:
    name = shown(entry.name)
    if (wrong := _name_flaw(entry)) or (wrong := _size_flaw(entry)):
        return [Finding(wrong[0], name, wrong[1])]
    texts = [entry.name, entry.title, entry.description, *entry.intents, *_titles_of(entry)]
    for what, schema in (("input", entry.input_schema), ("output", entry.output_schema)):
        if not schema:
            continue
        try:
            decoded = msgspec.json.decode(schema)
            if not isinstance(decoded, dict):
                raise TypeError
            texts += words_of(decoded)
        except SchemaOutside as error:
            return [Finding(Flaw.OUTSIDE, name, str(error))]
        except SchemaEndless as error:
            return [Finding(Flaw.ENDLESS, name, str(error))]
        except (SchemaTooLarge, RecursionError) as error:
            return [Finding(Flaw.TOO_LARGE, name, str(error)[:200])]
        except (msgspec.DecodeError, TypeError, UnicodeError):
            return [Finding(Flaw.SCHEMA, name, f"its {what} schema is no JSON object")]
    if entry.sort is Sort.PROMPT and entry.definition:
        try:
            texts += words_of({"default": msgspec.json.decode(entry.definition)})
        except (SchemaTooLarge, msgspec.DecodeError, UnicodeError, RecursionError) as error:
            return [Finding(Flaw.TOO_LARGE, name, str(error)[:200])]
    return _words(name, texts)


def _titles_of(entry: Entry) -> list[str]:
    """Return the texts of its annotations: clients show their title in the place of its name."""
    try:
        decoded = msgspec.json.decode(entry.annotations) if entry.annotations else None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return []
    return [one for one in decoded.values() if isinstance(one, str)] if isinstance(decoded, dict) else []


def _name_flaw(entry: Entry) -> tuple[Flaw, str] | None:
    longest = URI_CHARACTERS_MAX if entry.sort.value == "resource" else NAME_CHARACTERS_MAX
    if not entry.name or entry.name.isspace() or len(entry.name) > longest:
        return Flaw.NAME, f"a name has 1 to {longest} characters"
    if not entry.name.isprintable() or hidden_in(entry.name):
        return Flaw.NAME, "a name is made of characters that are seen"
    return None


def _size_flaw(entry: Entry) -> tuple[Flaw, str] | None:
    described = len(entry.description.encode("utf-8", "replace")) + len(entry.title)
    for what, size, most in (
        ("description", described, DESCRIPTION_BYTES_MAX),
        ("intents", sum(map(len, entry.intents)), DESCRIPTION_BYTES_MAX),
        ("input schema", len(entry.input_schema), SCHEMA_BYTES_MAX),
        ("output schema", len(entry.output_schema), SCHEMA_BYTES_MAX),
        ("definition", len(entry.definition), DEFINITION_BYTES_MAX),
    ):
        if size > most:
            return Flaw.TOO_LARGE, f"its {what} has {size} bytes, and may have {most}"
    if len(entry.intents) > INTENTS_MAX:
        return Flaw.TOO_LARGE, f"it has {len(entry.intents)} intents, and may have {INTENTS_MAX}"
    return None


def _words(name: str, texts: list[str]) -> list[Finding]:
    found: list[Finding] = []
    if hidden := next(filter(None, map(hidden_in, texts)), ""):
        found.append(Finding(Flaw.HIDDEN, name, f"it holds {hidden}, which nobody sees"))
    whole = "\n".join(texts)
    if match := _search(_INSTRUCTIONS, whole):
        found.append(Finding(Flaw.INSTRUCTIONS, name, f"it tells a model what to do: {shown(match[0])!r}"))
    if match := _search(_EAGER, whole):
        found.append(Finding(Flaw.EAGER, name, f"it asks to be used: {shown(match[0])!r}"))
    return found


def _search(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """Search a text piece by piece, so that a long one holds up nobody else."""
    for at in range(0, len(text), SEARCHED_CHARACTERS):
        if match := pattern.search(text, at, at + SEARCHED_CHARACTERS + OVERLAP_CHARACTERS):
            return match
    return None
