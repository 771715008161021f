"""JSON objects as pairs, so that a duplicate key is seen and not lost.

Most parsers keep the last of two equal keys, some the first: a body that says `"model"` twice is judged as one thing
and served as another. Here an object is decoded into pairs whose values stay raw bytes; two equal keys at a level
that decides are refused, and what has been read is exactly what is forwarded. Keys are compared after their escapes.

The trick: msgspec decodes into a dict whose key type has an identity hash, so equal names do not meet. Values are
scanned, not built: 2 us for a chat body of 1.3 kB, 26 us for 100 kB. Short objects, and arrays of many, are decoded
into plain dicts, three times as fast, where their length proves that nothing was lost. In a long body the messages
are nearly all of it, so they are cut out and decoded once, and not passed over first.
"""

from __future__ import annotations

import re
import struct
from itertools import chain
from typing import Any, Final, NoReturn

import msgspec

from meshd.refusal import Reason, Refused


class Key:
    """A decoded key. Equal only to itself."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def _to_key(_type: type, name: Any) -> Key:
    return Key(name)


RawJson = Any
"""bytes or msgspec.Raw, which is no kind of bytes though its stub says so: compiled code would hold it to that."""
Pairs = dict[str, msgspec.Raw]
"""The members of an object, in order, each value as raw JSON."""

_object: Final = msgspec.json.Decoder(dict[Key, msgspec.Raw], dec_hook=_to_key)
_objects: Final = msgspec.json.Decoder(list[dict[Key, msgspec.Raw]], dec_hook=_to_key)
_map: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_maps: Final = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_items: Final = msgspec.json.Decoder(list[msgspec.Raw])
_text: Final = msgspec.json.Decoder(str)
_integer: Final = msgspec.json.Decoder(int)
_lone_surrogate: Final = re.compile(rb"\\u[dD][89a-fA-F]")

NULL: Final[bytes] = b"null"
_TRUE, _FALSE = b"true", b"false"
# Bytes in which JSON that is written with blanks shows one.
_LOOK_BYTES: Final = 48
_BLANK: Final = 0x20
# Where an array that is read with its body must begin, and how far the tools behind it are looked for.
_PREFIX_BYTES_MAX: Final = 32 * 1024
_TOOLS_BYTES_MAX: Final = 64 * 1024
_head: Final = struct.Struct("c")
_TEXT_HEADS: Final = frozenset({(b'"',), (b"n",)})
# Above this, to add up the values' lengths costs more than to give each key an object of its own.
_COMPACT_BYTES_MAX: Final = 16 * 1024
# Values longer than this on average are measured one by one.
_MEASURED_BYTES: Final = 1024
# A cap above this is a mistake or an attack on the arithmetic of budgets, never a model's limit.
INTEGER_MAX: Final = 1_000_000_000


def malformed(message: str) -> NoReturn:
    """Raise Refused(MALFORMED) with the whole explanation."""
    raise Refused(Reason.MALFORMED, message)


def read_body(body: bytes) -> Pairs:
    """Return the top-level members of a request body.

    Raises Refused(MALFORMED) on what is not UTF-8, not JSON, not an object, too deep, or has a key twice.
    """
    if not body.isascii():
        # msgspec passes over strings that it need not build without looking at their encoding.
        try:
            body.decode()
        except UnicodeDecodeError as error:
            malformed(f"the request body is not UTF-8: {error.reason} (byte {error.start})")
    if len(body) <= _COMPACT_BYTES_MAX and not _has_blanks(body):
        try:
            pairs = _map.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            _explain(error, body, "the request body")
        # As in `_compact_bytes`: an object of just this length has lost no member.
        keys = 0
        for name in pairs:
            keys += len(name)
        if keys + len(b"".join(pairs.values())) + 4 * len(pairs) + 1 == len(body):
            return pairs
    return read_object(body, "the request body")


def read_long_body(body: bytes, name: str) -> tuple[Pairs, list[Pairs] | None]:
    """Return the members of a long body and those of each object in its array `name`, read in one pass.

    None in place of the latter where that cannot be done: they are then to be read as those of a short body are.
    Raises Refused(MALFORMED) as `read_body` does.
    """
    found = _cut_out(body, b'"' + name.encode() + b'":') if len(body) > _COMPACT_BYTES_MAX else None
    if found is None:
        return read_body(body), None
    array, maps, rest = found
    try:
        pairs = read_body(rest)
    except Refused:
        # It is refused once more, with its own words about its own bytes.
        return read_body(body), None
    # What was cut out is a whole value, so it was this member's if this one is empty now, and no other has the name.
    if bytes(pairs.get(name, NULL)) != b"[]" or not (body.isascii() or _is_utf8(body)):
        return read_body(body), None
    pairs[name] = msgspec.Raw(array)
    return pairs, maps


def _cut_out(body: bytes, key: bytes) -> tuple[memoryview, list[Pairs], bytes] | None:
    """Return an array of objects behind `key`, the members of each, and the body with an empty array in its place.

    None where there is none at first sight, or where its members may not be all that it says (see `_compact_bytes`).
    What decodes as an array is one to its end: any parser that comes to its beginning leaves it at the same byte.
    """
    begin = body.find(key + b"[{", 0, _PREFIX_BYTES_MAX) + len(key)
    if begin < len(key):
        return None
    # A guess: the last array, or the last before the tools, which end in two braces. A wrong one costs one pass.
    end = body.rfind(b"]", begin) + 1
    if body.endswith(b"}}]", begin, end):
        at = body.rfind(b'"tools":[', max(begin, end - _TOOLS_BYTES_MAX), end)
        end = body.rfind(b"]", begin, at) + 1 if at != -1 else end
    if not body.endswith(b"}]", begin, end):
        return None
    array = memoryview(body)[begin:end]
    try:
        maps = _maps.decode(array)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if len(array) != _compact_bytes(maps, len(array)):
        return None
    return array, maps, body[:begin] + b"[]" + body[end:]


def _has_blanks(data: bytes) -> bool:
    """Say whether JSON is written with blanks, by its beginning."""
    beginning = data[:_LOOK_BYTES]
    # A byte is found ten times as fast as a string.
    return _BLANK in beginning and b'": ' in beginning


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def are_texts(maps: list[Pairs], name: str) -> bool:
    """Say whether the member `name` of each object is a string, null or absent."""
    values = [members[name] for members in maps if name in members]
    return _TEXT_HEADS.issuperset(map(_head.unpack_from, values))


def has_member(maps: list[Pairs], name: str) -> bool:
    """Say whether one of the objects has the member `name`."""
    return any(name in members for members in maps)


def read_object(raw: RawJson, where: str, at: int = -1) -> Pairs:
    """Return the members of one object. `where` and the index `at` name it in messages. Raises Refused(MALFORMED)."""
    try:
        decoded = _object.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        _explain(error, raw, _place(where, at))
    pairs = {key.name: value for key, value in decoded.items()}
    if len(pairs) != len(decoded):
        _duplicate(decoded, _place(where, at))
    return pairs


def read_objects(raw: RawJson, where: str, at: int = -1) -> list[Pairs]:
    """Return the members of each object of an array. Raises Refused(MALFORMED), also where an item is no object."""
    data = bytes(raw)
    try:
        if not _has_blanks(data):
            maps = _maps.decode(data)
            if len(data) == _compact_bytes(maps, len(data)):
                return maps
        decoded = _objects.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        _explain(error, raw, _place(where, at))
    items: list[Pairs] = []
    for members in decoded:
        pairs = {key.name: value for key, value in members.items()}
        if len(pairs) != len(members):
            _duplicate(members, f"{_place(where, at)}[{len(items)}]")
        items.append(pairs)
    return items


def _compact_bytes(maps: list[Pairs], size: int) -> int:
    """Return the length of an array whose members, written without blanks or escapes in keys, are just these.

    `size` is the length that it really has. An array that has this one lost no member: blanks, escapes and lost
    duplicates can only make it longer. Two braces to an object, and to a member two quotes, a colon and a comma but
    for one.
    """
    if len(maps) == 1:
        (only,) = maps
        return len("".join(only)) + _bytes_of([*only.values()], size) + 4 * len(only) + 3
    members = sum(map(len, maps))
    keys = len("".join(chain.from_iterable(maps)))
    values = _bytes_of([*chain.from_iterable([each.values() for each in maps])], size)
    return keys + values + 4 * members + 2 * len(maps) + 1


def _bytes_of(raws: list[msgspec.Raw], size: int) -> int:
    """Return the length of all values together; `size` is about that. Long ones are not copied to be measured."""
    if size > _MEASURED_BYTES * len(raws):
        return sum([memoryview(raw).nbytes for raw in raws])
    return len(b"".join(raws))


def read_items(raw: RawJson, where: str) -> list[msgspec.Raw]:
    """Return the items of an array, raw. Raises Refused(MALFORMED)."""
    try:
        return _items.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        _explain(error, raw, where)


def _place(where: str, at: int) -> str:
    return where if at < 0 else f"{where}[{at}]"


def _explain(error: Exception, raw: RawJson, where: str) -> NoReturn:
    if isinstance(error, RecursionError):
        malformed(f"{where} is nested too deeply")
    if isinstance(error, UnicodeDecodeError):
        malformed(f"{where} is not UTF-8: {error.reason}")
    detail = str(error).removeprefix("JSON is malformed: ")
    if isinstance(error, msgspec.ValidationError):
        malformed(f"{where}: {detail[:1].lower()}{detail[1:]}")
    if bytes(raw).startswith(b"\xef\xbb\xbf"):
        malformed(f"{where} is not JSON: it begins with a byte order mark")
    if "truncated" in detail:
        detail = "it ends early"
        if _lone_surrogate.search(bytes(raw)):
            detail += ", or holds half of a surrogate pair"
    malformed(f"{where} is not JSON: {detail}")


def _duplicate(members: dict[Key, msgspec.Raw], where: str) -> NoReturn:
    seen: set[str] = set()
    for key in members:
        if key.name in seen:
            malformed(f"{where} has the key {key.name[:64]!r} more than once; which one counts differs between parsers")
        seen.add(key.name)
    raise AssertionError("no duplicate")


def member(pairs: Pairs, name: str) -> msgspec.Raw | None:
    """Return a member's raw value; None where it is absent or null."""
    raw = pairs.get(name)
    return None if raw is None or memoryview(raw) == NULL else raw


def text(pairs: Pairs, name: str, where: str = "the request body", at: int = -1) -> str | None:
    """Return a string member; None where absent or null. Raises Refused(MALFORMED) on another type."""
    raw = pairs.get(name)
    if raw is None:
        return None
    try:
        return _text.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        if bytes(raw) == NULL:
            return None
        malformed(f"{name!r} of {_place(where, at)} must be a string, not {shown(raw)}")


def integer(pairs: Pairs, name: str, *, least: int, most: int = INTEGER_MAX) -> int | None:
    """Return an integer member; None where absent or null. `10.0`, `true` and `"2"` are no integers here.

    Raises Refused(MALFORMED) on another type or a value outside `least` to `most`.
    """
    raw = pairs.get(name)
    if raw is None:
        return None
    try:
        number = _integer.decode(raw)
    except msgspec.MsgspecError:
        if bytes(raw) == NULL:
            return None
    else:
        if least <= number <= most:
            return number
    malformed(f"{name!r} must be an integer from {least} to {most}, not {shown(raw)}")


def flag(pairs: Pairs, name: str) -> bool | None:
    """Return a boolean member; None where absent or null. Raises Refused(MALFORMED) on another type."""
    raw = pairs.get(name)
    if raw is None:
        return None
    value = bytes(raw)
    if value == _TRUE:
        return True
    if value == _FALSE:
        return False
    if value == NULL:
        return None
    malformed(f"{name!r} must be true or false, not {shown(raw)}")


def shown(raw: msgspec.Raw) -> str:
    """Return the beginning of a raw value, for a message."""
    value = bytes(raw)
    return value[:40].decode("utf-8", "replace") + ("..." if len(value) > 40 else "")


_WHITESPACE: Final = frozenset(b" \t\r\n")
_BRACKET: Final = 0x5B
_COMMA: Final = 0x2C
_BRACE: Final = 0x7B
# More braces than this, and the second look that they would save costs less than they do.
_BRACES_MAX: Final = 24


def is_flat(array: msgspec.Raw) -> bool:
    """Say whether an array is certain to hold flat objects only: no array and no object as a member's value.

    False where that is not cheap to prove. A nested object follows a colon, an item of the array its bracket or a
    comma; braces inside strings can only make the answer False.
    """
    raw = bytes(array)
    if raw.rfind(_BRACKET) > 0:
        return False
    opens, braces = _BRACKET, 0
    at = raw.find(_BRACE)
    while at > 0:
        braces += 1
        before = at - 1
        while before > 0 and raw[before] in _WHITESPACE:
            before -= 1
        if braces > _BRACES_MAX or raw[before] != opens:
            return False
        opens = _COMMA
        at = raw.find(_BRACE, at + 1)
    return at < 0


_encoded: Final[dict[str, bytes]] = {}
_ENCODED_MAX: Final = 256


def write(pairs: Pairs, edits: dict[str, bytes]) -> bytes:
    """Encode members again, with `edits` (raw JSON by key) in the place of theirs, new ones behind them."""
    pieces: list[RawJson] = []
    separator = b"{"
    for name, raw in pairs.items():
        value: RawJson = edits.get(name)
        pieces += (separator, _key(name), raw if value is None else value)
        separator = b","
    for name, value in edits.items():
        if name not in pairs:
            pieces += (separator, _key(name), value)
            separator = b","
    pieces.append(b"{}" if separator == b"{" else b"}")
    return b"".join(pieces)


def _key(name: str) -> bytes:
    encoded = _encoded.get(name)
    if encoded is None:
        encoded = msgspec.json.encode(name) + b":"
        if len(_encoded) < _ENCODED_MAX and len(name) <= 64:
            _encoded[name] = encoded
    return encoded
