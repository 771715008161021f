"""Three tools in the place of many: what is wanted is found by words, described, and called by its name.

A model that is shown two hundred tools picks badly, and pays for each definition on every turn. The names of the three
are out of servers' reach: see `meshd.gateway.names`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.dialects.json_pairs import member, read_body, read_object
from meshd.dialects.jsonrpc import INVALID_PARAMS, invalid
from meshd.discovery.entry import Sort
from meshd.gateway.listing import TOOLS, renamed
from meshd.gateway.messages import encode, params_of
from meshd.gateway.names import CALL, DESCRIBE, FIND

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshd.discovery.entry import Entry
    from meshd.discovery.finder import Finder
    from meshd.gateway.uris import Place

FOUND_MAX: Final = 20
FOUND_DEFAULT: Final = 5
DESCRIBED_MAX: Final = 20
BYTES_PER_TOKEN: Final = 4
"""Of definitions: an estimate, to say what is saved; nothing is admitted by it."""
_DESCRIPTION_CHARACTERS_MAX: Final = 300


def definitions() -> list[bytes]:
    """Return the three, as a client is shown them."""
    return [
        encode(
            {
                "name": FIND,
                "description": "Find tools for a task by a few words. Returns names and descriptions, the best first.",
                "inputSchema": {
                    "type": "object",
                    "properties": {
                        "words": {"type": "string", "description": "What is to be done, in a few words"},
                        "limit": {"type": "integer", "minimum": 1, "maximum": FOUND_MAX, "default": FOUND_DEFAULT},
                    },
                    "required": ["words"],
                },
                "annotations": {"readOnlyHint": True},
            }
        ),
        encode(
            {
                "name": DESCRIBE,
                "description": "Return the whole definitions of tools: what arguments they take.",
                "inputSchema": {
                    "type": "object",
                    "properties": {
                        "names": {"type": "array", "items": {"type": "string"}, "maxItems": DESCRIBED_MAX},
                    },
                    "required": ["names"],
                },
                "annotations": {"readOnlyHint": True},
            }
        ),
        encode(
            {
                "name": CALL,
                "description": "Call a tool that was found, with the arguments that its definition asks for.",
                "inputSchema": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}, "arguments": {"type": "object"}},
                    "required": ["name"],
                },
            }
        ),
    ]


def tokens_of(shown: list[bytes]) -> int:
    """Return about how many tokens definitions cost a model."""
    return sum(map(len, shown)) // BYTES_PER_TOKEN


def found(body: bytes, finder: Finder, shown: Mapping[str, Place]) -> bytes:
    """Answer `find_tools` with a result; `shown` has what the caller may call. Raises Refused."""
    given = arguments_of(body)
    words, limit = given.get("words"), given.get("limit", FOUND_DEFAULT)
    if not isinstance(words, str) or not words.strip():
        raise invalid(f"{FIND} takes words: what is to be done", INVALID_PARAMS)
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= FOUND_MAX:
        raise invalid(f"{FIND} takes a limit from 1 to {FOUND_MAX}", INVALID_PARAMS)
    names = {place.entry.key: name for name, place in shown.items()}

    def may(entry: Entry) -> bool:
        return entry.key in names

    best = finder.find(words, limit, sorts=(Sort.TOOL,), admit=may)
    listed = [
        {
            "name": names[one.key.key],
            "description": one.key.description[:_DESCRIPTION_CHARACTERS_MAX],
            "score": round(one.score, 3),
        }
        for one in best
    ]
    return _result(encode({"tools": listed}))


def described(body: bytes, shown: Mapping[str, Place]) -> bytes:
    """Answer `describe_tools`. Raises Refused for what the caller cannot call."""
    names = arguments_of(body).get("names")
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, list) or not 0 < len(names) <= DESCRIBED_MAX:
        raise invalid(f"{DESCRIBE} takes names, of 1 to {DESCRIBED_MAX} tools", INVALID_PARAMS)
    told: list[bytes] = []
    for name in names:
        place = shown.get(name) if isinstance(name, str) else None
        if place is None:
            raise invalid(f"There is no tool {str(name)[:128]!r}: {FIND} says what there is", INVALID_PARAMS)
        told.append(renamed(TOOLS, place.entry, name))
    return _result(b'{"tools":[' + b",".join(told) + b"]}")


def arguments_of(body: bytes) -> dict[str, Any]:
    """Return what a tool of the gateway's own is called with. Raises Refused."""
    raw = member(params_of(read_body(body)), "arguments")
    if raw is None:
        return {}
    read_object(raw, "arguments")  # Raises for what is none, and for a key that stands twice.
    decoded = msgspec.json.decode(raw)
    return decoded if isinstance(decoded, dict) else {}


def _result(told: bytes) -> bytes:
    text = encode([{"type": "text", "text": told.decode()}])
    return b'{"content":' + text + b',"structuredContent":' + told + b',"resultType":"complete"}'
