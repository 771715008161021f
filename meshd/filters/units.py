"""Amounts with units, as they stand in a policy document.

`Duration` is float seconds ("250ms", "30s", "5m", "1h30m", 30), `Size` is int bytes ("8MB", "64KiB", 65536),
`Count` is an int ("50k", "1M", "1.5k", 50000) and `Money` an int of micro-dollars ("5", "$5.00", 0.25). A number is
read exactly or refused: "0.5B", "1.23456k" or "$0.0000001" never rounds. `k`, `M` and `G` are decimal, `Ki`, `Mi` and
`Gi` binary, as the SI and IEC 60027-2 have them.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

DURATION_S_MAX = 10 * 366 * 86_400.0
COUNT_MAX = 10**15
SIZE_BYTES_MAX = 2**50
MONEY_MICRODOLLARS_MAX = 10**14
"""A hundred million dollars: what an account can hold and a record of the journal can say many times over."""
MICRO = 1_000_000
RATE_PICODOLLARS_MAX = 100_000 * MICRO

_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86_400)}
_COUNTS = {"": 1, "k": 1_000, "K": 1_000, "M": 10**6, "G": 10**9}
_BYTES = {
    "B": 1,
    "kB": 1_000,
    "KB": 1_000,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
# At most 18 digits a number: nobody means more, and conversion time stays bounded.
_NUMBER = r"[0-9]{1,18}(?:\.[0-9]{1,9})?"
DURATION_PATTERN = rf"^(?:{_NUMBER}(?:ms|s|m|h|d))+$"
SIZE_PATTERN = rf"^{_NUMBER} ?(?:B|kB|KB|MB|GB|KiB|MiB|GiB)$"
COUNT_PATTERN = rf"^{_NUMBER}[kKMG]?$"
MONEY_PATTERN = r"^\$?[0-9]{1,9}(?:\.[0-9]{1,6})?$"

# `\Z` in place of `$`: Python's `$` also matches before a final line feed, JSON Schema's does not.
_DURATION = re.compile(DURATION_PATTERN[:-1] + r"\Z")
_DURATION_PART = re.compile(rf"({_NUMBER})(ms|s|m|h|d)")
_SIZE = re.compile(rf"({_NUMBER}) ?(B|kB|KB|MB|GB|KiB|MiB|GiB)\Z")
_COUNT = re.compile(rf"({_NUMBER})([kKMG]?)\Z")
_MONEY = re.compile(MONEY_PATTERN[:-1] + r"\Z")


def seconds(value: Any) -> float:
    """Return the seconds of a duration: a text with units, largest first or not, or a number of seconds.

    Raises ValueError on anything else, on a negative one and on one over ten years.
    """
    expected = 'expected a duration such as "250ms", "30s", "5m" or "1h30m"'
    if isinstance(value, str):
        if _DURATION.match(value) is None:
            raise ValueError(f"{expected}, not {_quoted(value)}")
        result = float(sum(Decimal(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(value)))
    elif type(value) in (int, float):
        if not 0 <= value <= DURATION_S_MAX:
            raise ValueError(f"a duration must be from 0 to ten years, not {value}")
        result = float(value)
    else:
        raise ValueError(f"{expected}, not {_kind(value)}")
    if not math.isfinite(result) or result > DURATION_S_MAX:
        raise ValueError(f"a duration must be from 0 to ten years, not {_quoted(str(value))}")
    return result


def size_bytes(value: Any) -> int:
    """Return the bytes of a size: a text with a unit, or a whole number of bytes. Raises ValueError otherwise."""
    expected = 'expected a size such as "64KiB", "8MB" or a number of bytes'
    if isinstance(value, str):
        match = _SIZE.match(value)
        if match is None:
            raise ValueError(f"{expected}, not {_quoted(value)}")
        return _whole(Decimal(match[1]) * _BYTES[match[2]], value, SIZE_BYTES_MAX)
    return _number(value, expected, SIZE_BYTES_MAX)


def count(value: Any) -> int:
    """Return the whole number that "50k", "1M" or 50000 stands for. Raises ValueError otherwise."""
    expected = 'expected a count such as 50000, "50k" or "1M"'
    if isinstance(value, str):
        match = _COUNT.match(value)
        if match is None:
            raise ValueError(f"{expected}, not {_quoted(value)}")
        return _whole(Decimal(match[1]) * _COUNTS[match[2]], value, COUNT_MAX)
    return _number(value, expected, COUNT_MAX)


def microdollars(value: Any) -> int:
    """Return the micro-dollars of an amount: "5", "$5.00", 5 or 0.25. Raises ValueError otherwise, or if it rounds."""
    return _millionths(value, 'expected an amount of US dollars such as 5, "5.00" or "$0.25"', MONEY_MICRODOLLARS_MAX)


def rate(value: Any) -> int:
    """Return pico-dollars a token for US dollars a million tokens, 0.15 or "0.15". Raises ValueError otherwise."""
    return _millionths(value, "expected US dollars for a million tokens such as 0.15", RATE_PICODOLLARS_MAX)


def times(value: Any) -> int:
    """Return the thousandths of a factor from 1 to 100 such as 2 or 1.75. Raises ValueError otherwise."""
    number = Decimal(repr(value)) * 1000 if type(value) in (int, float) and math.isfinite(value) else Decimal(0)
    if not 1000 <= number <= 100_000 or number != number.to_integral_value():
        raise ValueError(f"expected a factor from 1 to 100, with three decimals at most, such as 1.75, not {value}")
    return int(number)


def _millionths(value: Any, expected: str, most: int) -> int:
    if isinstance(value, str):
        if _MONEY.match(value) is None:
            raise ValueError(f"{expected}, with six decimals at most, not {_quoted(value)}")
        number = Decimal(value.removeprefix("$"))
    elif type(value) in (int, float) and math.isfinite(value):
        # A float's shortest spelling is what was written: 0.1 is a tenth.
        number = Decimal(repr(value))
    else:
        raise ValueError(f"{expected}, not {_kind(value)}")
    number *= MICRO
    if not 0 <= number <= most:
        raise ValueError(f"must be from $0 to ${most // MICRO}, not {_quoted(str(value))}")
    if number != number.to_integral_value():
        raise ValueError(f"{_quoted(str(value))} has more than six decimals")
    return int(number)


def dollars(amount: int) -> str:
    """Return micro-dollars as people write them: `$5.00`, `$0.000125`."""
    whole, rest = divmod(abs(amount), MICRO)
    digits = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if amount < 0 else ''}${whole:,}.{digits}"


def _number(value: Any, expected: str, most: int) -> int:
    if type(value) is not int:
        raise ValueError(f"{expected}, not {_kind(value)}")
    return _whole(Decimal(value), value, most)


def _whole(number: Decimal, written: Any, most: int) -> int:
    if number != number.to_integral_value():
        raise ValueError(f"{_quoted(str(written))} is not a whole number")
    if not 0 <= number <= most:
        raise ValueError(f"must be from 0 to {most}, not {_quoted(str(written))}")
    return int(number)


def _quoted(text: str) -> str:
    return f'"{text}"' if len(text) <= 40 else f'"{text[:40]}..."'


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(value)
    return "a list" if isinstance(value, (list, tuple)) else "a map"


def _schema(pattern: str, number: str, most: float) -> dict[str, Any]:
    return {"anyOf": [{"type": number, "minimum": 0, "maximum": most}, {"type": "string", "pattern": pattern}]}


Duration = Annotated[
    float, BeforeValidator(seconds), WithJsonSchema(_schema(DURATION_PATTERN, "number", DURATION_S_MAX))
]
"""Seconds, as a float."""
Size = Annotated[int, BeforeValidator(size_bytes), WithJsonSchema(_schema(SIZE_PATTERN, "integer", SIZE_BYTES_MAX))]
"""Bytes."""
Count = Annotated[int, BeforeValidator(count), WithJsonSchema(_schema(COUNT_PATTERN, "integer", COUNT_MAX))]
"""A whole number."""
Money = Annotated[
    int,
    BeforeValidator(microdollars),
    WithJsonSchema(_schema(MONEY_PATTERN, "number", MONEY_MICRODOLLARS_MAX // MICRO)),
]
"""Micro-dollars."""
Rate = Annotated[
    int, BeforeValidator(rate), WithJsonSchema(_schema(MONEY_PATTERN, "number", RATE_PICODOLLARS_MAX // MICRO))
]
"""Pico-dollars a token."""
Times = Annotated[int, BeforeValidator(times), WithJsonSchema({"type": "number", "minimum": 1, "maximum": 100})]
"""Thousandths."""
