"""Pins: what was seen first is what is offered; nothing that a server does moves a pin."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.discovery import pins
from meshd.discovery.entry import Entry, Origin, Sort
from meshd.discovery.pins import Pin, PinsDamaged, Why, approve, decode, encode, judge


def tool(name: str, description: str = "") -> Entry:
    return Entry(Sort.TOOL, "files", name, description, origin=Origin.MCP)


def why(judged: Any) -> list[tuple[str, Why]]:
    return [(entry.name, reason) for entry, reason in judged.quarantined]


def test_what_is_new_is_pinned_and_offered() -> None:
    judged = judge([tool("a"), tool("b")], (), {}, 7.0)
    assert [one.name for one in judged.offered] == ["a", "b"]
    assert judged.pins["mcp/tool/a"] == Pin(tool("a").digest(), False, 7)


def test_what_is_flawed_is_held_until_exactly_that_is_approved() -> None:
    entry = tool("a", "<IMPORTANT>")
    judged = judge([entry], {entry.key}, {}, 0)
    assert why(judged) == [("a", Why.FLAWED)]
    kept = approve(judged.pins, [entry], 0)
    assert judge([entry], {entry.key}, kept, 0).offered == (entry,)
    other = tool("a", "<IMPORTANT> more")
    assert why(judge([other], {other.key}, kept, 0)) == [("a", Why.CHANGED)]


def test_an_agent_beside_the_sidecar_may_change_what_it_says() -> None:
    before = judge([tool("a")], (), {}, 0).pins
    after = judge([tool("a", "anew")], (), before, 0, is_own=True)
    assert [one.description for one in after.offered] == ["anew"]


def test_no_flood_of_names_pushes_a_pin_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "PINS_MAX", 10)
    first = judge([tool("a")], (), {}, 0).pins
    flooded = judge([tool(f"x{number}") for number in range(50)], (), first, 0)
    assert len(flooded.pins) == 10
    assert [reason for _, reason in flooded.quarantined] == [Why.FULL] * 41
    assert why(judge([tool("a", "changed")], (), flooded.pins, 0)) == [("a", Why.CHANGED)]
    kept = approve(flooded.pins, [tool("x49")], 0)
    assert len(kept) == 10
    assert "mcp/tool/x49" in kept


def test_the_address_of_a_resource_is_pinned_as_a_hash() -> None:
    long = Entry(Sort.RESOURCE, "files", "file:///" + "x" * 1000, origin=Origin.MCP)
    (name,) = judge([long], (), {}, 0).pins
    assert len(name) < 100
    assert name == pins.name_of(long)


ENTRIES = st.lists(st.builds(tool, st.sampled_from("abc"), st.sampled_from(["", "x", "y"])), max_size=3)


@given(st.lists(ENTRIES, max_size=8))
def test_whatever_a_server_says_it_offers_what_it_said_first(looks: list[list[Entry]]) -> None:
    kept: dict[str, Pin] = {}
    first: dict[str, str] = {}
    for entries in looks:
        entries = list({entry.key: entry for entry in entries}.values())
        judged = judge(entries, (), kept, 0)
        kept = decode(encode(judged.pins))
        for entry in entries:
            first.setdefault(entry.name, entry.description)
        assert all(first[entry.name] == entry.description for entry in judged.offered)
        assert {entry.name for entry, _ in judged.quarantined} == {
            entry.name for entry in entries if first[entry.name] != entry.description
        }


@pytest.mark.parametrize(
    "value", [b"", b"{}", b"[]", b'{"format": 2, "pins": {}}', b'{"format": 1, "pins": 7}', b"\xff"]
)
def test_a_damaged_record_is_said_to_be_one(value: bytes) -> None:
    with pytest.raises(PinsDamaged):
        decode(value)
