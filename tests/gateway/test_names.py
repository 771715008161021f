"""What things are called behind the gateway."""

from __future__ import annotations

import re

import pytest

from meshd.discovery.entry import Entry, Origin, Sort
from meshd.gateway.messages import event_of, field_value, with_server
from meshd.gateway.names import NAME_CHARACTERS_MAX, Names, spaced


@pytest.mark.parametrize("name", ["a", "with.dots", "ü" * 70, "x" * 64, "x" * 63 + "y", "a b", "a/b", ""])
def test_every_name_is_one_that_models_take(name: str) -> None:
    found = spaced("docs__", name)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", found)
    assert found.startswith("docs__")


def test_what_a_server_keeps_apart_stays_apart() -> None:
    names = ["a.b", "a_b", "a b", "a/b", *("x" * 100 + str(i) for i in range(10))]
    assert len({spaced("docs__", name) for name in names}) == len(names)
    assert spaced("docs__", "a_b") == "docs__a_b"
    assert len(spaced("docs__", "x" * 200)) == NAME_CHARACTERS_MAX


def test_names_that_are_near() -> None:
    known = [f"docs__tool_{i}" for i in range(100_000)]
    assert Names.near("docs__tol_1", known)[0] == "docs__tool_1"
    assert Names.near("other__tool_7", known) == ["docs__tool_7"]
    assert Names.near("zzzzzz", known) == []
    assert Names.near("", known) == []


def test_of_two_without_prefixes_the_first_has_the_name() -> None:
    from meshd.policy.gateway import gateway_upstream
    from meshd.policy.upstreams import agent_upstream

    servers = {name: agent_upstream(name, "http://127.0.0.1:1") for name in ("one", "two")}
    entries = [Entry(Sort.TOOL, name, "same", origin=Origin.MCP) for name in ("two", "one")]
    names = Names(servers, entries)
    assert names.tools["same"].server == "one"
    assert [(one.server, one.taken_by) for one in names.refused] == [("two", "one")]
    assert gateway_upstream(servers) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("plain", b"plain"),
        ("a b", b"a b"),
        (" a", b"=?base64?IGE=?="),
        ("ü", b"=?base64?w7w=?="),
        ("=?base64?x?=", b"=?base64?PT9iYXNlNjQ/eD89?="),
        ("a\nb", b"=?base64?YQpi?="),
    ],
)
def test_names_in_header_fields(name: str, value: bytes) -> None:
    assert field_value(name) == value


@pytest.mark.parametrize(
    ("event", "made"),
    [
        (b"id: 7\ndata: x\n\n", b"id: docs!7\ndata: x\n\n"),
        (b"data: x\r\nid:7\r\n\r\n", b"data: x\r\nid: docs!7\r\n\r\n"),
        (b"data: id: 7\n\n", b"data: id: 7\n\n"),
        (b'data: {"id":7}\n\n', b'data: {"id":7}\n\n'),
    ],
)
def test_event_ids_say_whose_they_are(event: bytes, made: bytes) -> None:
    assert with_server(event, "docs") == made
    assert event_of(b"docs!7!8") == ("docs", b"7!8")
    assert event_of(b"7") == ("", b"")
