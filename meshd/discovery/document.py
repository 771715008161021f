"""What of an entry is searched: its texts, each with the weight of the place in which it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from meshd.discovery.words import pieces

if TYPE_CHECKING:
    from meshd.discovery.entry import Entry

_PARAMETERS_MAX: Final = 64
_DEPTH_MAX: Final = 3
"""Of a schema: what lies deeper says little of what a tool is for, and a schema may hold itself."""

_EMBEDDED_CHARS: Final = 500
_OWNER_CHARS: Final = 150


class Document(NamedTuple):
    """The texts of one entry. An empty one is a text that nobody wrote."""

    name: str
    title: str = ""
    description: str = ""
    intents: tuple[str, ...] = ()
    """What it can be asked for: a few words or an example each."""
    parameters: tuple[str, ...] = ()
    """Names and descriptions of what it takes."""
    owner: str = ""
    owner_description: str = ""
    """Of the server or agent that serves it: a tool is also found by the words of its server (arXiv 2511.01854)."""


def document_of(entry: Entry, owner: Entry | None = None) -> Document:
    """Return what is searched of `entry`; `owner` is the entry of the server or agent that serves it, if there is one.

    A schema that is no JSON, or no schema, has no parameters.
    """
    is_own = owner is None or owner.key == entry.key
    return Document(
        name=entry.name,
        title=entry.title,
        description=entry.description,
        intents=entry.intents,
        parameters=parameters_of(entry.input_schema),
        owner="" if entry.owner == entry.name else entry.owner,
        owner_description="" if is_own or owner is None else f"{owner.title} {owner.description}".strip(),
    )


def texts_of(document: Document) -> tuple[str, ...]:
    """Return what a model is to embed of a document: what its owner is for, its name and its beginning; its name; and
    its description, where it has one.

    The last two alone as well: they are what is most to the point, and are lost in what is long (meanings.blended).
    """
    name = " ".join(pieces(document.name))
    told = f"{document.title} {document.description}"[:_EMBEDDED_CHARS].strip()
    owner = document.owner_description[:_OWNER_CHARS].strip()
    return (
        ". ".join(part for part in (owner, f"{name}: {told}", *document.intents[:3]) if part),
        name,
        *([told] if told else []),
    )


def parameters_of(schema: bytes) -> tuple[str, ...]:
    """Return names and descriptions of the properties of a JSON Schema; references are not followed."""
    if not schema:
        return ()
    try:
        root = msgspec.json.decode(schema)
    except (msgspec.DecodeError, RecursionError):
        return ()
    found: list[str] = []
    _walk(root, found, 0)
    return tuple(found)


def _walk(schema: object, found: list[str], depth: int) -> None:
    if not isinstance(schema, dict) or depth > _DEPTH_MAX:
        return
    properties = schema.get("properties")
    if isinstance(properties, dict):
        for name, inner in properties.items():
            if len(found) >= _PARAMETERS_MAX:
                return
            said = inner.get("description") if isinstance(inner, dict) else None
            found.append(f"{name} {said}" if isinstance(said, str) else str(name))
            _walk(inner, found, depth + 1)
    _walk(schema.get("items"), found, depth + 1)
