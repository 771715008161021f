"""YAML to a tree in which every key and value knows its place.

PyYAML's C parser gives events; the tree is built here, because its own composer recurses (deep nesting), shares
aliased nodes (an expansion bomb for whoever walks them) and lets duplicate keys pass. Plain scalars are read by
YAML 1.2's core schema, but for the booleans of YAML 1.1 (`on`, `no`), which stay booleans as values, so that nobody
is surprised either way, and are texts as keys. Sexagesimal and octal numbers, dates, tags and merge keys are not read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from meshd.policy.problem import Place, Problem, shown

DOCUMENT_BYTES_MAX = 2 * 2**20
NODES_MAX = 100_000
"""With aliases counted as often as they are used."""
DEPTH_MAX = 32

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {
    spelling: word in ("true", "yes", "on")
    for word in ("true", "false", "yes", "no", "on", "off")
    for spelling in (word, word.capitalize(), word.upper())
}
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]{0,29})\Z")
_FLOAT = re.compile(r"[-+]?[0-9]{1,30}(?:\.[0-9]{0,30})?(?:[eE][-+]?[0-9]{1,2})?\Z")
# YAML 1.1, 5.1: what may stand in a document at all.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_STR_TAGS = frozenset({None, "!", "tag:yaml.org,2002:str"})


@dataclass(slots=True)
class Scalar:
    """A leaf. `value` is a text, number, boolean or None; `text` is what was written."""

    value: str | int | float | bool | None
    text: str
    place: Place
    size: int = 1


@dataclass(slots=True)
class Sequence:
    """A list."""

    items: list[Node]
    place: Place
    size: int = 1


@dataclass(slots=True)
class Mapping:
    """A map, in the order of the text. Keys are unique once the tree was read without problems."""

    entries: dict[str, tuple[Scalar, Node]]
    place: Place
    size: int = 1


Node: TypeAlias = "Scalar | Sequence | Mapping"


class _Stop(Exception):
    """Nothing after this can be understood."""


@dataclass(slots=True)
class _Open:
    """A list or map whose end has not come."""

    node: Sequence | Mapping
    anchor: str | None
    key: Scalar | None = None
    has_key: bool = False
    """A key was read (`key` is None where it could not be used) and its value is to come."""


@dataclass(slots=True)
class _Builder:
    path: str
    problems: list[Problem]
    stack: list[_Open] = field(default_factory=list)
    anchors: dict[str, Node | None] = field(default_factory=dict)
    root: Node | None = None
    documents: int = 0

    def place(self, mark: Any) -> Place:
        return Place(self.path, mark.line + 1, mark.column + 1)

    def report(self, place: Place, message: str) -> None:
        self.problems.append(Problem(*place, message))

    def stop(self, place: Place, message: str) -> _Stop:
        self.report(place, message)
        return _Stop()

    def take(self, event: Any) -> None:
        """Take one event of the parser."""
        if isinstance(event, yaml.ScalarEvent):
            self.add(self.scalar(event), event.anchor)
        elif isinstance(event, yaml.AliasEvent):
            self.alias(event)
        elif isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            self.open(event)
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            done = self.stack.pop()
            self.add(done.node, done.anchor)
        elif isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                raise self.stop(self.place(event.start_mark), "a second document in one file: one file, one document")

    def open(self, event: Any) -> None:
        place = self.place(event.start_mark)
        if event.tag not in (None, "!"):
            self.report(place, f"tags are not read here: remove {shown(event.tag)}")
        if len(self.stack) >= DEPTH_MAX:
            raise self.stop(place, f"nested deeper than {DEPTH_MAX} levels")
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        is_map = isinstance(event, yaml.MappingStartEvent)
        node: Sequence | Mapping = Mapping({}, place) if is_map else Sequence([], place)
        self.stack.append(_Open(node, event.anchor))

    def alias(self, event: Any) -> None:
        place = self.place(event.start_mark)
        if event.anchor not in self.anchors:
            raise self.stop(place, f"no anchor {shown(event.anchor)} stands before this alias")
        node = self.anchors[event.anchor]
        if node is None:
            raise self.stop(place, f"the anchor {shown(event.anchor)} contains itself")
        self.add(node, None)

    def scalar(self, event: Any) -> Scalar:
        place = self.place(event.start_mark)
        text: str = event.value
        if event.tag not in _STR_TAGS:
            self.report(place, f"tags are not read here: remove {shown(event.tag)}")
        is_plain = event.implicit[0] and event.tag is None
        return Scalar(resolve(text) if is_plain else text, text, place)

    def add(self, node: Node, anchor: str | None) -> None:
        """Put a finished node where it belongs."""
        if anchor is not None:
            self.anchors[anchor] = node
        if not self.stack:
            self.root = node
            return
        parent = self.stack[-1]
        parent.node.size += node.size
        if parent.node.size > NODES_MAX:
            raise self.stop(node.place, f"more than {NODES_MAX} values, with aliases counted as often as they are used")
        if isinstance(parent.node, Sequence):
            parent.node.items.append(node)
        elif not parent.has_key:
            parent.key, parent.has_key = self.key(node), True
        else:
            if parent.key is not None:
                self.entry(parent.node, parent.key, node)
            parent.key, parent.has_key = None, False

    def key(self, node: Node) -> Scalar | None:
        if not isinstance(node, Scalar):
            self.report(node.place, "a key must be a text, not a list or a map")
        elif node.text == "<<" and node.value == "<<":
            self.report(node.place, 'merge keys ("<<") are not read: write the keys out')
        elif node.value is None:
            self.report(node.place, "a key is missing before this colon")
        else:
            return node
        return None

    def entry(self, mapping: Mapping, key: Scalar, value: Node) -> None:
        first = mapping.entries.get(key.text)
        if first is not None:
            self.report(key.place, f"the key {shown(key.text)} is set already in line {first[0].place.line}")
            return
        mapping.entries[key.text] = (key, value)


def resolve(text: str) -> str | int | float | bool | None:
    """Read a plain scalar."""
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INT.match(text):
        return int(text.replace("_", ""))
    if _FLOAT.match(text) and not re.match(r"[-+]?0[0-9]", text):
        return float(text)
    return text


def read_tree(data: bytes, path: str) -> tuple[Mapping, list[Problem]]:
    """Read one document. Returns its tree (as far as it was understood) and every problem; never raises.

    An empty document is an empty map.
    """
    empty = Mapping({}, Place(path, 1, 1))
    if len(data) > DOCUMENT_BYTES_MAX:
        return empty, [
            Problem(path, 1, 1, f"the document has {len(data)} bytes; at most {DOCUMENT_BYTES_MAX} are read")
        ]
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _position(data[: error.start].decode("utf-8", "replace"))
        return empty, [Problem(path, line, column, "the document is not UTF-8 text")]
    problems = [
        Problem(path, *_position(text[: found.start()]), f"the character {shown(found[0])} may not stand in YAML")
        for found in list(_UNPRINTABLE.finditer(text))[:20]
    ]
    if problems:
        return empty, problems
    builder = _Builder(path, problems)
    _build(builder, text)
    root = builder.root
    if isinstance(root, Mapping):
        return root, problems
    if root is not None and not (isinstance(root, Scalar) and root.value is None) and not problems:
        builder.report(root.place, "a policy is a map of keys, such as rules: and upstreams:")
    return empty, problems


def _build(builder: _Builder, text: str) -> None:
    parser = yaml.CSafeLoader(text)
    try:
        while parser.check_event():
            builder.take(parser.get_event())
    except _Stop:
        pass
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = builder.place(mark) if mark is not None else Place(builder.path, 1, 1)
        words = [part for part in (error.context, error.problem) if part]
        builder.report(place, "not YAML: " + (", ".join(words) or "cannot be read"))
    except yaml.YAMLError as error:
        builder.report(Place(builder.path, 1, 1), f"not YAML: {' '.join(str(error).split())}")
    finally:
        parser.dispose()


def _position(before: str) -> tuple[int, int]:
    lines = re.split(r"\r\n|[\n\r\x85\u2028\u2029]", before)
    return len(lines), len(lines[-1]) + 1


def plain(node: Node) -> Any:
    """Return the tree without its places: dicts, tuples and scalars."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Sequence):
        return tuple(plain(item) for item in node.items)
    return {name: plain(value) for name, (_, value) in node.entries.items()}


def find(root: Node, location: tuple[str | int, ...], *, is_key: bool = False) -> tuple[Node, Place]:
    """Return the deepest node on the way to `location`, and its place, or its key's where `is_key`.

    Parts that the tree does not have are where the way ends: a missing key is reported at its map.
    """
    node, place = root, root.place
    for part in location:
        if isinstance(node, Mapping) and isinstance(part, str) and part in node.entries:
            key, node = node.entries[part]
            place = key.place if is_key else node.place
        elif isinstance(node, Sequence) and isinstance(part, int) and part < len(node.items):
            node = node.items[part]
            place = node.place
        else:
            break
    return node, place
