"""Which server a URI is of, and what its resources are called behind the gateway."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AnyUrl

from meshd.discovery.entry import Entry, Origin, Sort
from meshd.gateway.links import linked
from meshd.gateway.uris import COMPARED_MAX, Uris, marks_of, template


@pytest.mark.parametrize(
    ("pattern", "uri", "is_fit"),
    [
        ("a://{x}", "a://1", True),
        ("a://{x}", "a://1/2", False),
        ("a://{x}", "b://1", False),
        ("a://{x}/end", "a://1/end", True),
        ("a://{x}/end", "a://1/2/end", False),
        ("a://{+x}/end", "a://1/2/end", True),
        ("a://{x*}", "a://1/2", True),
        ("a://{x}/{y}", "a://1/2", True),
        ("a://{x}/{y}", "a://1", False),
        ("{x}", "", True),
        ("a{x}a", "a", False),
    ],
)
def test_templates(pattern: str, uri: str, is_fit: bool) -> None:
    made = template(pattern)
    assert made is not None
    assert made.fits(uri) is is_fit


def test_no_template_takes_long() -> None:
    made = template("a" + "{x}" * 200 + "{+y}a" * 200 + "b")
    assert made is not None
    begun_s = time.process_time()
    made.fits("a" * 4096)
    assert time.process_time() - begun_s < 1.0
    assert template("no://expression") is None


def uris(**servers: list[str]) -> Uris:
    made = Uris(servers)
    for server, names in servers.items():
        made.take(server, [Entry(Sort.RESOURCE, server, name, origin=Origin.MCP) for name in names])
    return made


def shown(made: Uris) -> dict[str, tuple[str, str]]:
    return {name: (place.server, place.name) for name, place in (made.listed | made.templates).items()}


def test_what_nobody_else_has_keeps_its_name() -> None:
    found = shown(uris(docs=["note://today", "docs://{page}"], mail=["mail://1", "mail://{id}", "urn:x:1"]))
    assert found == {
        "note://today": ("docs", "note://today"),
        "docs://{page}": ("docs", "docs://{page}"),
        "mail://1": ("mail", "mail://1"),
        "mail://{id}": ("mail", "mail://{id}"),
        "urn:x:1": ("mail", "urn:x:1"),
    }


@pytest.mark.parametrize(
    ("first", "second", "is_marked"),
    [
        ("note://1", "note://1", True),
        ("note://{id}", "note://1", True),
        ("note://1", "note://{id}", True),
        ("note://{id}", "note://{name}", True),
        ("note://{id}", "note://{id}/{part}", False),
        ("note://{+id}", "note://{id}/{part}", True),
        ("note://a/{id}", "note://b/{id}", False),
        ("note://{id}/a", "note://{id}/b", False),
        ("note://{id}.md", "note://x{id}.md", True),
        ("note://1", "mail+note://1", True),
    ],
)
def test_what_an_earlier_server_may_have_too_is_marked(first: str, second: str, is_marked: bool) -> None:
    made = uris(docs=[first], mail=[second])
    name = f"mail+{second}" if is_marked else second
    assert shown(made) == {first: ("docs", first), name: ("mail", second)}


def test_one_server_alone_marks_nothing() -> None:
    made = uris(docs=["docs+note://1", "note://{+x}", *(f"n://{{x}}/{number}" for number in range(COMPARED_MAX * 2))])
    assert all(name == place[1] for name, place in shown(made).items())
    assert made.known_as("docs", "other://1") == "other://1"
    assert made.find("mail+x://1") is None


def test_a_mark_always_means_its_server() -> None:
    made = uris(docs=["note://1"], mail=["note://1"], web=["mail+note://1"])
    assert shown(made)["web+mail+note://1"] == ("web", "mail+note://1")
    for uri, server, own in (
        ("mail+note://1", "mail", "note://1"),
        ("docs+note://1", "docs", "note://1"),
        ("web+mail+note://1", "web", "mail+note://1"),
        ("mail+never://listed", "mail", "never://listed"),
    ):
        place = made.find(uri)
        assert place is not None
        assert (place.server, place.name) == (server, own)
    assert made.find("nobody+note://1") is None
    assert made.find("mail+") is None


def test_marks_are_beginnings_of_schemes_and_differ() -> None:
    marks = marks_of(["a_b", "a-b", "1st", "x1st", ".b"])
    assert len(set(marks.values())) == 5
    for mark in marks.values():
        assert str(AnyUrl(f"{mark}note://today/1")) == f"{mark}note://today/1"


NAMES = st.sampled_from(
    [
        "".join(parts)
        for parts in itertools.product(
            ("n://", "m://", "a+n://", "b+n://", "a+b+n://", "urn:"), ("1", "{x}", "{+x}", "1/{x}", "{x}/1"), ("", "/2")
        )
    ]
)


@given(st.lists(NAMES, max_size=6), st.lists(NAMES, max_size=6), st.lists(NAMES, max_size=6))
def test_all_of_all_servers_is_there_once_and_leads_back(a: list[str], b: list[str], c: list[str]) -> None:
    made = uris(a=a, b=b, c=c)
    assert sorted(shown(made).values()) == sorted(
        {("a", one) for one in a} | {("b", one) for one in b} | {("c", one) for one in c}
    )
    for name, (server, own) in shown(made).items():
        place = made.find(name)
        assert place is not None
        assert (place.server, place.name) == (server, own)
        assert made.known_as(server, own) == name
        # What a client makes of a template goes to whose template it is.
        place = made.find(name.replace("{x}", "7").replace("{+x}", "7"))
        assert place is not None
        assert place.server == server
    for server in "abc":
        for unlisted in ("n://unlisted", "z://1", "b+z://1"):
            known = made.find(made.known_as(server, unlisted))
            assert known is not None
            assert (known.server, known.name) == (server, unlisted)


def test_many_of_each_take_no_long_time() -> None:
    begun_s = time.process_time()
    many = [f"n://{{x}}/{number}/{{+y}}" for number in range(2000)]
    uris(docs=[*many, *(f"n://{number}" for number in range(5000))], mail=[*many, *(f"n://{n}" for n in range(5000))])
    assert time.process_time() - begun_s < 5.0


def mail(uri: str) -> str:
    return f"mail+{uri}"


@pytest.mark.parametrize(
    ("result", "made"),
    [
        (
            b'{"content":[{"type":"resource_link","uri":"n://1","x": 1},{"type":"text","text":"n://1"}]}',
            b'{"content":[{"type":"resource_link","uri":"mail+n://1","x":1},{"type":"text","text":"n://1"}]}',
        ),
        (
            b'{"content":[{"type":"resource","resource":{"uri":"n://1","text":""}}],"structuredContent":{"uri":"n://1"}}',
            (
                b'{"content":[{"type":"resource","resource":{"uri":"mail+n://1","text":""}}],'
                b'"structuredContent":{"uri":"n://1"}}'
            ),
        ),
        (
            b'{"messages":[{"role":"user","content":{"type":"resource_link","uri":"n://1"}}]}',
            b'{"messages":[{"role":"user","content":{"type":"resource_link","uri":"mail+n://1"}}]}',
        ),
        (b'{"contents":[{"uri":"n://1","text":"a"}]}', b'{"contents":[{"uri":"mail+n://1","text":"a"}]}'),
        (
            b'{"result":{"content":[{"type":"resource_link","uri":"n://1"}]}}',
            b'{"result":{"content":[{"type":"resource_link","uri":"mail+n://1"}]}}',
        ),
        (b'{"content":[{"type":"resource_link","uri":"https://x"}]}', None),
        (b'{"content":[{"type":"resource_link","uri":7}]}', None),
        (b'{"content":{"uri":"n://1"}}', None),
        (b'{"content":["uri",null,{"type":"text","uri":"n://1"}]}', None),
        (b'{"content":[{"uri":"n://1","uri":"n://2","type":"resource_link"}]}', None),
        (b'"uri"', None),
        (b'{"uri"', None),
    ],
)
def test_links_lead_to_who_wrote_them(result: bytes, made: bytes | None) -> None:
    message = b'{"jsonrpc":"2.0","id":1,"result":' + result + b"}"
    found = linked(message, mail)
    if made is None:
        assert found is message
    else:
        assert _plain(found) == _plain(b'{"jsonrpc":"2.0","id":1,"result":' + made + b"}")


def _plain(message: bytes) -> Any:
    import json

    return json.loads(message)
