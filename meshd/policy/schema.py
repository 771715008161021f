"""The document's JSON Schema, for editors and programs, and the same as tables for people."""

from __future__ import annotations

import ast
import inspect
import textwrap
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from meshd.policy.model import Document

if TYPE_CHECKING:
    from collections.abc import Iterator

TITLE = "meshd policy"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a policy document.

    Everything that loads is valid by it. What it cannot say (rules that can match nothing, URLs that may not be
    called, amounts out of a filter's range when written with a unit) only `meshd check` finds.
    """
    schema = Document.model_json_schema()
    _describe(schema)
    schema = _tidy(schema)
    allow = schema["$defs"]["AllowSettings"]["properties"]
    # In a document this is `deny:`, beside `match:`.
    del allow["denied"]
    for name, field in allow.items():
        if field.get("type") == "array":
            description = field.pop("description", "")
            allow[name] = {"anyOf": [{"type": "string"}, field], "description": description}
    schema["$defs"]["BudgetSettings"]["anyOf"] = [{"required": [key]} for key in ("tokens", "dollars")]
    schema["$defs"]["UpstreamSection"]["anyOf"] = [{"required": [key]} for key in ("url", "session", "process")]
    sections = (schema["properties"], schema["$defs"]["UpstreamSection"]["properties"])
    for named in (sections[0]["upstreams"], *(section["prices"] for section in sections)):
        named["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": TITLE}


def _describe(schema: dict[str, Any]) -> None:
    """Put into a schema what the texts below the fields say.

    pydantic would read the source of all of these classes whenever meshd starts: a fifth of what importing them takes.
    """
    for kind in _kinds(BaseModel):
        section = schema if kind is Document else schema["$defs"].get(kind.__name__)
        if section is None or not kind.__module__.startswith("meshd."):
            continue
        texts = {
            name: text
            for one in reversed(kind.__mro__)
            if one is not BaseModel and issubclass(one, BaseModel)
            for name, text in _texts(one)
        }
        for name, field in kind.model_fields.items():
            key = field.alias or name
            if key in section["properties"] and name in texts:
                described = {"description": texts[name], **section["properties"][key]}
                section["properties"][key] = dict(sorted(described.items()))  # as pydantic has them


def _kinds(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for one in kind.__subclasses__():
        yield one
        yield from _kinds(one)


def _texts(kind: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Yield the fields of a class's own, each with the text that stands below it."""
    (defined,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(defined, ast.ClassDef)
    for field, below in pairwise(defined.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            text = below.value.value if isinstance(below.value, ast.Constant) else None
            if isinstance(text, str):
                yield field.target.id, inspect.cleandoc(text)


def _tidy(node: Any, *, is_names: bool = False) -> Any:
    """Drop what only Python needs: titles, defaults of whole sections, and the null of an optional field.

    In a document a key with nothing after it is an error. `is_names` marks a map whose keys are a document's own.
    """
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {}
    for key, value in node.items():
        if not is_names and (key == "title" or (key == "default" and (value is None or isinstance(value, dict)))):
            continue
        result[key] = (
            " ".join(value.split())
            if key == "description" and isinstance(value, str)
            else _tidy(value, is_names=not is_names and key in ("properties", "$defs", "patternProperties"))
        )
    choices = result.get("anyOf")
    if isinstance(choices, list) and {"type": "null"} in choices:
        left = [choice for choice in choices if choice != {"type": "null"}]
        del result["anyOf"]
        result = {**left[0], **result} if len(left) == 1 else {"anyOf": left, **result}
    return result


def reference() -> str:
    """Return every key with its type, default and meaning, as Markdown tables: a heading for each map."""
    schema = json_schema()
    parts = [_table("", schema, schema)]
    parts += [_table(path, section, schema) for path, section in _sections("", schema, schema)]
    return "\n\n".join(parts) + "\n"


def _sections(path: str, section: dict[str, Any], schema: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name, field in section["properties"].items():
        many = next((choice["items"] for choice in field.get("anyOf", []) if "items" in choice), field.get("items"))
        for suffix, inner in (("", field), ("[]", many), (".NAME", _named(field))):
            if isinstance(inner, dict) and "$ref" in inner:
                below = schema["$defs"][inner["$ref"].rpartition("/")[2]]
                where = f"{path}.{name}{suffix}".removeprefix(".")
                found.append((where, below))
                found += _sections(where, below, schema)
    return found


def _named(field: dict[str, Any]) -> dict[str, Any] | None:
    patterns = field.get("patternProperties")
    return next(iter(patterns.values())) if patterns else None


def _table(path: str, section: dict[str, Any], schema: dict[str, Any]) -> str:
    needed = section.get("required", [])
    rows = [f"### `{path}`" if path else "### The document", "", section["description"], ""]
    rows += ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, field in section["properties"].items():
        default = "required" if name in needed else _default(field)
        meaning = field.get("description") or _referred(field, schema).get("description", "")
        note = " *Not enforced by this build.*" if field.get("x-meshd-unenforced") else ""
        rows.append(f"| `{name}` | {_kind(field)} | {default} | {meaning}{note} |")
    return "\n".join(rows)


def _referred(field: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = schema["$defs"].get(field.get("$ref", "").rpartition("/")[2], {})
    return found


def _default(field: dict[str, Any]) -> str:
    value = field.get("default")
    if value is None or value in ([], ""):
        return ""
    unit = _unit(field)
    if unit == "duration":
        return f"`{_duration(value)}`"
    if unit == "size":
        return f"`{_size(value)}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _duration(value: float) -> str:
    if value < 1:
        return f"{value * 1000:g}ms"
    return f"{value / 60:g}m" if value >= 60 and value % 60 == 0 else f"{value:g}s"


def _size(value: int) -> str:
    if value >= 2**20 and value % 2**20 == 0:
        return f"{value >> 20}MiB"
    return f"{value >> 10}KiB" if value >= 2**10 and value % 2**10 == 0 else f"{value}B"


def _unit(field: dict[str, Any]) -> str:
    patterns = " ".join(choice.get("pattern", "") for choice in field.get("anyOf", []))
    marks = {"ms|s|m": "duration", "KiB": "size", "kKMG": "count", "\\$?": "dollars"}
    return next((unit for mark, unit in marks.items() if mark in patterns), "")


def _kind(field: dict[str, Any]) -> str:
    if "$ref" in field or field.get("type") == "object":
        return "map"
    if unit := _unit(field):
        return unit
    for choice in field.get("anyOf", []):
        if choice.get("type") == "array":
            return f"{_one_of(choice['items'])}, or a list"
    if field.get("type") == "array":
        return f"list of {_one_of(field['items'])}"
    return _one_of(field)


def _one_of(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true`, `false`"}
    return words.get(field.get("type", ""), "map" if "$ref" in field else "anything")
