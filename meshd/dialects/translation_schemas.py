"""Whether a JSON schema can be held to by OpenAI's strict mode.

There every object names all of its members as required and allows no others
(developers.openai.com/api/docs/guides/structured-outputs); Anthropic allows members that may be left out.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

_NODES_MAX: Final = 10_000
_MAPS: Final = frozenset({"properties", "$defs", "definitions"})
_LISTS: Final = frozenset({"anyOf", "allOf", "oneOf", "prefixItems"})


def is_strict(raw: Any) -> bool:
    """Say whether a schema (raw JSON) is one that strict mode takes. Without recursion, over a bounded number of
    schemas."""
    try:
        pending: list[Any] = [msgspec.json.decode(raw)]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    seen = 0
    while pending:
        schema = pending.pop()
        seen += 1
        if seen > _NODES_MAX:
            return False
        if type(schema) is not dict:
            continue
        if not _is_closed(schema):
            return False
        for name, value in schema.items():
            if name in _MAPS and type(value) is dict:
                pending += value.values()
            elif name in _LISTS and type(value) is list:
                pending += value
            elif name == "items":
                pending.append(value)
    return True


def _is_closed(schema: dict[str, Any]) -> bool:
    properties = schema.get("properties")
    kind = schema.get("type")
    if properties is None and kind != "object" and not (type(kind) is list and "object" in kind):
        return True
    if schema.get("additionalProperties") is not False:
        return False
    names = properties if type(properties) is dict else {}
    required = schema.get("required")
    return type(required) is list and all(name in required for name in names) if names else True
