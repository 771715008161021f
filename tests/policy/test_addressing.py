"""Which upstream an address means where several names stand for one origin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshd.call import Direction
from meshd.cli.explain_request import read_request
from meshd.limits import Limits
from meshd.policy.addressing import AddressBook, Located
from meshd.policy.document import load

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENT = """
agent: a
upstreams:
  wide: {url: "http://llm.test:8000", kind: host}
  uncounted: {url: "http://llm.test:8000", kind: llm, unmetered: true}
  second: {url: "http://llm.test:8000/v2", kind: llm, dialect: openai}
  first: {url: "http://llm.test:8000/v1", kind: llm, dialect: openai}
  again: {url: "http://llm.test:8000/v1", kind: llm, dialect: openai}
  beside: {url: "http://other.test:8000/v1", kind: tool}
"""


def book_of(tmp_path: Path) -> AddressBook:
    path = tmp_path / "policy.yaml"
    path.write_text(DOCUMENT)
    return AddressBook(load([path]))


@pytest.mark.parametrize(
    ("target", "name", "path"),
    [
        ("http://llm.test:8000/v1/chat/completions", "first", "/v1/chat/completions"),
        ("http://llm.test:8000/v2/models?x=1", "second", "/v2/models?x=1"),
        ("http://llm.test:8000/v1", "first", "/v1/"),
        ("http://llm.test:8000/v1?x=1", "first", "/v1/?x=1"),
        ("http://llm.test:8000/v11/chat", "wide", "/v11/chat"),
        ("http://LLM.test:8000/", "wide", "/"),
        ("http://other.test:8000/v1/x", "beside", "/v1/x"),
    ],
)
def test_an_absolute_address_means_the_metered_name_first_then_the_documents_order(
    tmp_path: Path, target: str, name: str, path: str
) -> None:
    located = locate(book_of(tmp_path), target)
    assert (located.name, located.path) == (name, path)
    assert located.upstream is not None


@pytest.mark.parametrize(
    "target", ["http://other.test:8000/v2", "http://other.test:8001/v1", "https://llm.test:8000/v1", "http://x.test/"]
)
def test_an_address_below_no_base_path_and_of_no_origin_is_nobodys(tmp_path: Path, target: str) -> None:
    assert locate(book_of(tmp_path), target).upstream is None


def test_a_tunnel_to_an_origin_with_a_meter_is_a_tunnel_to_what_is_metered(tmp_path: Path) -> None:
    upstream = book_of(tmp_path).locate_tunnel("llm.test:8000").upstream
    assert upstream is not None
    assert (upstream.name, upstream.is_unmetered) == ("second", False)


def locate(book: AddressBook, target: str) -> Located:
    asked = read_request(f"GET {target} HTTP/1.1\nhost: 127.0.0.1\n\n".encode(), Limits())
    assert asked.request is not None
    return book.locate(asked.request, Direction.OUTBOUND)
