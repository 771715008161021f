"""What an agent copies from the request that it answers."""

from __future__ import annotations

from meshd_sdk import carried


def test_the_four_fields_are_carried_from_a_mapping_or_pairs() -> None:
    fields = {"X-Meshd-Context": "t", "traceparent": "p", "Tracestate": "s", "baggage": "b", "authorization": "no"}
    expected = {"x-meshd-context": "t", "traceparent": "p", "tracestate": "s", "baggage": "b"}
    assert carried(fields) == expected
    assert carried(fields.items()) == expected
    assert carried({}) == {}


def test_a_field_that_came_twice_is_not_carried() -> None:
    assert carried([("x-meshd-context", "one"), ("X-MESHD-CONTEXT", "two"), ("baggage", "b")]) == {"baggage": "b"}
