"""Requests that are written as JSON, as proto3 has it, read without guessing.

The library passes over whatever in a field of bytes is no base64: a value that was sent as it is, and not encoded,
would be kept as something else. Here it is refused, by its field.
"""

from __future__ import annotations

import json
from functools import lru_cache
from string import ascii_letters, digits
from typing import TYPE_CHECKING, Any, Final

from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from google.protobuf.descriptor import FieldDescriptor
    from google.protobuf.message import Message

NESTING_MAX: Final = 32
_BASE64: Final = f"{ascii_letters}{digits}+/-_"
"""Both alphabets (RFC 4648): proto3 JSON takes either, with padding or none."""


def from_json(given: bytes | str, kind: type[Message]) -> Message:
    """Return the request that a body holds; fields that are not known are passed over, since a client may be newer.
    Raises Refused(MALFORMED), naming what is wrong."""
    from google.protobuf import json_format

    wanted = kind.DESCRIPTOR.full_name
    try:
        text = (given if isinstance(given, str) else given.decode()).strip() or "{}"
        if not text.startswith("{"):
            raise ValueError("an object is expected")  # an empty list would do, too
        made = json_format.Parse(text, kind(), ignore_unknown_fields=True, max_recursion_depth=NESTING_MAX)
        if _with_bytes(kind.DESCRIPTOR):
            _check(json.loads(text), kind.DESCRIPTOR, "")
    except (json_format.ParseError, ValueError, RecursionError, OverflowError, TypeError, AttributeError) as error:
        raise Refused(Reason.MALFORMED, f"The request is not a {wanted} in JSON: {str(error)[:256]}") from None
    return made


@lru_cache(maxsize=256)
def _with_bytes(kind: Any) -> dict[str, FieldDescriptor]:
    """Return the fields of a message (its descriptor) that are bytes, or have such within, by each of their names."""
    found: dict[str, FieldDescriptor] = {}
    for field in kind.fields:
        inner = field.message_type
        if field.type == field.TYPE_BYTES or (inner is not None and inner is not kind and _with_bytes(inner)):
            found |= {field.name: field, field.json_name: field}
    return found


def _check(said: Any, kind: Any, where: str) -> None:
    """Look at what the library has taken: the forms of all that is not bytes are right."""
    for name, field in _with_bytes(kind).items():
        value = said.get(name) if isinstance(said, dict) else None
        if value is None:
            continue
        at = f"{where}{name}"
        for one in value if isinstance(value, list) else [value]:
            if field.message_type is not None:
                _check(one, field.message_type, f"{at}.")
            elif not isinstance(one, str) or not _is_base64(one):
                raise ValueError(f"{at} is bytes, which are written in base64")


def _is_base64(text: str) -> bool:
    """Say whether a text is base64, over lines or not, as `base64` writes it."""
    whole = text.replace("\n", "").replace("\r", "")
    letters = whole.rstrip("=")
    return not letters.strip(_BASE64) and len(letters) % 4 != 1 and len(whole) - len(letters) <= 2
