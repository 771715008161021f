"""Problems as they are collected: pydantic's errors in this project's words, each at its place in the text."""

from __future__ import annotations

import difflib
import types
import typing
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from meshd.policy.model import HOST_PATTERN, NAME_PATTERN, RULE_NAME_PATTERN, Document
from meshd.policy.model_catalogue import MODEL_PATTERN
from meshd.policy.problem import Problem, shown
from meshd.policy.reading import Mapping, Node, Scalar, Sequence, find

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic_core import ErrorDetails

Location = tuple[str | int, ...]

_PATTERNS = {
    NAME_PATTERN: "expected a name of a-z, 0-9, '-', '_' and '.', at most 63, beginning with a letter or digit",
    RULE_NAME_PATTERN: "expected a name of letters, digits, '-', '_' and '.', 63 at most",
}
_PATTERNS[MODEL_PATTERN] = "expected a model's name without spaces, `*` and `?` included, 128 characters at most"
_PATTERNS[HOST_PATTERN] = "expected a host name or an address, without a port"
_TYPES = {
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a map",
    "model_type": "a map",
    "model_attributes_type": "a map",
}


class Report:
    """Errors and warnings of one tree."""

    def __init__(self, root: Mapping) -> None:
        self.root = root
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []

    def error(self, location: Location, message: str, *, is_key: bool = False) -> None:
        """Report an error at a place of the document."""
        self.problems.append(Problem(*find(self.root, location, is_key=is_key)[1], message))

    def warn(self, location: Location, message: str, *, is_key: bool = False) -> None:
        """Report something that loads and may not be what was meant."""
        self.warnings.append(Problem(*find(self.root, location, is_key=is_key)[1], message))

    def take(self, errors: list[ErrorDetails]) -> None:
        """Report what pydantic found."""
        for error in errors:
            self.error(*self._translated(error))

    def _translated(self, error: ErrorDetails) -> tuple[Location, str]:
        location, kind = tuple(error["loc"]), error["type"]
        is_key = location[-1:] == ("[key]",)
        if is_key:
            location = location[:-1]
        node = find(self.root, location)[0]
        if kind == "missing":
            return location[:-1], f"the key {shown(str(location[-1]))} is missing"
        if kind == "value_error":
            return location, error["msg"].removeprefix("Value error, ")
        if kind == "string_pattern_mismatch":
            pattern = error["ctx"]["pattern"]
            written = str(location[-1]) if is_key else str(error["input"])
            return location, f"{_PATTERNS.get(pattern, f'expected a text that fits {pattern}')}, not {shown(written)}"
        if kind in ("literal_error", "enum"):
            return location, f"expected {error['ctx']['expected']}, not {described(node)}{_hint(node, error)}"
        if kind in _TYPES:
            return location, f"expected {_TYPES[kind]}, not {described(node)}{_quote_hint(node, kind)}"
        if kind == "too_short" and isinstance(node, Sequence):
            return location, "an empty list fits nothing: name something, or remove the key"
        message = error["msg"]
        for prefix in ("Input should be", "String should", "Tuple should", "Value should"):
            if message.startswith(prefix):
                message = ("must be" if prefix == "Input should be" else "must") + message[len(prefix) :]
        return location, f"{message}; this is {described(node)}"


def described(node: Node) -> str:
    """Say in a few words what stands at a node."""
    if isinstance(node, Mapping):
        return "a map"
    if isinstance(node, Sequence):
        return f"a list of {len(node.items)}"
    if isinstance(node.value, bool):
        return "true" if node.value else "false"
    return shown(node.text) if isinstance(node.value, str) else node.text[:40] or "nothing"


def _quote_hint(node: Node, kind: str) -> str:
    if kind != "string_type" or not isinstance(node, Scalar) or isinstance(node.value, str):
        return ""
    return f": put it in quotes, since YAML reads {node.text[:40]} as {_read_as(node)}"


def _read_as(node: Scalar) -> str:
    return "true or false" if isinstance(node.value, bool) else "a number"


def _hint(node: Node, error: ErrorDetails) -> str:
    if not isinstance(node, Scalar):
        return ""
    choices = [choice.strip("'") for choice in error["ctx"]["expected"].replace(" or ", ", ").split(", ")]
    return nearest(node.text, choices)


def nearest(written: str, known: list[str]) -> str:
    """Return a hint at the known word that is most like what was written, or an empty text."""
    close = difflib.get_close_matches(written[:80], known, n=1, cutoff=0.6)
    return f"; did you mean {shown(close[0])}?" if close else ""


def check_keys(report: Report) -> None:
    """Report unknown keys, with the nearest known one, values that are missing, and names that YAML misreads."""
    for location, node, model in _maps(report.root, (), Document):
        for text, (key, value) in node.entries.items():
            here = (*location, text)
            if isinstance(value, Scalar) and value.value is None:
                report.error(here, f"nothing stands after {shown(text)}: give it a value, or remove it", is_key=True)
            if model is None:
                if not isinstance(key.value, str):
                    report.error(here, f"a name must be a text: put {shown(text)} in quotes", is_key=True)
            elif text not in (known := sorted(_fields(model))):
                hint = nearest(text, known) or f"; known here: {', '.join(known)}"
                report.error(here, f"unknown key {shown(text)}{hint}", is_key=True)


def _maps(node: Node, location: Location, kind: Any) -> Iterator[tuple[Location, Mapping, type[BaseModel] | None]]:
    """Walk the maps whose keys the model knows (with their model) or leaves free (with None)."""
    kind = _unwrapped(kind)
    if isinstance(node, Sequence) and typing.get_origin(kind) is tuple:
        for index, item in enumerate(node.items):
            yield from _maps(item, (*location, index), typing.get_args(kind)[0])
    elif isinstance(node, Mapping) and typing.get_origin(kind) is dict:
        yield location, node, None
        for name, (_, value) in node.entries.items():
            yield from _maps(value, (*location, name), typing.get_args(kind)[1])
    elif isinstance(node, Mapping) and isinstance(kind, type) and issubclass(kind, BaseModel):
        yield location, node, kind
        fields = _fields(kind)
        for name, (_, value) in node.entries.items():
            if name in fields:
                yield from _maps(value, (*location, name), fields[name])


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _unwrapped(kind: Any) -> Any:
    """Take off Annotated and Optional."""
    while True:
        if typing.get_origin(kind) is typing.Annotated:
            kind = typing.get_args(kind)[0]
        elif typing.get_origin(kind) in (typing.Union, types.UnionType):
            kind = next(arg for arg in typing.get_args(kind) if arg is not type(None))
        else:
            return kind
