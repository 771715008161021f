"""Whether a JSON schema is one that a provider can hold its model to.

OpenAI's strict mode wants every object to name all of its members as required and to allow no others
(developers.openai.com/api/docs/guides/structured-outputs). Anthropic lets members be left out, and knows no bounds of
numbers, texts and arrays (platform.claude.com/docs/en/build-with-claude/structured-outputs). What is not of these
forms is answered with 400 there, so here it is a reason not to ask.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

_NODES_MAX: Final = 10_000
_MAPS: Final = frozenset({"properties", "$defs", "definitions"})
_LISTS: Final = frozenset({"anyOf", "allOf", "oneOf"})
_NOWHERE: Final = frozenset(
    {
        "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "patternProperties",
        "propertyNames", "unevaluatedProperties", "unevaluatedItems", "prefixItems", "contains", "uniqueItems",
    }
)  # fmt: skip
_NOT_AT_OPENAI: Final = _NOWHERE | {"allOf"}
_NOT_AT_ANTHROPIC: Final = _NOWHERE | {
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "maxItems",
    "minProperties", "maxProperties",
}  # fmt: skip
_ITEMS_MIN: Final = (None, 0, 1)


def holds_at_openai(raw: Any) -> bool:
    """Say whether OpenAI's strict mode takes a schema (raw JSON)."""
    schemas = _schemas(raw)
    if not schemas or schemas[0].get("type") != "object":
        return False
    for schema in schemas:
        if not _NOT_AT_OPENAI.isdisjoint(schema) or not _is_closed(schema):
            return False
        properties, required = schema.get("properties"), schema.get("required")
        if type(properties) is dict and properties:
            named = (
                frozenset([name for name in required if type(name) is str]) if type(required) is list else frozenset()
            )
            if not named.issuperset(properties):
                return False
    return True


def holds_at_anthropic(raw: Any) -> bool:
    """Say whether Anthropic can hold a model to a schema (raw JSON)."""
    schemas = _schemas(raw)
    for schema in schemas:
        if not _NOT_AT_ANTHROPIC.isdisjoint(schema) or not _is_closed(schema):
            return False
        if schema.get("minItems") not in _ITEMS_MIN or schema.get("$ref") == "#":
            return False
    return bool(schemas)


def _is_closed(schema: dict[str, Any]) -> bool:
    """Say whether a schema allows no members but those that it names, where it is one of objects."""
    kind = schema.get("type")
    is_object = kind == "object" or (type(kind) is list and "object" in kind) or "properties" in schema
    return not is_object or schema.get("additionalProperties") is False


def _schemas(raw: Any) -> list[dict[str, Any]]:
    """Return a schema and all those within it, outer ones first; none where it is none, or of too many."""
    try:
        decoded: Any = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return []
    if type(decoded) is not dict:
        return []
    found: list[dict[str, Any]] = [decoded]
    # The list grows as it is gone through, so no depth of a schema is one of the stack.
    for schema in found:
        for name, value in schema.items():
            inner: list[Any] = []
            if name in _MAPS and type(value) is dict:
                inner = [*value.values()]
            elif name in _LISTS and type(value) is list:
                inner = value
            elif name == "items":
                inner = [value]
            found += [one for one in inner if type(one) is dict]
        if len(found) > _NODES_MAX:
            return []
    return found
