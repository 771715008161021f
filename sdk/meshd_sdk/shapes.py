"""What JSON may stand where a Python type is written: its JSON Schema, and values read by it. Pure, stdlib only.

A shape reads a decoded JSON value into what the type asks for (a dataclass, an Enum's member, a tuple, ...), and adds a
line to `faults` for everything that does not fit, in words that a model can act on. `shape_of` makes one from a type,
see `meshd_sdk.shape_of`.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Schema = dict[str, Any]
SHOWN_CHARS_MAX: Final = 60


class Faults(list[str]):
    """Lines such as `limit: expected an integer, got "ten"`."""

    def add(self, where: str, what: str) -> None:
        """Say what is wrong with the value at a place such as `filters[0].name`."""
        self.append(f"{where or 'the value'}: {what}")


class Shape(Protocol):
    """See the module."""

    def schema(self) -> Schema:
        """Return the JSON Schema (draft 2020-12)."""
        ...

    def read(self, value: Any, where: str, faults: Faults) -> Any:
        """Return what the type asks for; anything at all where a fault was added."""
        ...


def shown(value: Any) -> str:
    """Return a value as a fault shows it: JSON, cut short."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = type(value).__name__
    return text if len(text) <= SHOWN_CHARS_MAX else text[: SHOWN_CHARS_MAX - 3] + "..."


class Anything:
    """Any JSON."""

    def schema(self) -> Schema:
        """Return the schema that everything fits."""
        return {}

    def read(self, value: Any, where: str, faults: Faults) -> Any:
        """Return the value."""
        return value


class Scalar(NamedTuple):
    """A string, an integer, a number, a boolean or null."""

    kind: str
    """As JSON Schema names it."""

    def schema(self) -> Schema:
        """Return the type."""
        return {"type": self.kind}

    def read(self, value: Any, where: str, faults: Faults) -> Any:
        """Return the value: an integer where a number is asked for becomes a float, 3.0 is an integer."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        match self.kind:
            case "string" if isinstance(value, str):
                return value
            case "boolean" if isinstance(value, bool):
                return value
            case "null" if value is None:
                return None
            case "integer" if is_number and math.isfinite(value) and value == int(value):
                return int(value)
            case "number" if is_number:
                try:
                    return float(value)
                except OverflowError:
                    pass
        article = "an" if self.kind == "integer" else "a"
        faults.add(where, f"expected {article} {self.kind}, got {shown(value)}".replace("a null", "null"))
        return None


class Base64:
    """Bytes, as base64 in a string."""

    def schema(self) -> Schema:
        """Return the schema of an encoded string."""
        return {"type": "string", "contentEncoding": "base64"}

    def read(self, value: Any, where: str, faults: Faults) -> Any:
        """Return the bytes."""
        if isinstance(value, str):
            try:
                return base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError):
                pass
        faults.add(where, f"expected base64 in a string, got {shown(value)}")
        return b""


class Choice:
    """One of several values: a Literal, or an Enum."""

    def __init__(self, members: Sequence[tuple[Any, Any]]) -> None:
        self.members = members
        """Pairs of the JSON value and what it stands for."""

    def schema(self) -> Schema:
        """Return the values."""
        return {"enum": [value for value, _ in self.members]}

    def read(self, value: Any, where: str, faults: Faults) -> Any:
        """Return what the value stands for. As JSON has it, 1.0 is 1; True is not."""
        for one, stands_for in self.members:
            if isinstance(one, bool) is isinstance(value, bool) and one == value:
                return stands_for
        faults.add(where, f"expected one of {', '.join(shown(one) for one, _ in self.members)}; got {shown(value)}")
        return None


class ListOf:
    """Items of one shape."""

    def __init__(self, item: Shape, make: Callable[[list[Any]], Any] = list, *, is_unique: bool = False) -> None:
        self.item, self.make, self.is_unique = item, make, is_unique

    def schema(self) -> Schema:
        """Return the schema of an array."""
        more: Schema = {"uniqueItems": True} if self.is_unique else {}
        return {"type": "array", "items": self.item.schema(), **more}

    def read(self, value: Any, where: str, faults: Faults) -> Any:
        """Return what `make` makes of the items."""
        if not isinstance(value, list):
            faults.add(where, f"expected an array, got {shown(value)}")
            return None
        read = [self.item.read(item, f"{where}[{at}]", faults) for at, item in enumerate(value)]
        if self.is_unique and faults:
            return None  # what did not fit may not be hashable
        try:
            return self.make(read)
        except TypeError:
            faults.add(where, "expected items that can be compared")
            return None


class TupleOf:
    """So many items, each of its own shape."""

    def __init__(self, items: Sequence[Shape]) -> None:
        self.items = items

    def schema(self) -> Schema:
        """Return the schema of an array of fixed length."""
        count = len(self.items)
        return {
            "type": "array",
            "prefixItems": [item.schema() for item in self.items],
            "minItems": count,
            "maxItems": count,
        }

    def read(self, value: Any, where: str, faults: Faults) -> Any:
        """Return a tuple."""
        if not isinstance(value, list) or len(value) != len(self.items):
            faults.add(where, f"expected an array of {len(self.items)} items, got {shown(value)}")
            return None
        pairs = enumerate(zip(self.items, value, strict=True))
        return tuple([shape.read(item, f"{where}[{at}]", faults) for at, (shape, item) in pairs])


class MapOf(NamedTuple):
    """An object with any names, and values of one shape."""

    value: Shape

    def schema(self) -> Schema:
        """Return the schema of an object."""
        return {"type": "object", "additionalProperties": self.value.schema() or True}

    def read(self, value: Any, where: str, faults: Faults) -> Any:
        """Return a dict."""
        if not isinstance(value, dict):
            faults.add(where, f"expected an object, got {shown(value)}")
            return None
        return {name: self.value.read(one, _below(where, name), faults) for name, one in value.items()}


class AnyOf:
    """What fits one of several shapes; the first that it fits."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self.shapes = shapes

    def schema(self) -> Schema:
        """Return the alternatives, in the short form where each is but a type."""
        schemas = [shape.schema() for shape in self.shapes]
        if all(schema.keys() == {"type"} for schema in schemas):
            return {"type": [schema["type"] for schema in schemas]}
        return {"anyOf": schemas}

    def read(self, value: Any, where: str, faults: Faults) -> Any:
        """Return what the first shape that fits makes of it; without one, the faults of the nearest."""
        nearest: Faults | None = None
        for shape in self.shapes:
            found = Faults()
            read = shape.read(value, where, found)
            if not found:
                return read
            is_deeper = any(not fault.startswith(f"{where or 'the value'}: expected") for fault in found)
            if nearest is None and is_deeper:
                nearest = found
        if nearest is None:
            faults.add(where, f"expected {self._words()}, got {shown(value)}")
        else:
            faults.extend(nearest)
        return None

    def _words(self) -> str:
        kinds = [str(shape.schema().get("type", "an object")) for shape in self.shapes]
        return " or ".join(dict.fromkeys(kinds))


class Field(NamedTuple):
    """One name of an object."""

    shape: Shape
    description: str = ""
    is_required: bool = True
    default: Any = None
    """JSON to show as the default; read where `has_default` says so."""
    has_default: bool = False

    def schema(self) -> Schema:
        """Return the shape's schema with what is said of the field."""
        made = dict(self.shape.schema())
        if self.description:
            made["description"] = self.description
        if self.has_default:
            made["default"] = self.default
        return made


class Fields:
    """An object with these names and no others: a dataclass, a TypedDict, a function's parameters."""

    def __init__(self, fields: Mapping[str, Field], make: Callable[..., Any] = dict, *, noun: str = "field") -> None:
        self.fields, self.make, self.noun = fields, make, noun

    def schema(self) -> Schema:
        """Return the schema of an object."""
        required = [name for name, field in self.fields.items() if field.is_required]
        made: Schema = {
            "type": "object",
            "properties": {name: field.schema() for name, field in self.fields.items()},
            "additionalProperties": False,
        }
        return made | {"required": required} if required else made

    def read(self, value: Any, where: str, faults: Faults) -> Any:
        """Return what `make` makes of the fields that were given; it has its own defaults for the others."""
        if not isinstance(value, dict):
            faults.add(where, f"expected an object, got {shown(value)}")
            return None
        before = len(faults)
        read = {}
        for name, one in value.items():
            if (field := self.fields.get(name)) is None:
                there = ", ".join(self.fields) or "none"
                faults.add(_below(where, name), f"no such {self.noun}; there are: {there}")
            else:
                read[name] = field.shape.read(one, _below(where, name), faults)
        for name, field in self.fields.items():
            if field.is_required and name not in value:
                faults.add(_below(where, name), f"is missing; expected {_words(field.shape)}")
        if len(faults) > before:
            return None
        try:
            return self.make(**read)
        except (TypeError, ValueError) as error:  # a dataclass may check itself
            faults.add(where, str(error))
            return None


class Named:
    """A shape that stands under `$defs`, so that it may hold itself."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.shape: Shape = Anything()

    def schema(self) -> Schema:
        """Return a reference."""
        return {"$ref": f"#/$defs/{self.name}"}

    def read(self, value: Any, where: str, faults: Faults) -> Any:
        """Read by the shape of that name."""
        return self.shape.read(value, where, faults)


class Foreign:
    """A class that brings its own schema and its own reading, as pydantic's models do."""

    def __init__(self, model: Any, schema: Schema) -> None:
        self.model, self._schema = model, schema

    def schema(self) -> Schema:
        """Return the model's own schema."""
        return self._schema

    def read(self, value: Any, where: str, faults: Faults) -> Any:
        """Return the model's instance."""
        try:
            return self.model.model_validate(value)
        except ValueError as error:
            details = getattr(error, "errors", None)
            for fault in details() if callable(details) else [{"loc": (), "msg": str(error)}]:
                place = where
                for part in fault["loc"]:
                    place = f"{place}[{part}]" if isinstance(part, int) else _below(place, str(part))
                faults.add(place, str(fault["msg"]))
            return None


def _below(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _words(shape: Shape) -> str:
    schema = shape.schema()
    if "enum" in schema:
        return "one of " + ", ".join(shown(one) for one in schema["enum"])
    kind = schema.get("type", "a value")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)
