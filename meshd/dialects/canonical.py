"""One spelling for equal JSON (RFC 8785), so that a person's consent and a repeated call are known by their bytes.

Members are sorted by the UTF-16 units of their names, nothing stands between tokens, strings have the least escapes
and fractions are written as ECMAScript writes them. In one thing this departs from the RFC, which rounds every number
to a double: a whole number keeps all of its digits, and a double beyond 2**53 its exponent, so that the two never meet.
A transfer of 9007199254740993 is not one of 9007199254740992.
"""

from __future__ import annotations

import json
import re
from json.encoder import encode_basestring
from typing import Any, Final, NoReturn

import msgspec

from meshd.dialects.json_pairs import malformed

DEPTH_MAX: Final = 128
"""Objects and arrays within one another. Parsers differ in what they bear; no tool's arguments come near."""
DIGITS_MAX: Final = 309
"""Of a whole number: more, and it is beyond what a double can hold."""

_FIXED_FROM: Final = 1e-6
_FIXED_BELOW: Final = 2.0**53
"""Doubles from the one to below the other are written without an exponent."""


class _Fraction(Exception):
    """The value holds a number with a fraction or an exponent: it has more spellings than one."""


def _fraction(text: str) -> NoReturn:
    raise _Fraction


_LONG: Final = re.compile(rb"[0-9]{%d}" % (DIGITS_MAX + 1))

_quick: Final = msgspec.json.Decoder(float_hook=_fraction)


def canonical(raw: bytes, where: str) -> bytes:
    """Return a JSON value in its one spelling. `where` names it in messages.

    Raises Refused(MALFORMED) on what is no JSON, has a key twice at any level, is too deep, or holds a number that no
    double can hold.
    """
    if raw.isascii():
        # Most clients write without blanks and escapes. What comes out as it went in has lost no member, and only the
        # order of its members is left to be settled: ten times as fast for arguments of 2 kB.
        try:
            value = _quick.decode(raw)
            is_plain = msgspec.json.encode(value) == raw and _LONG.search(raw) is None
            if is_plain and _depth_of(raw) <= DEPTH_MAX:
                return msgspec.json.encode(value, order="sorted")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, _Fraction, ValueError):
            pass
    out: list[str] = []
    try:
        _write(_decode(raw, where), out, 0, where)
        return "".join(out).encode()
    except UnicodeEncodeError:
        malformed(f"{where} holds half of a surrogate pair")
    except RecursionError:
        malformed(f"{where} is nested too deeply")


def _depth_of(raw: bytes) -> int:
    """Return a bound of how deep a value is: no more than brackets that open in it."""
    return raw.count(b"{") + raw.count(b"[")


def _decode(raw: bytes, where: str) -> Any:
    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(members)
        if len(found) != len(members):
            seen: set[str] = set()
            for name, _ in members:
                if name in seen:
                    malformed(
                        f"{where} has the key {name[:64]!r} more than once; which one counts differs between parsers"
                    )
                seen.add(name)
        return found

    def constant(text: str) -> NoReturn:
        malformed(f"{where} is not JSON: {text} is no number")

    try:
        return json.loads(raw.decode(), object_pairs_hook=pairs, parse_constant=constant, parse_int=_integer_in(where))
    except UnicodeDecodeError as error:
        malformed(f"{where} is not UTF-8: {error.reason}")
    except RecursionError:
        malformed(f"{where} is nested too deeply")
    except json.JSONDecodeError as error:
        malformed(f"{where} is not JSON: {error.msg} (character {error.pos})")


def _integer_in(where: str) -> Any:
    def integer(text: str) -> int:
        if len(text) > DIGITS_MAX + 1:
            malformed(f"{where} holds a number of {len(text)} digits: no parser would read it as all others do")
        return int(text)

    return integer


def _write(value: Any, out: list[str], depth: int, where: str) -> None:
    kind = type(value)
    if kind is str:
        out.append(encode_basestring(value))
    elif kind is dict:
        _deeper(depth, where)
        separator = "{"
        for name in sorted(value, key=_units):
            out += (separator, encode_basestring(name), ":")
            _write(value[name], out, depth + 1, where)
            separator = ","
        out.append("{}" if separator == "{" else "}")
    elif kind is list:
        _deeper(depth, where)
        separator = "["
        for item in value:
            out.append(separator)
            _write(item, out, depth + 1, where)
            separator = ","
        out.append("[]" if separator == "[" else "]")
    elif value is None:
        out.append("null")
    elif kind is bool:
        out.append("true" if value else "false")
    elif kind is int:
        out.append(str(value))
    else:
        out.append(_number(value, where))


def _deeper(depth: int, where: str) -> None:
    if depth >= DEPTH_MAX:
        malformed(f"{where} is nested more than {DEPTH_MAX} deep")


def _units(name: str) -> bytes:
    return name.encode("utf-16-be", "surrogatepass")


def _number(value: float, where: str) -> str:
    """Return a double as ECMAScript writes it (ECMA-262, Number::toString)."""
    if value - value != 0.0:
        malformed(f"{where} holds a number that is beyond what a double can hold")
    if value == 0.0:
        return "0"
    text = repr(value)
    sign = "-" if text[0] == "-" else ""
    mantissa, _, exponent_text = text.lstrip("-").partition("e")
    whole, _, fraction = mantissa.partition(".")
    if fraction == "0":
        fraction = ""
    digits = (whole + fraction).lstrip("0")
    # Where the point stands, counted from the first digit that is not 0.
    point = len(whole.lstrip("0")) if whole.strip("0") else len(digits) - len(fraction)
    point += int(exponent_text or "0")
    digits = digits.rstrip("0")
    size = abs(value)
    if size >= _FIXED_BELOW or size < _FIXED_FROM:
        tail = f".{digits[1:]}" if len(digits) > 1 else ""
        return f"{sign}{digits[0]}{tail}e{'+' if point > 0 else '-'}{abs(point - 1)}"
    if point >= len(digits):
        return sign + digits + "0" * (point - len(digits))
    if point > 0:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    return f"{sign}0.{'0' * -point}{digits}"
