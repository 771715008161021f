"""What is asked of a person, and the digest that the answer holds for.

Two calls are the same where workflow, agent, target, operation, tool, the tool's definition and the canonical arguments
are. JSON is canonical with its keys sorted and its numbers as they were written: nothing that a reader could take
differently is made equal. A map with a key twice, of which readers take either, is left as it is, byte by byte.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    Clean = Callable[[str, str], str]

DEPTH_MAX: Final = 100
"""Of JSON that is made canonical."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One call that a person must allow. See `record.Approval` for the fields of the same names."""

    workflow: str
    agent: str
    kind: str
    target: str
    operation: str
    arguments: bytes
    """Canonical."""
    model: str = ""
    tool: str = ""
    definition: str = ""
    fields: tuple[tuple[bytes, bytes], ...] = ()
    """Header fields that may change what the call does."""
    also: tuple[str, ...] = ()
    approvers: tuple[str, ...] = ()
    owner: str = ""
    quorum: int = 1
    principal: str = ""
    """Whose call it is, where the agent's name does not say it: another tenant's, or another agent's before it."""
    lasts_s: float = 3600.0
    rule: str = ""
    said: str = ""
    """Binds nothing: the same is asked for in whatever words."""
    why: str = ""
    evidence: str = ""
    is_inferred: bool = False
    cost_tokens: int | None = None
    cost_microdollars: int | None = None
    left_tokens: int | None = None
    left_microdollars: int | None = None
    call: str = ""
    key: str = ""
    """By what the call is known when it is made again: its claim. It is no part of the digest: what is allowed is the
    call, of which a key that its caller chooses says nothing."""

    @property
    def digest(self) -> str:
        """SHA-256 over what an approval holds for, in hex. Who may decide, and how many must, is a part of it: an
        answer that was given under other rules answers nothing."""
        hashed = sha256(b"meshd approval 1")
        texts = (
            self.workflow, self.agent, self.kind, self.target, self.model, self.operation, self.tool, self.definition,
            self.owner, str(self.quorum),
        )  # fmt: skip
        parts = [one.encode("utf-8", "surrogatepass") for one in texts]
        parts += [str(len(self.also)).encode(), *(one.encode("utf-8", "surrogatepass") for one in self.also)]
        approvers = sorted(self.approvers)
        parts += [str(len(approvers)).encode(), *(one.encode() for one in approvers)]
        parts += [str(len(self.fields)).encode(), *(one for pair in self.fields for one in pair)]
        if self.principal not in ("", self.agent):
            parts.append(self.principal.encode("utf-8", "surrogatepass"))
        for part in (*parts, self.arguments):
            hashed.update(len(part).to_bytes(8, "big"))
            hashed.update(part)
        return hashed.hexdigest()


class _Number(str):
    """A number as it was written."""

    __slots__ = ()


class _Twice(ValueError):
    """A map has a key twice."""


def canonical(body: bytes) -> bytes:
    """Return JSON with its keys sorted and nothing between its parts; what is no JSON, or not surely, as it is."""
    try:
        pieces: list[str] = []
        _write(_read(body), pieces, _Plainly())
        return "".join(pieces).encode()
    except (ValueError, RecursionError):
        return body


def shown(arguments: bytes, clean: Clean) -> tuple[str, int]:
    """Return arguments as people read them, and how many places are not shown, since they look like secrets.

    JSON is laid out, with its numbers as they were written; other text stands as it is, anything else in hexadecimal.
    What nobody would see, or would see in another place than where it stands, is written as an escape.
    """
    legibly = _Legibly(clean)
    try:
        pieces: list[str] = []
        _write(_read(arguments), pieces, legibly)
        return "".join(pieces), legibly.hidden
    except (ValueError, RecursionError):
        pass
    try:
        text = arguments.decode()
    except UnicodeDecodeError:
        return f"{len(arguments)} bytes, in hexadecimal: {arguments.hex()}", 0
    return visible(legibly.cleaned("", text)), legibly.hidden


def visible(text: str) -> str:
    """Return a text with what is not printable, line ends and tabs aside, as escapes: it may be for a terminal."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in "\n\t" else f"\\u{ord(one):04x}" for one in text)


def _read(body: bytes) -> Any:
    return json.loads(
        body.decode(), object_pairs_hook=_unique, parse_int=_Number, parse_float=_Number, parse_constant=_refuse
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Twice
    return found


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


class _Plainly:
    """How JSON is written for its digest."""

    def text(self, name: str, value: str) -> str:
        """Return a text that stands under `name`."""
        return json.dumps(value)

    def key(self, value: str) -> str:
        return json.dumps(value) + ":"

    def between(self, depth: int) -> str:
        """Return what stands before an item at this depth, and before the end of what holds it."""
        return ""


class _Legibly(_Plainly):
    """How JSON is written for people."""

    def __init__(self, clean: Clean) -> None:
        self._clean = clean
        self.hidden = 0

    def cleaned(self, name: str, value: str) -> str:
        clean = self._clean(name, value)
        self.hidden += clean != value
        return clean

    def text(self, name: str, value: str) -> str:
        return visible(json.dumps(self.cleaned(name, value), ensure_ascii=False))

    def key(self, value: str) -> str:
        return visible(json.dumps(self.cleaned("", value), ensure_ascii=False)) + ": "

    def between(self, depth: int) -> str:
        return "\n" + "  " * depth


def _write(value: Any, pieces: list[str], how: _Plainly, name: str = "", depth: int = 0) -> None:
    if depth > DEPTH_MAX:
        raise ValueError("nested too deeply")
    if isinstance(value, _Number):
        pieces.append(str(value))
    elif isinstance(value, str):
        pieces.append(how.text(name, value))
    elif isinstance(value, dict | list):
        is_map = isinstance(value, dict)
        pieces.append("{" if is_map else "[")
        for at, item in enumerate(sorted(value) if is_map else value):
            pieces.append(("," if at else "") + how.between(depth + 1))
            if is_map:
                pieces.append(how.key(item))
            _write(value[item] if is_map else item, pieces, how, item if is_map else name, depth + 1)
        if value:
            pieces.append(how.between(depth))
        pieces.append("}" if is_map else "]")
    else:
        pieces.append(json.dumps(value))
