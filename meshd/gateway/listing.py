"""The lists of MCP servers: a page of one becomes entries of the catalogue, and entries become a page of ours. Pure.

Every definition is kept as its server wrote it, with all fields that we do not know; only its name is another here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from meshd.dialects.json_pairs import member, read_items, read_object, text, write
from meshd.discovery.entry import Entry, Origin, Sort
from meshd.gateway.uris import template
from meshd.refusal import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.gateway.names import Names
    from meshd.gateway.uris import Place

PAGES_MAX: Final = 200
LIST_BYTES_MAX: Final = 8 * 2**20
"""Of all pages of one list: a server that says more says nothing."""
ENTRIES_MAX: Final = 20_000
DEFINITION_BYTES_MAX: Final = 2**20
_NAME_CHARACTERS_MAX: Final = 256
_URI_CHARACTERS_MAX: Final = 4096


class Part(NamedTuple):
    """One of the lists that a server has."""

    method: str
    key: str
    """Of the list in the result."""
    sort: Sort
    names: str
    """The member by which one of it is called."""
    operation: str
    """The method that calls one: who may not, is not shown it."""


TOOLS: Final = Part("tools/list", "tools", Sort.TOOL, "name", "tools/call")
PROMPTS: Final = Part("prompts/list", "prompts", Sort.PROMPT, "name", "prompts/get")
RESOURCES: Final = Part("resources/list", "resources", Sort.RESOURCE, "uri", "resources/read")
TEMPLATES: Final = Part("resources/templates/list", "resourceTemplates", Sort.RESOURCE, "uriTemplate", "resources/read")
PARTS: Final = {part.method: part for part in (TOOLS, PROMPTS, RESOURCES, TEMPLATES)}


def part_of(entry: Entry) -> str:
    """Return the method that lists an entry."""
    if entry.sort is Sort.RESOURCE:
        return (RESOURCES if template(entry.name) is None else TEMPLATES).method
    return (PROMPTS if entry.sort is Sort.PROMPT else TOOLS).method


class Page(NamedTuple):
    """What one answer brought."""

    entries: list[Entry]
    cursor: str
    """Of the next page; empty where this is the last."""
    dropped: int
    """How many could not be read."""


def read_page(part: Part, server: str, result: bytes) -> Page:
    """Read a page. What cannot be read is left out; raises ValueError where nothing can."""
    try:
        pairs = read_object(result, "the result")
        raw = member(pairs, part.key)
        items = [] if raw is None else read_items(raw, part.key)
        cursor = text(pairs, "nextCursor", "the result") or ""
    except Refused as refused:
        raise ValueError(refused.message) from None
    entries: list[Entry] = []
    for item in items[:ENTRIES_MAX]:
        entry = _entry(part, server, item)
        if entry is not None:
            entries.append(entry)
    return Page(entries, cursor, len(items) - len(entries))


def _entry(part: Part, server: str, item: msgspec.Raw) -> Entry | None:
    definition = bytes(item)
    if len(definition) > DEFINITION_BYTES_MAX:
        return None
    try:
        pairs = read_object(definition, "a definition")
        name = text(pairs, part.names, "a definition") or ""
        limit = _NAME_CHARACTERS_MAX if part.names == "name" else _URI_CHARACTERS_MAX
        if not 0 < len(name) <= limit or not name.isprintable():
            return None
        return Entry(
            part.sort,
            server,
            name,
            description=text(pairs, "description", "a definition") or "",
            title=text(pairs, "title", "a definition") or "",
            origin=Origin.MCP,
            input_schema=bytes(member(pairs, "inputSchema") or b""),
            output_schema=bytes(member(pairs, "outputSchema") or b""),
            annotations=bytes(member(pairs, "annotations") or b""),
            definition=definition,
        )
    except Refused:
        return None


def renamed(part: Part, entry: Entry, name: str) -> bytes:
    """Return the definition as it is shown here."""
    if name == entry.name:
        return entry.definition
    return write(read_object(entry.definition, "a definition"), {part.names: msgspec.json.encode(name)})


def result_of(part: Part, definitions: Iterable[bytes], cursor: str, more: dict[str, Any]) -> bytes:
    """Return a list's result."""
    head = b'{"' + part.key.encode() + b'":[' + b",".join(definitions) + b"]"
    if cursor:
        more = {"nextCursor": cursor, **more}
    rest = msgspec.json.encode(more)
    return head + (b"," + rest[1:] if more else b"}")


class Shown(NamedTuple):
    """One of a list, as a client is shown it."""

    name: str
    place: Place
    definition: bytes


def held_of(names: Names, part: Part) -> dict[str, Place]:
    """Return everything that stands in one of the lists, by what it is called here."""
    if part is TOOLS:
        return names.tools
    if part is PROMPTS:
        return names.prompts
    return names.uris.templates if part is TEMPLATES else names.uris.listed
