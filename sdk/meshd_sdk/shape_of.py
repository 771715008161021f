"""The shape of a Python type, and of a function's parameters: from type hints, defaults and the docstring.

Known are int, float, str, bool, None, bytes, Any, list, dict, tuple, set and their abstract forms, Literal, Enum,
unions, dataclasses, TypedDict, Annotated (a text is the description), and pydantic's models where a program brings
them. Anything else raises TypeError as it is declared, not as it is called. Stdlib only.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import inspect
import types
import typing
from typing import TYPE_CHECKING, Any, Final

from meshd_sdk.shapes import (
    AnyOf,
    Anything,
    Base64,
    Choice,
    Field,
    Fields,
    Foreign,
    ListOf,
    MapOf,
    Named,
    Scalar,
    TupleOf,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meshd_sdk.shapes import Schema, Shape

_SCALARS: Final[dict[Any, str]] = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    None: "null",
    types.NoneType: "null",
}
_LISTS: Final = (
    list,
    collections.abc.Sequence,
    collections.abc.Iterable,
    collections.abc.Collection,
    collections.abc.MutableSequence,
)
_SETS: Final[dict[Any, Any]] = {
    set: set,
    frozenset: frozenset,
    collections.abc.Set: frozenset,
    collections.abc.MutableSet: set,
}
_MAPS: Final = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
MISSING: Final = inspect.Parameter.empty


class Shapes:
    """Makes shapes, and keeps those that are named under `$defs`."""

    def __init__(self, names: Mapping[str, Any] | None = None) -> None:
        self.names = dict(names or {})
        """Names that annotations may use beside their module's own."""
        self.defs: dict[str, Named | Foreign] = {}
        self._by_type: dict[Any, Named] = {}

    def of(self, hint: Any) -> Shape:
        """Return the shape of a type; TypeError where it has none."""
        if hint is Any or hint is object or hint is MISSING:
            return Anything()
        if hint in _SCALARS:
            return Scalar(_SCALARS[hint])
        if hint is bytes:
            return Base64()
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin is typing.Annotated:
            return self.of(args[0])
        if origin in (typing.Required, typing.NotRequired, typing.Final):
            return self.of(args[0])
        if origin in (typing.Union, types.UnionType):
            return AnyOf([self.of(arg) for arg in args])
        if origin is typing.Literal:
            return Choice([(arg.value if isinstance(arg, enum.Enum) else arg, arg) for arg in args])
        if (shape := self._container(origin or hint, args)) is not None:
            return shape
        if isinstance(hint, type) or typing.is_typeddict(hint):
            return self._class(hint)
        if (supertype := getattr(hint, "__supertype__", None)) is not None:  # NewType
            return self.of(supertype)
        raise TypeError(
            f"{hint!r} has no JSON Schema here: use builtin types, dataclasses, TypedDict or pydantic models"
        )

    def _container(self, origin: Any, args: tuple[Any, ...]) -> Shape | None:
        if origin is tuple:
            if len(args) == 2 and args[1] is Ellipsis:
                return ListOf(self.of(args[0]), tuple)
            if args == ((),):
                return TupleOf([])
            return TupleOf([self.of(arg) for arg in args]) if args else ListOf(Anything(), tuple)
        if origin in _LISTS:
            return ListOf(self.of(args[0]) if args else Anything())
        if origin in _SETS:
            return ListOf(self.of(args[0]) if args else Anything(), _SETS[origin], is_unique=True)
        if origin in _MAPS:
            if args and args[0] is not str and args[0] is not Any:
                raise TypeError(f"the names of a JSON object are str, not {args[0]!r}")
            return MapOf(self.of(args[1]) if args else Anything())
        return None

    def _class(self, hint: Any) -> Shape:
        if issubclass(hint, enum.Enum):
            members = [(member.value, member) for member in hint]
            is_json = all(value is None or isinstance(value, str | int | float | bool) for value, _ in members)
            return Choice(members if is_json else [(member.name, member) for member in hint])
        if callable(getattr(hint, "model_json_schema", None)) and callable(getattr(hint, "model_validate", None)):
            schema = hint.model_json_schema()
            for name, one in schema.pop("$defs", {}).items():
                self.defs.setdefault(name, Foreign(None, one))
            return Foreign(hint, schema)
        if not dataclasses.is_dataclass(hint) and not typing.is_typeddict(hint):
            raise TypeError(f"{hint!r} has no JSON Schema here: make it a dataclass, a TypedDict or a pydantic model")
        if (named := self._by_type.get(hint)) is None:
            name = hint.__name__
            while name in self.defs:
                name += "_"
            named = self._by_type[hint] = self.defs[name] = Named(name)
            named.shape = self._dataclass(hint) if dataclasses.is_dataclass(hint) else self._typed_dict(hint)
        return named

    def _dataclass(self, hint: Any) -> Fields:
        hints = hints_of(hint, self.names)
        fields = {}
        for one in dataclasses.fields(hint):
            if one.init:
                is_required = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
                default = MISSING if one.default is dataclasses.MISSING else one.default
                fields[one.name] = self.field(hints[one.name], default, is_required=is_required)
        return Fields(fields, hint)

    def _typed_dict(self, hint: Any) -> Fields:
        hints = hints_of(hint, self.names)
        fields = {}
        for name, one in hints.items():
            # Where annotations are texts, __required_keys__ does not know of NotRequired.
            origin = typing.get_origin(one)
            is_required = name in hint.__required_keys__ and origin is not typing.NotRequired
            fields[name] = self.field(one, MISSING, is_required=is_required or origin is typing.Required)
        return Fields(fields)

    def field(self, hint: Any, default: Any, *, is_required: bool, description: str = "") -> Field:
        """Return a field of a type; a description in Annotated goes before the one that is given."""
        if typing.get_origin(hint) is typing.Annotated:
            for note in typing.get_args(hint)[1:]:
                text = note if isinstance(note, str) else getattr(note, "description", None)
                if isinstance(text, str) and text:
                    description = text
        shown = _json_of(default)
        return Field(self.of(hint), description, is_required, shown, default is not MISSING and shown is not MISSING)

    def whole(self, shape: Shape) -> Schema:
        """Return the schema of a shape with the `$defs` that it needs."""
        schema = dict(shape.schema())
        if self.defs:
            defs = {
                name: named.shape.schema() if isinstance(named, Named) else named.schema()
                for name, named in self.defs.items()
            }
            schema["$defs"] = defs
        return schema


def hints_of(what: Any, names: Mapping[str, Any]) -> dict[str, Any]:
    """Return the type hints of a function or class, with `names` beside those of its module.

    A hint that names what is not there while the program runs (imported for type checkers alone) is returned as the
    text that it is.
    """
    try:
        return typing.get_type_hints(what, localns=dict(names), include_extras=True)
    except NameError:
        pass
    scope = {**getattr(inspect.getmodule(what), "__dict__", {}), **getattr(what, "__globals__", {}), **names}
    found: dict[str, Any] = {}
    for name, hint in getattr(what, "__annotations__", {}).items():
        if isinstance(hint, str):
            try:
                hint = eval(hint, scope)  # noqa: S307 - the program's own annotation
            except NameError:
                pass
        found[name] = hint
    return found


def parameters(
    function: Callable[..., Any], shapes: Shapes, *, described: Mapping[str, str], without: frozenset[str]
) -> Fields:
    """Return the shape of a function's parameters, but those in `without`. TypeError for `*args` and `**kwargs`."""
    hints = hints_of(function, shapes.names)
    fields = {}
    for name, one in inspect.signature(function).parameters.items():
        if name in without:
            continue
        if one.kind not in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
            raise TypeError(f"{function.__qualname__}: a tool's arguments have names; {one} has none")
        hint = hints.get(name, MISSING)
        if isinstance(hint, str):
            raise TypeError(
                f"{function.__qualname__}: the type of {name!r}, {hint}, is not known while the program runs"
            )
        is_required = one.default is MISSING
        try:
            fields[name] = shapes.field(hint, one.default, is_required=is_required, description=described.get(name, ""))
        except TypeError as error:
            raise TypeError(f"{function.__qualname__}: {name}: {error}") from None
    return Fields(fields, noun="argument")


def _json_of(default: Any) -> Any:
    if isinstance(default, enum.Enum):
        default = default.value
    if default is None or isinstance(default, bool | int | float | str):
        return default
    if isinstance(default, list | dict) and not default:
        return default
    return MISSING
