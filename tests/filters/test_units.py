"""Amounts with units are read exactly or refused."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from meshd.filters.units import COUNT_MAX, DURATION_S_MAX, Count, Duration, Size


class Amounts(BaseModel):
    duration: Duration = 0.0
    size: Size = 0
    count: Count = 0


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("30s", 30.0),
        ("5m", 300.0),
        ("250ms", 0.25),
        ("1h30m", 5400.0),
        ("1.5s", 1.5),
        ("2d", 172800.0),
        (7, 7.0),
        (0.5, 0.5),
    ],
)
def test_duration(written: object, expected: float) -> None:
    assert Amounts.model_validate({"duration": written}).duration == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [("8MB", 8_000_000), ("64KiB", 65536), ("1.5kB", 1500), ("0B", 0), ("2 GiB", 2**31), (12, 12)],
)
def test_size(written: object, expected: int) -> None:
    assert Amounts.model_validate({"size": written}).size == expected


@pytest.mark.parametrize(
    ("written", "expected"), [("50k", 50_000), ("50K", 50_000), ("1M", 10**6), ("1.5k", 1500), ("200", 200), (3, 3)]
)
def test_count(written: object, expected: int) -> None:
    assert Amounts.model_validate({"count": written}).count == expected


NONSENSE: dict[str, list[Any]] = {
    "duration": [
        -1,
        "-1s",
        "30",
        "5 m",
        "s",
        "",
        "1w",
        "1h-1m",
        True,
        None,
        [],
        {},
        float("nan"),
        float("inf"),
        "11000d",
        "1s\n",
        "١s",
    ],
    "size": [-1, 1.0, "8", "8M", "0.5B", "1e3B", True, None, [], {}, "9999999GiB", "1B\n"],
    "count": [-1, 1.5, 1.0, "1.23456k", "1m", "k", "", "1e3", True, None, [], {}, 10**30, "9" * 19, "1k\n"],
}


@pytest.mark.parametrize(
    ("field", "written"), [(field, value) for field, values in NONSENSE.items() for value in values]
)
def test_nonsense_is_refused_with_an_example(field: str, written: object) -> None:
    with pytest.raises(ValidationError) as caught:
        Amounts.model_validate({field: written})
    (error,) = caught.value.errors()
    assert error["loc"] == (field,)
    assert re.search(r"expected a|must be from 0|not a whole number", error["msg"])


@given(st.sampled_from(["duration", "size", "count"]), st.text() | st.integers() | st.floats() | st.booleans())
def test_anything_is_an_amount_in_range_or_refused(field: str, written: object) -> None:
    try:
        amounts = Amounts.model_validate({field: written})
    except ValidationError:
        return
    assert 0 <= amounts.duration <= DURATION_S_MAX
    assert 0 <= amounts.count <= COUNT_MAX


@given(st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,3})?(ms|s|m|h|B|kB|KiB|MB|k|M)?", fullmatch=True))
def test_the_schema_refuses_no_amount_that_loads(written: str) -> None:
    schema = Amounts.model_json_schema()
    for field in ("duration", "size", "count"):
        try:
            Amounts.model_validate({field: written})
        except ValidationError:
            continue
        jsonschema.validate(json.loads(json.dumps({field: written})), schema)
