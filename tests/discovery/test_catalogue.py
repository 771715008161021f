"""The catalogue: filled owner by owner, and no owner can touch another's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.discovery.catalogue import Catalogue
from meshd.discovery.entry import Entry, Origin, Sort


def tool(owner: str, name: str, description: str = "", origin: Origin = Origin.MCP) -> Entry:
    return Entry(Sort.TOOL, owner, name, description, origin=origin)


def test_what_is_handed_in_takes_the_place_of_what_was_known():
    catalogue = Catalogue()
    catalogue.replace("files", Origin.MCP, [tool("files", "read"), tool("files", "write")])
    catalogue.replace("web", Origin.MCP, [tool("web", "read")])
    catalogue.replace("files", Origin.MCP, [tool("files", "read", "anew")])
    assert [(one.owner, one.name, one.description) for one in catalogue] == [
        ("files", "read", "anew"), ("web", "read", ""),
    ]  # fmt: skip
    assert catalogue.get(Sort.TOOL, "files", "write") is None
    assert catalogue.owners() == ["files", "web"]


def test_nobody_registers_under_the_name_of_another():
    catalogue = Catalogue()
    with pytest.raises(ValueError, match="is of web"):
        catalogue.replace("files", Origin.MCP, [tool("web", "read")])
    assert len(catalogue) == 0


def test_of_two_of_one_name_the_first_stands():
    catalogue = Catalogue()
    catalogue.replace("files", Origin.MCP, [tool("files", "read", "first"), tool("files", "read", "second")])
    assert [one.description for one in catalogue.of("files")] == ["first"]
    catalogue.replace("files", Origin.POLICY, [tool("files", "read", "the operator's", Origin.POLICY)])
    assert [one.description for one in catalogue] == ["first"]
    catalogue.drop("files", Origin.MCP)
    assert [one.description for one in catalogue] == ["the operator's"]


def test_who_listens_hears_of_changes_alone():
    catalogue, heard = Catalogue(), []
    end = catalogue.listen(heard.append)
    catalogue.replace("files", Origin.MCP, [tool("files", "read")])
    before = catalogue.generation
    catalogue.replace("files", Origin.MCP, [tool("files", "read")])
    assert heard == ["files"]
    assert catalogue.generation == before
    end()
    catalogue.drop("files", Origin.MCP)
    assert heard == ["files"]
    assert catalogue.generation > before


TEXTS = st.text(max_size=8)


@given(TEXTS, TEXTS, TEXTS, TEXTS)
def test_no_text_moves_between_fields_under_one_digest(name: str, title: str, description: str, intent: str):
    one = Entry(Sort.TOOL, "files", name, description, title, intents=(intent,) if intent else ())
    for other in (
        one._replace(name=name + "x"),
        one._replace(title=title + name, name=""),
        one._replace(description=description + "\0", title=title[1:]),
        one._replace(input_schema=one.output_schema + b"{}"),
    ):
        is_same = other._replace(sort=one.sort) == one
        assert (other.digest() == one.digest()) is is_same
