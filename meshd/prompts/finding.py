"""Where a request names prompts, and how what they come to is put in their places. Pure.

A reference is the whole of a message's text, or the whole of a part of type text. Messages of the roles that the policy
names are looked at, system texts as those of the role system; never what a model or a tool has said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.dialects import json_pairs as pairs_of
from meshd.dialects.gemini_request import either
from meshd.dialects.json_pairs import Pairs, malformed
from meshd.prompts.reference import BadReference, Reference, read_reference
from meshd.prompts.template import VARIABLE, VARIABLES_MAX
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from meshd.call import Call
    from meshd.prompts.noting import Used

MARK: Final = b'"prompt:'
"""Without these bytes a body names no prompt: also where a JSON encoder escapes the slashes behind them."""
VARIABLES: Final = "prompt_variables"
"""Member of the body with values of variables, for all references of the request. It is not forwarded."""
REFERENCES_MAX: Final = 64
_QUOTE, _BRACKET, _BRACE = 0x22, 0x5B, 0x7B
_TEXT_PARTS: Final = frozenset({"text", "input_text"})

Path = tuple[str | int, ...]
Found = tuple[Path, Any]


class Place:
    """One reference, and where in the body it stands."""

    __slots__ = ("path", "reference")

    def __init__(self, path: Path, reference: Reference) -> None:
        self.path = path
        self.reference = reference


class Named:
    """The prompts that a request names."""

    __slots__ = ("places", "used", "variables")

    def __init__(self, places: list[Place], variables: dict[str, str]) -> None:
        self.places = places
        self.variables = variables
        self.used: tuple[Used, ...] = ()
        """What they were resolved to: see `meshd.prompts.noting`."""

    @property
    def names(self) -> tuple[str, ...]:
        """The prompts' names, each once."""
        return tuple(dict.fromkeys(place.reference.name for place in self.places))


NOTHING: Final = Named([], {})
"""Of a call that was looked through, and names none."""


def named_in(call: Call) -> Named:
    """Return what a call names, and keep it on the call. Raises Refused(MALFORMED) for a reference that is wrong."""
    known: Named | None = call.prompts
    if known is None:
        known = call.prompts = NOTHING
        body, ask = call.body, call.ask
        if ask is not None and body is not None and MARK in body and call.dialect.name in _PLACES:
            known = call.prompts = find(call.dialect.name, ask.operation, body, call.policy.prompts.roles)
    return known


def find(dialect: str, operation: str, body: bytes, roles: frozenset[str]) -> Named:
    """Return what a body names, in which MARK stands. Raises Refused(MALFORMED)."""
    pairs = pairs_of.read_object(body, "the request body")
    places = []
    for path, raw in _PLACES[dialect](operation, pairs, roles):
        # Most texts are no references: they are not decoded to find that out.
        if bytes(memoryview(raw)[: len(MARK)]) != MARK:
            continue
        try:
            reference = read_reference(msgspec.json.decode(raw, type=str))
        except BadReference as error:
            raise Refused(Reason.MALFORMED, f"{_shown(path)} is no reference to a prompt: {error}.") from None
        except (msgspec.MsgspecError, UnicodeDecodeError):
            malformed(f"{_shown(path)} is no text")
        if reference is not None:
            places.append(Place(path, reference))
    if len(places) > REFERENCES_MAX:
        malformed(f"the request names {len(places)} prompts; {REFERENCES_MAX} at most")
    return Named(places, _variables(pairs)) if places else NOTHING


def _variables(pairs: Pairs) -> dict[str, str]:
    raw = pairs_of.member(pairs, VARIABLES)
    if raw is None:
        return {}
    found = {}
    for name, value in pairs_of.read_object(raw, f"'{VARIABLES}'").items():
        if VARIABLE.fullmatch(name) is None:
            malformed(f"'{VARIABLES}' has the member {name[:64]!r}, which is no name of a variable")
        head = memoryview(value)[0]
        if head in (_BRACKET, _BRACE) or bytes(value) == pairs_of.NULL:
            malformed(f"{name!r} of '{VARIABLES}' must be a text, a number, true or false, not {pairs_of.shown(value)}")
        # A number stands there as its caller wrote it.
        found[name] = (pairs_of.text({name: value}, name) or "") if head == _QUOTE else bytes(value).decode()
    if len(found) > VARIABLES_MAX:
        malformed(f"'{VARIABLES}' has {len(found)} variables; {VARIABLES_MAX} at most")
    return found


def replaced(body: bytes, texts: dict[Path, str]) -> bytes:
    """Return a body with texts in the places of its references, and without the values of their variables."""
    pairs = pairs_of.read_object(body, "the request body")
    pairs.pop(VARIABLES, None)
    edits = {path: msgspec.json.encode(text) for path, text in texts.items()}
    return pairs_of.write(pairs, {str(name): _edited(pairs[str(name)], inner) for name, inner in _by_first(edits)})


def _edited(raw: Any, edits: dict[Path, bytes]) -> bytes:
    if () in edits:
        return edits[()]
    if memoryview(raw)[0] == _BRACKET:
        items: list[Any] = list(pairs_of.read_items(raw, "the request body"))
        for at, inner in _by_first(edits):
            items[int(at)] = _edited(items[int(at)], inner)
        return b"[" + b",".join(items) + b"]"
    pairs = pairs_of.read_object(raw, "the request body")
    return pairs_of.write(pairs, {str(name): _edited(pairs[str(name)], inner) for name, inner in _by_first(edits)})


def _by_first(edits: dict[Path, bytes]) -> list[tuple[str | int, dict[Path, bytes]]]:
    found: dict[str | int, dict[Path, bytes]] = {}
    for path, value in edits.items():
        found.setdefault(path[0], {})[path[1:]] = value
    return list(found.items())


# ---------------------------------------------------------------------- where texts stand


def _openai(operation: str, pairs: Pairs, roles: frozenset[str]) -> Iterator[Found]:
    if operation == "chat":
        yield from _messages(pairs, "messages", roles)
    elif operation == "text_completion":
        raw = pairs_of.member(pairs, "prompt")
        if raw is not None and "user" in roles:
            yield from _texts(raw, "prompt")
    elif operation in ("responses", "compaction"):
        if "system" in roles:
            yield from _text(pairs, "instructions", ())
        raw = pairs_of.member(pairs, "input")
        if raw is not None and memoryview(raw)[0] == _QUOTE:
            if "user" in roles:
                yield ("input",), raw
        elif raw is not None:
            yield from _messages(pairs, "input", roles)


def _anthropic(operation: str, pairs: Pairs, roles: frozenset[str]) -> Iterator[Found]:
    if operation == "chat":
        if "system" in roles:
            yield from _content(pairs, "system", ())
        yield from _messages(pairs, "messages", roles)


def _ollama(operation: str, pairs: Pairs, roles: frozenset[str]) -> Iterator[Found]:
    if operation != "chat":
        return
    if "messages" in pairs:
        yield from _messages(pairs, "messages", roles)
        return
    for name, role in (("system", "system"), ("prompt", "user")):
        if role in roles:
            yield from _text(pairs, name, ())


def _gemini(operation: str, pairs: Pairs, roles: frozenset[str]) -> Iterator[Found]:
    if operation != "chat":
        return
    name = either(pairs, "systemInstruction")
    if name and "system" in roles and (raw := pairs_of.member(pairs, name)) is not None:
        if memoryview(raw)[0] == _QUOTE:
            yield (name,), raw
        else:
            for path, content in _objects(raw, (name,)):
                yield from _parts(content, path)
    raw = pairs_of.member(pairs, "contents")
    if raw is not None:
        for path, content in _objects(raw, ("contents",)):
            if (pairs_of.text(content, "role", "'contents'") or "user") in roles:
                yield from _parts(content, path)


def _parts(content: Pairs, path: Path) -> Iterator[Found]:
    raw = pairs_of.member(content, "parts")
    if raw is not None:
        for inner, part in _objects(raw, (*path, "parts")):
            yield from _text(part, "text", inner)


def _messages(pairs: Pairs, name: str, roles: frozenset[str]) -> Iterator[Found]:
    raw = pairs_of.member(pairs, name)
    if raw is None:
        return
    for path, message in _objects(raw, (name,)):
        # Items of responses that are no messages have no role.
        if "role" in message and pairs_of.text(message, "role", f"'{name}'") in roles:
            yield from _content(message, "content", path)


def _content(pairs: Pairs, name: str, path: Path) -> Iterator[Found]:
    """Yield a text, or those parts of a list that are texts."""
    raw = pairs_of.member(pairs, name)
    if raw is None:
        return
    if memoryview(raw)[0] != _BRACKET:
        yield from _text(pairs, name, path)
        return
    for inner, part in _objects(raw, (*path, name)):
        if pairs_of.text(part, "type", f"'{name}'") in _TEXT_PARTS:
            yield from _text(part, "text", inner)


def _text(pairs: Pairs, name: str, path: Path) -> Iterator[Found]:
    raw = pairs_of.member(pairs, name)
    if raw is not None and memoryview(raw)[0] == _QUOTE:
        yield (*path, name), raw


def _texts(raw: Any, name: str) -> Iterator[Found]:
    """Yield a text, or those of a list."""
    if memoryview(raw)[0] == _QUOTE:
        yield (name,), raw
    elif memoryview(raw)[0] == _BRACKET:
        for at, one in enumerate(pairs_of.read_items(raw, f"'{name}'")):
            if memoryview(one)[0] == _QUOTE:
                yield (name, at), one


def _objects(raw: Any, path: Path) -> Iterator[tuple[Path, Pairs]]:
    """Yield the objects of a list, or the one that stands for it, with their places."""
    where = _shown(path)
    if memoryview(raw)[0] == _BRACE:
        yield path, pairs_of.read_object(raw, where)
        return
    for at, one in enumerate(pairs_of.read_objects(raw, where)):
        yield (*path, at), one


def _shown(path: Path) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


_PLACES: Final[dict[str, Callable[[str, Pairs, frozenset[str]], Iterator[Found]]]] = {
    "openai": _openai,
    "anthropic": _anthropic,
    "gemini": _gemini,
    "ollama": _ollama,
}
"""By dialect. Bedrock's requests may be signed, and nothing in them can be changed."""
