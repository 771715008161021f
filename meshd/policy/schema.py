"""The document's JSON Schema, for editors and for whoever writes documents by program."""

from __future__ import annotations

from typing import Any

from meshd.policy.model import Document

TITLE = "meshd policy"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a policy document.

    Everything that loads is valid by it. What it cannot say (rules that can match nothing, URLs that may not be
    called, amounts out of a filter's range when written with a unit) only `meshd check` finds.
    """
    schema = _without_nulls(Document.model_json_schema())
    allow = schema["$defs"]["AllowSettings"]["properties"]
    for name, field in allow.items():
        if field.get("type") == "array":
            meta = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
            allow[name] = {"anyOf": [{"type": "string"}, field], **meta}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": TITLE}


def _without_nulls(node: Any) -> Any:
    """Drop the null that an optional field has in Python: in a document, a key with nothing after it is an error."""
    if isinstance(node, list):
        return [_without_nulls(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {key: _without_nulls(value) for key, value in node.items() if not (key == "default" and value is None)}
    choices = result.get("anyOf")
    if isinstance(choices, list) and {"type": "null"} in choices:
        left = [choice for choice in choices if choice != {"type": "null"}]
        if len(left) == 1:
            del result["anyOf"]
            result = {**left[0], **result}
        else:
            result["anyOf"] = left
    return result
