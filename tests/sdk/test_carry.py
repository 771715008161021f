"""What an agent copies from the request that it answers."""

from __future__ import annotations

from typing import Any

import pytest

from meshd.filters.delegation import TOKENS_MAX
from meshd_sdk import carried, delegating
from meshd_sdk.context import HEADER_DELEGATE


def test_the_four_fields_are_carried_from_a_mapping_or_pairs() -> None:
    fields = {"X-Meshd-Context": "t", "traceparent": "p", "Tracestate": "s", "baggage": "b", "authorization": "no"}
    expected = {"x-meshd-context": "t", "traceparent": "p", "tracestate": "s", "baggage": "b"}
    assert carried(fields) == expected
    assert carried(fields.items()) == expected
    assert carried({}) == {}


def test_a_field_that_came_twice_is_not_carried() -> None:
    assert carried([("x-meshd-context", "one"), ("X-MESHD-CONTEXT", "two"), ("baggage", "b")]) == {"baggage": "b"}


def test_a_part_is_named_in_the_field_that_meshd_reads() -> None:
    assert delegating(5000) == {HEADER_DELEGATE.decode(): "5000"}
    assert delegating(TOKENS_MAX - 1) == {HEADER_DELEGATE.decode(): "9" * 15}, "the most that meshd takes"


@pytest.mark.parametrize("tokens", [0, -1, 10**15, True, 1.5, "5000", None])
def test_what_is_no_number_of_tokens_is_not_sent(tokens: Any) -> None:
    with pytest.raises(ValueError, match="a number of tokens"):
        delegating(tokens)
