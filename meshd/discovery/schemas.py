"""What is read of a JSON Schema that a server hands in: whether it can be followed to its end, and its words.

After JSON Schema 2020-12 (core, sections 8 and 10). A schema may come back to itself where it goes down into a value (a
tree of nodes); it may not where it stays at the same value, since whoever follows that never comes to an end.
"""

from __future__ import annotations

from typing import Any, Final

DEPTH_MAX: Final = 64
NODES_MAX: Final = 20_000

_REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")
_SAME_VALUE_LISTS: Final = ("allOf", "anyOf", "oneOf")
_SAME_VALUE: Final = ("not", "if", "then", "else")
_NAMED: Final = frozenset(
    {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"}
)
"""Keywords whose keys are names, and whose values are schemas."""
_DATA: Final = frozenset({"enum", "const", "default", "examples", "example", "required"})
"""Keywords that hold values: a `$ref` in there is a word."""


class SchemaTooLarge(ValueError):
    """It nests deeper, or has more parts, than anybody reads."""


class SchemaOutside(ValueError):
    """It refers to a place outside of itself."""


class SchemaEndless(ValueError):
    """It refers to itself without going on to another value."""


def words_of(schema: dict[str, Any]) -> list[str]:
    """Return every text in a schema, names of properties included.

    Raises SchemaTooLarge, SchemaOutside or SchemaEndless, with words for an operator.
    """
    walk = _Walk()
    walk.schema(schema, 0)
    done: set[int] = set()
    for one in walk.referring:
        _follow(one, schema, [], done)
    return walk.words


class _Walk:
    def __init__(self) -> None:
        self.words: list[str] = []
        self.referring: list[dict[str, Any]] = []
        """Schemas that refer to others."""
        self._nodes = 0

    def schema(self, node: Any, depth: int) -> None:
        if isinstance(node, list):
            self._count(depth)
            for one in node:
                self.schema(one, depth + 1)
            return
        if not isinstance(node, dict):
            self.value(node, depth)
            return
        self._count(depth)
        for key, value in node.items():
            if key in _REFERENCES and isinstance(value, str):
                if not value.startswith("#"):
                    raise SchemaOutside(f"its schema refers to {value[:80]!r}, which is outside of it")
                self.referring.append(node)
            elif key in _NAMED and isinstance(value, dict):
                self.words += value
                for one in value.values():
                    self.schema(one, depth + 2)
            elif key in _DATA:
                self.value(value, depth + 1)
            else:
                self.words.append(key)
                self.schema(value, depth + 1)

    def value(self, node: Any, depth: int) -> None:
        """Read what is no schema."""
        self._count(depth)
        if isinstance(node, str):
            self.words.append(node)
        elif isinstance(node, list):
            for one in node:
                self.value(one, depth + 1)
        elif isinstance(node, dict):
            for key, one in node.items():
                self.words.append(key)
                self.value(one, depth + 1)

    def _count(self, depth: int) -> None:
        self._nodes += 1
        if depth > DEPTH_MAX:
            raise SchemaTooLarge(f"its schema nests deeper than {DEPTH_MAX}")
        if self._nodes > NODES_MAX:
            raise SchemaTooLarge(f"its schema has more than {NODES_MAX} parts")


def _follow(node: Any, root: dict[str, Any], way: list[int], done: set[int]) -> None:
    """Follow all that is said of the same value. Raises SchemaEndless where that leads back to where it was.

    `done` has what was followed to its end, for whichever of the schemas that refer: each is followed once.
    """
    if not isinstance(node, dict) or id(node) in done:
        return
    if id(node) in way:
        raise SchemaEndless("its schema refers to itself and says nothing in between")
    if len(way) > DEPTH_MAX:
        raise SchemaTooLarge(f"its schema refers on more than {DEPTH_MAX} times")
    way.append(id(node))
    for key in _REFERENCES:
        if isinstance(target := node.get(key), str):
            _follow(_at(target, root), root, way, done)
    for key in _SAME_VALUE_LISTS:
        for one in node[key] if isinstance(node.get(key), list) else ():
            _follow(one, root, way, done)
    for key in _SAME_VALUE:
        _follow(node.get(key), root, way, done)
    way.pop()
    done.add(id(node))


def _at(reference: str, root: dict[str, Any]) -> Any:
    """Return what a JSON Pointer (RFC 6901) leads to; None for nothing, and for the name of an anchor."""
    found: Any = root
    if reference in ("#", "#/"):
        return root
    if not reference.startswith("#/"):
        return None
    for part in reference[2:].split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict):
            found = found.get(key)
        elif isinstance(found, list) and key.isascii() and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            return None
    return found
