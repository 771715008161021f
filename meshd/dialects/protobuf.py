"""Protobuf messages read by a table of their fields, without generated code. Pure.

What comes out is JSON as protobuf's own mapping has it (names in camel case, bytes in base64, enums by name), so that
a message means the same whichever way it came. A field that no table knows is kept under its number. What parsers take
in different ways is refused: a field twice that may stand once, or a part of a message behind its end.
"""

from __future__ import annotations

import base64
import struct
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshd.dialects.json_pairs import malformed

if TYPE_CHECKING:
    from collections.abc import Mapping

DEPTH_MAX: Final = 100
"""Messages within one another: what protobuf's own parsers take."""
FIELDS_MAX: Final = 100_000
"""Of one message, with all that is within it: more would take longer to read than the call is worth."""
VARINT_BYTES_MAX: Final = 10
FRAME_HEAD_BYTES: Final = 5
NUMBER_MAX: Final = 2**29 - 1

TEXT: Final = "text"
BYTES: Final = "bytes"
FLAG: Final = "flag"
NUMBER: Final = "number"
"""A whole number: int32, int64 and their likes, as two's complement."""
DOUBLE: Final = "double"
STRUCT: Final = "struct"
"""google.protobuf.Struct."""
VALUE: Final = "value"
"""google.protobuf.Value."""
TIME: Final = "time"
"""google.protobuf.Timestamp, in JSON a text of RFC 3339."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_WIRES: Final = {TEXT: _LENGTH, BYTES: _LENGTH, FLAG: _VARINT, NUMBER: _VARINT, DOUBLE: _FIXED64}
_SIGN: Final = 1 << 63
_double: Final = struct.Struct("<d")


class MapOf(NamedTuple):
    """A map from texts to values of one sort."""

    sort: Any


class Member(NamedTuple):
    """One field of a message."""

    name: str
    """As JSON has it."""
    sort: Any = TEXT
    """One of the above, a table of a message's fields, a map, or the names of an enum's numbers."""
    is_repeated: bool = False


Table = dict[int, Member]
"""The fields of a message by their numbers."""


def framed(body: bytes, where: str) -> tuple[bool, bytes]:
    """Return the one message of a gRPC request's body, and whether it is compressed. Raises Refused(MALFORMED)."""
    if len(body) < FRAME_HEAD_BYTES:
        malformed(f"{where} ends before its first message is whole")
    size = int.from_bytes(body[1:FRAME_HEAD_BYTES], "big")
    if size > len(body) - FRAME_HEAD_BYTES:
        malformed(f"{where} ends early: its message has {size} bytes, and {len(body) - FRAME_HEAD_BYTES} came")
    if size < len(body) - FRAME_HEAD_BYTES:
        malformed(f"{where} holds more than one message, and its method takes one")
    if body[0] > 1:
        malformed(f"{where} is framed in a way that gRPC does not have (flags {body[0]})")
    return body[0] == 1, body[FRAME_HEAD_BYTES:]


def decoded(data: bytes, table: Mapping[int, Member], where: str) -> dict[str, Any]:
    """Return a message as JSON has it. `where` names it in messages. Raises Refused(MALFORMED)."""
    return _Reader(where).message(data, table, 0)


def split(data: bytes, where: str) -> list[tuple[int, int, Any]]:
    """Return number, wire type and value of each field of a message, in their order: a number for a varint, else
    bytes. Raises Refused(MALFORMED)."""
    return _Reader(where).fields(data, 0)


def joined(fields: list[tuple[int, int, Any]]) -> bytes:
    """Return the message that has these fields."""
    out = bytearray()
    for number, wire, value in fields:
        _add_varint(out, number << 3 | wire)
        if wire == _VARINT:
            _add_varint(out, value)
            continue
        if wire == _LENGTH:
            _add_varint(out, len(value))
        out += value
    return bytes(out)


def _add_varint(out: bytearray, number: int) -> None:
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)


class _Reader:
    __slots__ = ("_count", "_where")

    def __init__(self, where: str) -> None:
        self._where = where
        self._count = 0

    def message(self, data: bytes, table: Mapping[int, Member], depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for number, wire, raw in self.fields(data, depth):
            member = table.get(number)
            if member is None or wire != _wire_of(member.sort):
                found.setdefault(f"#{number}", []).append(_shown(raw))
                continue
            value = self._value(raw, member.sort, depth)
            if isinstance(member.sort, MapOf):
                found.setdefault(member.name, {}).update([value])
            elif member.is_repeated:
                found.setdefault(member.name, []).append(value)
            elif member.name in found:
                malformed(f"{self._where} has {member.name!r} more than once; which one counts differs between parsers")
            else:
                found[member.name] = value
        return found

    def _value(self, raw: Any, sort: Any, depth: int) -> Any:
        if sort == TEXT:
            return self._text(raw)
        if sort == BYTES:
            return base64.b64encode(raw).decode()
        if sort == FLAG:
            return raw != 0
        if sort == NUMBER:
            return raw - 2 * _SIGN if raw >= _SIGN else raw
        if sort == DOUBLE:
            return _double.unpack(raw)[0]
        if sort == STRUCT:
            return self._struct(raw, depth + 1)
        if sort == VALUE:
            return self._any(raw, depth + 1)
        if sort == TIME:
            return _moment(self.message(raw, _TIME, depth + 1))
        if isinstance(sort, MapOf):
            entry = self.message(raw, {1: Member("key"), 2: Member("value", sort.sort)}, depth + 1)
            return entry.get("key", ""), entry.get("value", {} if isinstance(sort.sort, dict) else "")
        if isinstance(sort, tuple):
            return sort[raw] if raw < len(sort) else raw
        return self.message(raw, sort, depth + 1)

    def _text(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return malformed(f"{self._where} has a text that is not UTF-8")

    def _struct(self, data: bytes, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for entry in self.message(data, _STRUCT, depth).get("fields", ()):
            name = entry.get("key", "")
            if name in found:
                malformed(f"{self._where} has the key {name[:64]!r} more than once; which one counts differs")
            found[name] = entry.get("value")
        return found

    def _any(self, data: bytes, depth: int) -> Any:
        found = self.message(data, _VALUE, depth)
        if len(found) > 1:
            malformed(f"{self._where} has a value of two types")
        for name, value in found.items():
            if name == "list":
                return value.get("values", [])
            return None if name == "null" else value
        return None

    def fields(self, data: bytes, depth: int) -> list[tuple[int, int, Any]]:
        """Return number, wire type and raw value of each field, in their order."""
        if depth > DEPTH_MAX:
            malformed(f"{self._where} is nested more than {DEPTH_MAX} deep")
        found: list[tuple[int, int, Any]] = []
        at, end = 0, len(data)
        while at < end:
            key, at = self._varint(data, at)
            number, wire = key >> 3, key & 7
            if not 0 < number <= NUMBER_MAX:
                malformed(f"{self._where} is no protobuf message: it has a field {number}")
            raw: Any
            if wire == _VARINT:
                raw, at = self._varint(data, at)
            elif wire == _LENGTH:
                size, at = self._varint(data, at)
                raw, at = data[at : at + size], at + size
            elif wire in (_FIXED64, _FIXED32):
                size = 8 if wire == _FIXED64 else 4
                raw, at = data[at : at + size], at + size
            else:
                malformed(f"{self._where} is no protobuf message: its field {number} is of the type {wire}")
            if at > end:
                malformed(f"{self._where} ends early, in its field {number}")
            found.append((number, wire, raw))
        self._count += len(found)
        if self._count > FIELDS_MAX:
            malformed(f"{self._where} has more than {FIELDS_MAX} fields")
        return found

    def _varint(self, data: bytes, at: int) -> tuple[int, int]:
        value, shift, end = 0, 0, min(len(data), at + VARINT_BYTES_MAX)
        while at < end:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value & (2 * _SIGN - 1), at
            shift += 7
        return malformed(f"{self._where} ends early, or has a number of more than {VARINT_BYTES_MAX} bytes")


def _wire_of(sort: Any) -> int:
    """Return the wire type of a sort of field; a field of another one is none that its table knows."""
    if isinstance(sort, str):
        return _WIRES.get(sort, _LENGTH)
    return _VARINT if isinstance(sort, tuple) and not isinstance(sort, MapOf) else _LENGTH


def _moment(time: dict[str, Any]) -> str:
    """Return a time as JSON has it; empty where no calendar has such a day."""
    try:
        at = datetime.fromtimestamp(time.get("seconds", 0), UTC)
    except (ValueError, OverflowError, OSError):
        return ""
    return at.strftime("%Y-%m-%dT%H:%M:%S") + f".{max(0, time.get('nanos', 0)) // 1000:06d}Z"


def _shown(raw: Any) -> Any:
    if isinstance(raw, bytes):
        return base64.b64encode(raw).decode()
    return raw


_VALUE: Final[Table] = {
    1: Member("null", ("null",)),
    2: Member("number", DOUBLE),
    3: Member("string", TEXT),
    4: Member("flag", FLAG),
    5: Member("struct", STRUCT),
    6: Member("list", {1: Member("values", VALUE, is_repeated=True)}),
}
_TIME: Final[Table] = {1: Member("seconds", NUMBER), 2: Member("nanos", NUMBER)}
_STRUCT: Final[Table] = {
    1: Member("fields", {1: Member("key", TEXT), 2: Member("value", VALUE)}, is_repeated=True),
}
