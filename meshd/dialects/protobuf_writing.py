"""Protobuf messages written by a table of their fields: the other way of `meshd.dialects.protobuf`. Pure.

What no table has a field for is left out, and so is a value that its field cannot hold: what is written here was made
here, or read by the same tables.
"""

from __future__ import annotations

import base64
import binascii
import struct
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from meshd.dialects.protobuf import BYTES, DOUBLE, FLAG, NUMBER, STRUCT, TEXT, TIME, VALUE, MapOf, joined

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshd.dialects.protobuf import Member

Fields = list[tuple[int, int, Any]]

_VARINT, _FIXED64, _LENGTH = 0, 1, 2
_MASK: Final = (1 << 64) - 1
_double: Final = struct.Struct("<d")


class _Unfit(Exception):
    """A field cannot hold this."""


def encoded(message: Mapping[str, Any], table: Mapping[int, Member]) -> bytes:
    """Return a message, given as JSON has it, as protobuf."""
    fields: Fields = []
    for number, member in table.items():
        value = message.get(member.name)
        if value is None:
            continue
        for one in _items(value, member):
            try:
                wire, raw = _written(one, member.sort)
            except _Unfit:
                continue
            fields.append((number, wire, raw))
    return joined(fields)


def frame(message: bytes) -> bytes:
    """Return a message as gRPC frames it, not compressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def _items(value: Any, member: Member) -> list[Any]:
    if isinstance(member.sort, MapOf):
        return list(value.items()) if isinstance(value, dict) else []
    if member.is_repeated:
        return value if isinstance(value, list) else []
    return [value]


def _written(value: Any, sort: Any) -> tuple[int, Any]:
    if isinstance(sort, MapOf):
        key, item = value
        wire, raw = _written(item, sort.sort)
        return _LENGTH, joined([(1, _LENGTH, _utf8(key)), (2, wire, raw)])
    if isinstance(sort, tuple):
        if value in sort:
            return _VARINT, sort.index(value)
        raise _Unfit
    if isinstance(sort, str):
        return _simple(value, sort)
    if not isinstance(value, dict):
        raise _Unfit
    return _LENGTH, encoded(value, sort)


def _simple(value: Any, sort: str) -> tuple[int, Any]:
    if sort == VALUE:
        return _LENGTH, _value(value)
    if sort == STRUCT and isinstance(value, dict):
        return _LENGTH, _struct(value)
    if sort == FLAG and isinstance(value, bool):
        return _VARINT, int(value)
    if sort == NUMBER and isinstance(value, int):
        return _VARINT, value & _MASK
    if sort == DOUBLE and isinstance(value, int | float):
        return _FIXED64, _double.pack(value)
    if isinstance(value, str):
        if sort == TEXT:
            return _LENGTH, _utf8(value)
        if sort == BYTES:
            return _LENGTH, _bytes(value)
        if sort == TIME:
            return _LENGTH, _time(value)
    raise _Unfit


def _utf8(value: Any) -> bytes:
    if not isinstance(value, str):
        raise _Unfit
    return value.encode("utf-8", "replace")


def _bytes(value: str) -> bytes:
    try:
        return base64.b64decode(value.replace("-", "+").replace("_", "/") + "=" * (-len(value) % 4))
    except (binascii.Error, ValueError):
        raise _Unfit from None


def _time(value: str) -> bytes:
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        raise _Unfit from None
    whole = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    seconds = int((whole.replace(microsecond=0) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
    return joined([(1, _VARINT, seconds & _MASK), (2, _VARINT, whole.microsecond * 1000)])


def _struct(value: dict[str, Any]) -> bytes:
    entries: Fields = []
    for key, item in value.items():
        entries.append((1, _LENGTH, joined([(1, _LENGTH, _utf8(key)), (2, _LENGTH, _value(item))])))
    return joined(entries)


def _value(value: Any) -> bytes:
    """Return a google.protobuf.Value."""
    if value is None:
        return joined([(1, _VARINT, 0)])
    if isinstance(value, bool):
        return joined([(4, _VARINT, int(value))])
    if isinstance(value, int | float):
        return joined([(2, _FIXED64, _double.pack(value))])
    if isinstance(value, str):
        return joined([(3, _LENGTH, _utf8(value))])
    if isinstance(value, dict):
        return joined([(5, _LENGTH, _struct(value))])
    return joined([(6, _LENGTH, joined([(1, _LENGTH, _value(item)) for item in value]))])
