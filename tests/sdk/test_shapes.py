"""JSON Schema from type hints, and arguments read by it: what fits, and what a model is told of what does not."""

from __future__ import annotations

import dataclasses
import enum
import json
from typing import Annotated, Any, Literal, NotRequired, Optional, TypedDict, Union

import jsonschema
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd_sdk.errors import ArgumentsInvalid
from meshd_sdk.handlers import Tool
from meshd_sdk.shape_of import Shapes
from meshd_sdk.shapes import Faults


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Pair(enum.Enum):
    A = (1, 2)


@dataclasses.dataclass
class Point:
    x: int
    y: Annotated[float, "how far up"] = 0.0
    tags: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Tree:
    name: str
    children: list[Tree] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Checked:
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError("count is at least 1")


class Options(TypedDict):
    depth: int
    note: NotRequired[str]


class Inner(pydantic.BaseModel):
    n: int


class Model(pydantic.BaseModel):
    inner: Inner
    limit: int = pydantic.Field(10, ge=1, description="how many")


def read(hint: Any, value: Any) -> Any:
    """Return (what was read, faults)."""
    faults = Faults()
    return Shapes().of(hint).read(value, "v", faults), list(faults)


FITS = [
    (int, 3, 3),
    (int, 3.0, 3),
    (float, 3, 3.0),
    (str, "a", "a"),
    (bool, True, True),
    (None, None, None),
    (bytes, "aGk=", b"hi"),
    (Any, {"a": [1]}, {"a": [1]}),
    (list, [1, "a"], [1, "a"]),
    (list[int], [1, 2], [1, 2]),
    (tuple[int, str], [1, "a"], (1, "a")),
    (tuple[int, ...], [1, 2], (1, 2)),
    (tuple[()], [], ()),
    (set[str], ["a", "b"], {"a", "b"}),
    (dict[str, int], {"a": 1}, {"a": 1}),
    (Literal["a", 1], 1, 1),
    (Color, "red", Color.RED),
    (Level, 2, Level.HIGH),
    (Pair, "A", Pair.A),
    (Literal[Color.RED], "red", Color.RED),
    (Optional[int], None, None),  # noqa: UP045 - both spellings are read
    (Union[int, str], "a", "a"),  # noqa: UP007
    (int | None, 4, 4),
    (Point, {"x": 1, "y": 2}, Point(1, 2.0)),
    (list[Point], [{"x": 1}], [Point(1)]),
    (Tree, {"name": "a", "children": [{"name": "b"}]}, Tree("a", [Tree("b")])),
    (Options, {"depth": 1}, {"depth": 1}),
    (Model, {"inner": {"n": 1}}, Model(inner=Inner(n=1))),
    (Annotated[int, "a number"], 1, 1),
]


@pytest.mark.parametrize(("hint", "value", "expected"), FITS, ids=str)
def test_what_fits_is_read_and_fits_the_schema(hint: Any, value: Any, expected: Any) -> None:
    found, faults = read(hint, value)
    assert faults == []
    assert found == expected
    assert type(found) is type(expected)
    shapes = Shapes()
    schema = shapes.whole(shapes.of(hint))
    json.dumps(schema)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(value)


@pytest.mark.parametrize(
    ("hint", "value", "fault"),
    [
        (int, "3", 'v: expected an integer, got "3"'),
        (int, True, "v: expected an integer, got true"),
        (int, 3.5, "v: expected an integer, got 3.5"),
        (int, float("inf"), "v: expected an integer, got Infinity"),
        (float, "x", 'v: expected a number, got "x"'),
        (float, 10**400, "v: expected a number"),
        (str, None, "v: expected a string, got null"),
        (bool, 1, "v: expected a boolean, got 1"),
        (None, 0, "v: expected null, got 0"),
        (bytes, "?", 'v: expected base64 in a string, got "?"'),
        (list[int], {"a": 1}, 'v: expected an array, got {"a": 1}'),
        (list[int], [1, "b"], 'v[1]: expected an integer, got "b"'),
        (tuple[int, str], [1], "v: expected an array of 2 items, got [1]"),
        (dict[str, int], {"a": "b"}, 'v.a: expected an integer, got "b"'),
        (dict[str, int], [], "v: expected an object, got []"),
        (set[int], ["a"], 'v[0]: expected an integer, got "a"'),
        (set, [[1]], "v: expected items that can be compared"),
        (Literal["a", "b"], "c", 'v: expected one of "a", "b"; got "c"'),
        (Literal[1], True, "v: expected one of 1; got true"),
        (Color, "green", 'v: expected one of "red", "blue"; got "green"'),
        (int | None, "x", 'v: expected integer or null, got "x"'),
        (Point | None, {"x": "a"}, 'v.x: expected an integer, got "a"'),
        (Point, {}, "v.x: is missing; expected integer"),
        (Point, {"x": 1, "z": 2}, "v.z: no such field; there are: x, y, tags"),
        (Checked, {"count": 0}, "v: count is at least 1"),
        (Model, {"inner": {"n": "x"}, "limit": 0}, "v.inner.n: Input should be a valid integer"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named_with_its_place(hint: Any, value: Any, fault: str) -> None:
    _, faults = read(hint, value)
    assert faults
    assert faults[0].startswith(fault)


def test_a_long_value_is_shown_cut_short() -> None:
    _, faults = read(int, "x" * 10_000)
    assert len(faults[0]) < 120


@pytest.mark.parametrize("hint", [object(), complex, dict[int, str], lambda: 0, type("Plain", (), {})])
def test_a_type_that_json_has_no_word_for_is_refused_as_it_is_declared(hint: Any) -> None:
    with pytest.raises(TypeError):
        Shapes().of(hint)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
HINTS = [hint for hint, _, _ in FITS if hint is not Model]


@given(st.sampled_from(HINTS), JSON)
@settings(max_examples=600)
def test_whatever_comes_is_read_or_named_and_never_raises(hint: Any, value: Any) -> None:
    _, faults = read(hint, value)
    shapes = Shapes()
    schema = shapes.whole(shapes.of(hint))
    if "base64" not in json.dumps(schema) and not _has_nonfinite(value):
        # A set takes what is there twice, where the schema does not: no harm comes of it.
        is_set = "uniqueItems" in json.dumps(schema)
        assert is_set or jsonschema.Draft202012Validator(schema).is_valid(value) == (not faults)


def _has_nonfinite(value: Any) -> bool:
    if isinstance(value, float):
        return value != value or value in (float("inf"), float("-inf"))
    if isinstance(value, dict):
        return any(_has_nonfinite(one) for one in value.values())
    return isinstance(value, list) and any(_has_nonfinite(one) for one in value)


# Functions


async def search(
    ctx: Any,
    query: str,
    limit: Annotated[int, "at most so many"] = 10,
    kind: Literal["web", "news"] = "web",
    where: Point | None = None,
) -> list[Point]:
    """Find sources.

    In several
    places.

    Args:
        query: what is looked for,
            in words
        limit (int): overridden by the annotation

    Returns:
        points: none of the arguments
    """
    return []


def test_a_tool_is_its_signature_and_its_docstring() -> None:
    tool = Tool(search, globals(), is_read_only=True)
    assert tool.name == "search"
    assert tool.description == "Find sources.\n\nIn several places."
    assert tool.ctx == "ctx"
    properties = tool.input_schema["properties"]
    assert properties["query"] == {"type": "string", "description": "what is looked for, in words"}
    assert properties["limit"] == {"type": "integer", "description": "at most so many", "default": 10}
    assert properties["kind"] == {"enum": ["web", "news"], "default": "web"}
    assert properties["where"]["default"] is None
    assert tool.input_schema["required"] == ["query"]
    assert tool.input_schema["additionalProperties"] is False
    jsonschema.Draft202012Validator.check_schema(tool.input_schema)
    assert tool.output_schema is not None
    assert tool.output_schema["items"] == {"$ref": "#/$defs/Point"}


def test_arguments_are_read_by_the_schema() -> None:
    tool = Tool(search, globals())
    assert tool.arguments({"query": "a", "where": {"x": 1}}) == {"query": "a", "where": Point(1)}
    with pytest.raises(ArgumentsInvalid) as caught:
        tool.arguments({"limit": "ten", "qury": "a"})
    assert str(caught.value).splitlines() == [
        "the arguments of search do not fit:",
        'limit: expected an integer, got "ten"',
        "qury: no such argument; there are: query, limit, kind, where",
        "query: is missing; expected string",
    ]


@pytest.mark.parametrize("payload", [[], "x", 3, [{"query": "a"}]])
def test_arguments_that_are_no_object_are_named(payload: Any) -> None:
    with pytest.raises(ArgumentsInvalid, match="expected an object"):
        Tool(search, globals()).arguments(payload)


def test_no_payload_is_no_arguments() -> None:
    def ping() -> str:
        return "pong"

    assert Tool(ping, {}).arguments(None) == {}


def test_types_of_the_place_where_a_tool_is_declared_are_known() -> None:
    @dataclasses.dataclass
    class Local:
        n: int

    def tool(one: Local) -> None: ...

    assert Tool(tool, locals()).arguments({"one": {"n": 1}}) == {"one": Local(1)}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def f(*args): ...", "arguments have names"),
        ("def f(**more): ...", "arguments have names"),
        ("def f(a: 'Nowhere'): ...", "not known while the program runs"),
        ("def f(a: complex): ...", "f: a: .*no JSON Schema"),
    ],
)
def test_a_function_that_cannot_be_called_by_json_is_refused(source: str, words: str) -> None:
    scope: dict[str, Any] = {}
    exec(source, scope)
    with pytest.raises(TypeError, match=words):
        Tool(scope["f"], scope)


@pytest.mark.parametrize("name", ["a b", "x" * 129, "ü", "a/b"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a tool's name"):
        Tool(search, globals(), name=name)


def test_a_number_is_a_choice_as_json_has_it() -> None:
    assert read(Literal["a", 1], 1.0) == (1, [])
    assert read(Literal["a", 1], True)[1] == ['v: expected one of "a", 1; got true']
