"""A prompt as a file: its text, and before it, between two lines of `---`, what is said of it in YAML.

---
author: Ana
notes: Shorter than 1.1, since readers skipped the end.
models: [gpt-4o, claude-*]
---
Summarise what follows about {{topic}}.
"""

from __future__ import annotations

import re
from typing import Final, TypeVar

import msgspec
import yaml

from meshd.prompts.record import Prompt, made
from meshd.prompts.template import TEXT_BYTES_MAX, TemplateError

HEAD_BYTES_MAX: Final = 16 * 1024
FILE_BYTES_MAX: Final = TEXT_BYTES_MAX + HEAD_BYTES_MAX
_FENCE: Final = "---"
_STEP: Final = re.compile(r"\.([A-Za-z0-9_]+)|\[([0-9]+)\]")
_UNKNOWN: Final = re.compile(r"unknown field `([^`]*)`")

T = TypeVar("T")


class DocumentError(ValueError):
    """A file is not as it must be. `line` and `column` count from 1."""

    def __init__(self, message: str, line: int = 1, column: int = 1) -> None:
        super().__init__(message)
        self.line = line
        self.column = column

    def __str__(self) -> str:
        return f"{self.line}:{self.column}: {self.args[0]}"


class Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file says of its prompt."""

    author: str = ""
    notes: str = ""
    models: tuple[str, ...] = ()


def read_document(raw: bytes) -> tuple[Said, str, int]:
    """Return what is said of a prompt, its text without the last line's end, and the line at which that begins.

    Raises DocumentError.
    """
    if len(raw) > FILE_BYTES_MAX:
        raise DocumentError(f"it has {len(raw)} bytes, and at most {FILE_BYTES_MAX}")
    try:
        text = raw.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        raise DocumentError(f"it is not UTF-8: {error.reason}", line, column) from None
    if not text.startswith(_FENCE + "\n"):
        return Said(), text.removesuffix("\n"), 1
    head, fence, body = text[len(_FENCE) :].partition(f"\n{_FENCE}\n")
    if not fence:
        raise DocumentError("what begins with '---' is said of the prompt, and ends with such a line")
    said = read_yaml(head, Said, line=1)
    return said, body.removesuffix("\n"), head.count("\n") + 3


def read_prompt(raw: bytes, name: str, version: str) -> Prompt:
    """Return the prompt of a file. Raises DocumentError."""
    said, text, line = read_document(raw)
    try:
        return made(name, version, text, author=said.author, notes=said.notes, models=said.models)
    except TemplateError as error:
        raise DocumentError(str(error.args[0]), line + error.line - 1, error.column) from None
    except ValueError as error:
        raise DocumentError(str(error)) from None


def read_yaml(text: str, kind: type[T], *, line: int = 1) -> T:
    """Return what a small YAML document says, as a `kind`; nothing at all for an empty one. Raises DocumentError.

    `line` is where it begins in its file.
    """
    try:
        found = yaml.safe_load(text)
        twice = _twice(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = (mark.line + line, mark.column + 1) if mark is not None else (line, 1)
        raise DocumentError(f"it is not YAML: {error.problem or error.context}", *at) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DocumentError(f"it is not YAML: {error}", line) from None
    if twice is not None:
        # The parser keeps the last one, and nobody hears of the other.
        raise DocumentError(
            f"{twice.value!r} stands there twice", twice.start_mark.line + line, twice.start_mark.column + 1
        )
    try:
        return msgspec.convert({} if found is None else found, kind)
    except msgspec.ValidationError as error:
        row, column = _place_of(str(error), text)
        raise DocumentError(str(error), row + line, column + 1) from None


def place_of(text: str, key: str) -> tuple[int, int]:
    """Return line and column, from 1, of a key of a YAML document that is a map; 1 and 1 where it has none such."""
    found = _inner(yaml.compose(text, Loader=yaml.SafeLoader), key)
    return (found[0].start_mark.line + 1, found[0].start_mark.column + 1) if found is not None else (1, 1)


def _twice(node: yaml.Node | None) -> yaml.ScalarNode | None:
    """Return a key that its map has already, None where there is none. What an alias stands for is looked at once."""
    seen: set[int] = set()
    left = [node] if node is not None else []
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, yaml.SequenceNode):
            left += one.value
        elif isinstance(one, yaml.MappingNode):
            keys: set[tuple[str, str]] = set()
            for key, value in one.value:
                left.append(value)
                if isinstance(key, yaml.ScalarNode):
                    if (key.tag, key.value) in keys:
                        return key
                    keys.add((key.tag, key.value))
    return None


def _place_of(message: str, text: str) -> tuple[int, int]:
    """Return line and column, from 0, of what a message of msgspec's is about: as far as it says where that is."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    path = message.partition(" - at `$")[2]
    steps = [key or int(at) for key, at in _STEP.findall(path)]
    unknown = _UNKNOWN.search(message)
    for step in steps:
        inner = _inner(node, step)
        if inner is None:
            break
        _, node = inner
    if unknown is not None and (inner := _inner(node, unknown[1])) is not None:
        node, _ = inner
    return (node.start_mark.line, node.start_mark.column) if node is not None else (0, 0)


def _inner(node: yaml.Node | None, step: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    """Return what stands at one step further within: the key and the value of a map, an item of a list as both."""
    if isinstance(node, yaml.MappingNode):
        return next(((name, value) for name, value in node.value if name.value == step), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    return None
