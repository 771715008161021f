"""Which addresses stay in a card, and where they lead."""

from __future__ import annotations

from typing import Any

import a2a.client  # noqa: F401 - before its layer for 0.3, which else takes the client of 1.0 for its own
import pytest
from a2a.compat.v0_3 import a2a_v0_3_pb2
from a2a.types import a2a_pb2

from meshd.discovery.card_addresses import Origin, Place, place_of, rewritten
from meshd.discovery.card_protobuf import rewritten_message
from meshd.discovery.cards import CardError
from meshd.refusal import Refused
from tests.a2a.sample_agent import card_of

OWN = Origin("agent", 9000)


def leads(place: Place, binding: str) -> str | None:
    return f"here{place.path}" if place.origin.is_at(OWN, OWN) else None


def new(*urls: str) -> dict[str, Any]:
    return {"name": "x", "supportedInterfaces": [{"url": url, "protocolBinding": "JSONRPC", "k": 1} for url in urls]}


def test_own_interfaces_are_led_and_others_are_gone() -> None:
    found = rewritten(
        new("http://agent:9000/a", "http://other:9000/a", "http://agent:9001/a", "http://agent:9000"), leads
    )

    assert found.card["supportedInterfaces"] == [
        {"url": "here/a", "protocolBinding": "JSONRPC", "k": 1},
        {"url": "here", "protocolBinding": "JSONRPC", "k": 1},
    ]
    assert found.removed == ("http://other:9000/a", "http://agent:9001/a")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "0.0.0.0", "AGENT", "agent."])
def test_an_agent_has_more_than_one_name_for_itself(host: str) -> None:
    assert rewritten(new(f"http://{host}:9000/"), leads).card["supportedInterfaces"][0]["url"] == "here/"


@pytest.mark.parametrize(
    "url",
    [
        None, 7, "", "agent:9000", "ftp://agent:9000/", "http://user@agent:9000/", "http://agent:9000@evil/",
        "http://agent:99999/", "http://agent:x/", "//agent:9000/", "http://agent:9000\\@evil/", "http://agent:9000/ x",
        "http://agent:9000/\n", "http://" + "a" * 4000, "javascript:alert(1)", "http:///path",
    ],
)  # fmt: skip
def test_what_is_no_address_is_gone(url: Any) -> None:
    card = new("http://agent:9000/")
    card["supportedInterfaces"].append({"url": url, "protocolBinding": "JSONRPC"})
    found = rewritten(card, leads)
    assert len(found.card["supportedInterfaces"]) == 1
    assert len(found.removed) == 1


@pytest.mark.parametrize("card", [{}, {"supportedInterfaces": []}, {"supportedInterfaces": "x"}, new("http://other/")])
def test_a_card_that_leads_nowhere_is_refused(card: dict[str, Any]) -> None:
    with pytest.raises(CardError, match="only addresses that are not the agent's own"):
        rewritten(card, leads)


def old(url: str, *others: tuple[str, str]) -> dict[str, Any]:
    interfaces = [{"url": other, "transport": transport} for other, transport in others]
    return {"name": "x", "url": url, "preferredTransport": "JSONRPC", "additionalInterfaces": interfaces}


def test_a_card_of_0_3() -> None:
    card = rewritten(old("http://agent:9000/a", ("http://agent:9000/r", "HTTP+JSON"), ("evil:1", "GRPC")), leads).card

    assert card["url"] == "here/a"
    assert card["additionalInterfaces"] == [{"url": "here/r", "transport": "HTTP+JSON"}]


def test_where_its_first_address_goes_another_takes_its_place() -> None:
    card = rewritten(old("http://evil/", ("http://agent:9000/r", "HTTP+JSON")), leads).card

    assert (card["url"], card["preferredTransport"]) == ("here/r", "HTTP+JSON")


def test_a_card_of_both_versions_loses_the_address_of_one() -> None:
    card = rewritten({**old("http://evil/"), **new("http://agent:9000/")}, leads).card

    assert "url" not in card
    assert "preferredTransport" not in card


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("agent:9000", Place(OWN, "", "")),
        ("dns:///agent:9000", Place(OWN, "", "")),
        ("http://agent:9000", Place(OWN, "", "http")),
        ("grpc://agent:9000", Place(OWN, "", "grpc")),
        ("grpcs://agent", Place(Origin("agent", 443), "", "grpcs")),
        ("agent", Place(Origin("agent", 443), "", "")),
        ("unix:/tmp/x", None),
    ],
)
def test_targets_of_grpc(url: str, place: Place | None) -> None:
    found = place_of(url, "GRPC")
    assert found == place or (place is None and (found is None or found.origin.host in ("unix", "")))


def test_a_card_over_grpc() -> None:
    card = card_of("http://agent:9000", "agent:9000")
    card.supported_interfaces.append(a2a_pb2.AgentInterface(url="evil:1", protocol_binding="GRPC", tenant="t"))
    card.signatures.append(a2a_pb2.AgentCardSignature(protected="p", signature="s"))

    led, found = rewritten_message(card.SerializeToString(), leads, is_old=False)

    read = a2a_pb2.AgentCard.FromString(led)
    assert [one.url for one in read.supported_interfaces] == ["here/", "here", "here"] * 2
    assert not read.signatures
    assert found.removed == ("evil:1",)
    del card.signatures[:]
    for one, other in zip(card.supported_interfaces, read.supported_interfaces, strict=False):
        assert one.protocol_binding == other.protocol_binding
    del card.supported_interfaces[:]
    del read.supported_interfaces[:]
    assert card == read


def test_a_card_of_0_3_over_grpc() -> None:
    card = a2a_v0_3_pb2.AgentCard(
        name="x",
        url="http://evil/",
        preferred_transport="JSONRPC",
        additional_interfaces=[a2a_v0_3_pb2.AgentInterface(url="agent:9000", transport="GRPC")],
        icon_url="http://icon",
        signatures=[a2a_v0_3_pb2.AgentCardSignature(protected="p", signature="s")],
    )
    led, _ = rewritten_message(card.SerializeToString(), leads, is_old=True)

    read = a2a_v0_3_pb2.AgentCard.FromString(led)
    assert (read.url, read.preferred_transport, read.name, read.icon_url) == ("here", "GRPC", "x", "http://icon")
    assert not read.signatures


@pytest.mark.parametrize("data", [b"\xff", b"\x1a\x05ab"])
def test_a_card_over_grpc_that_is_none(data: bytes) -> None:
    with pytest.raises(Refused):
        rewritten_message(data, leads, is_old=False)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "0.0.0.0"])
def test_what_an_agent_elsewhere_calls_itself_is_no_agent_beside_this_sidecar(host: str) -> None:
    named, beside = Origin(host, 9), Origin("127.0.0.1", 9)

    assert named.is_at(beside, Origin("localhost", 1))
    assert not named.is_at(beside, Origin("10.0.0.7", 1))
    assert named.is_at(Origin("10.0.0.7", 9), Origin("10.0.0.7", 1))
