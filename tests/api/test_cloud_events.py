"""CloudEvents 1.0 over HTTP, by the examples of the specification, and by what is none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshd.api.cloud_events import attributes_of, binary, is_json, read, structured
from meshd.engines.bus_port import Event, EventMalformed

# HTTP Protocol Binding 1.0.2, 3.1.4 "Examples", with the fields of its 3.1.
BINARY = [
    ("ce-specversion", "1.0"),
    ("ce-type", "com.example.someevent"),
    ("ce-time", "2018-04-05T03:56:24Z"),
    ("ce-id", "1234-1234-1234"),
    ("ce-source", "/mycontext/subcontext"),
    ("content-type", "application/json; charset=utf-8"),
    ("host", "example.com"),
]
# JSON Event Format 1.0.2, 3.2 "Examples".
STRUCTURED = {
    "specversion": "1.0",
    "type": "com.example.someevent",
    "source": "/mycontext",
    "subject": None,
    "id": "C234-1234-1234",
    "time": "2018-04-05T17:31:00Z",
    "comexampleextension1": "value",
    "comexampleothervalue": 5,
    "datacontenttype": "application/json",
    "data": {"appinfoA": "abc", "appinfoB": 123, "appinfoC": True},
}


def structured_of(**changes: Any) -> bytes:
    changed = {**STRUCTURED, **changes}
    return json.dumps({name: value for name, value in changed.items() if value is not ...}).encode()


def as_json(body: bytes, kind: str = "application/cloudevents+json; charset=utf-8") -> list[Event]:
    return read("t", [("content-type", kind)], body)


def test_binary_mode_is_read() -> None:
    (event,) = read("t", BINARY, b'{"a": 1}')
    assert (event.id, event.source, event.type) == (
        "1234-1234-1234",
        "/mycontext/subcontext",
        "com.example.someevent",
    )
    assert event.time_ns == 1_522_900_584_000_000_000
    assert (event.data, event.data_content_type) == (b'{"a": 1}', "application/json; charset=utf-8")
    assert event.extensions == {}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),  # 3.1.3.2
        ('"quoted \\"text\\""', 'quoted "text"'),
        ("100%25", "100%"),
        ("plain", "plain"),
    ],
)
def test_values_of_headers_are_decoded(value: str, text: str) -> None:
    (event,) = read("t", [*BINARY, ("ce-subject", value)], b"")
    assert event.subject == text


def test_what_is_written_as_headers_is_read_back() -> None:
    event = Event(
        "t", "ann", "1", "x.y", "Euro € 😀 \"%", 1_522_900_584_120_000_000, "text/plain", "urn:s", b"\x00hi",
        "mesh://state/r@7", "key", extensions={"tone": "höflich", "n": "5"},
    )  # fmt: skip
    headers = [(name.decode(), value.decode("ascii")) for name, value in binary(event)]
    assert dict(headers)["ce-subject"] == "Euro%20%E2%82%AC%20%F0%9F%98%80%20%22%25"
    assert read("t", headers, event.data) == [event]
    assert as_json(json.dumps(structured(event)).encode()) == [event]


def test_structured_mode_is_read() -> None:
    (event,) = as_json(structured_of())
    assert json.loads(event.data) == STRUCTURED["data"]
    assert event.extensions == {"comexampleextension1": "value", "comexampleothervalue": "5"}
    assert (event.subject, event.time_ns) == ("", 1_522_949_460_000_000_000)


@pytest.mark.parametrize(
    ("changes", "data"),
    [
        ({"datacontenttype": "text/xml", "data": '<much wow="xml"/>'}, b'<much wow="xml"/>'),  # 3.2
        ({"datacontenttype": "application/vnd.apache.thrift.binary", "data": ..., "data_base64": "AQI="}, b"\x01\x02"),
        ({"datacontenttype": ..., "data": "a text"}, b'"a text"'),
        ({"datacontenttype": "application/a+json", "data": [1]}, b"[1]"),
        ({"data": None}, b"null"),
        ({"data": ...}, b""),
    ],
)
def test_data_is_what_its_type_says(changes: dict[str, Any], data: bytes) -> None:
    (event,) = as_json(structured_of(**changes))
    assert event.data == data
    told = structured(event)
    assert as_json(json.dumps(told).encode())[0].data == data


def test_data_is_kept_as_it_was_written() -> None:
    big = b"1" + b"0" * 40
    written = b'{"n": 1.10000000000000000000001, "big": [ 1e308, ' + big + b"]}"
    (event,) = as_json(structured_of(data=...)[:-1] + b', "data": ' + written + b"}")
    assert event.data == b'{"n":1.10000000000000000000001,"big":[1e308,' + big + b"]}"


def test_batches_are_read() -> None:
    kind = "application/cloudevents-batch+json"
    body = b"[" + structured_of() + b"," + structured_of(id="2") + b"]"
    assert [event.id for event in as_json(body, kind)] == ["C234-1234-1234", "2"]
    assert as_json(b"[]", kind) == []
    for bad, words in ((b"{}", "array"), (b"[1]", r"event\[0\]"), (b"[" + b"0," * 1000 + b"0]", "at most 1000")):
        with pytest.raises(EventMalformed, match=words):
            as_json(bad, kind)


@pytest.mark.parametrize("missing", ["specversion", "id", "source", "type"])
def test_what_is_required_must_be_there(missing: str) -> None:
    with pytest.raises(EventMalformed, match=f"ce-{missing}: is missing"):
        read("t", [one for one in BINARY if one[0] != f"ce-{missing}"], b"")
    for changes in ({missing: ...}, {missing: ""}, {missing: None}):
        with pytest.raises(EventMalformed, match=rf"event\.{missing}: is missing"):
            as_json(structured_of(**changes))


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ([*BINARY, ("ce-id", "2")], "ce-id: stands more than once"),
        ([*BINARY, ("ce-datacontenttype", "x")], "Content-Type"),
        ([*BINARY, ("ce-Up", "x")], "ce-Up"),
        ([*BINARY, ("ce-a_b", "x")], "lower-case"),
        ([*BINARY, ("ce-subject", "%FF")], "no UTF-8"),
        ([("ce-specversion", "0.3"), *BINARY[1:]], "'0.3' is not read here"),
        ([("ce-specversion", "2.0"), *BINARY[1:]], "'2.0' is not read here"),
        ([*BINARY[:5], ("content-type", "application/cloudevents+avro")], "avro is not read here"),
        ([one for one in BINARY if one[0] != "ce-time"] + [("ce-time", "yesterday")], "RFC 3339"),
        ([one for one in BINARY if one[0] != "ce-time"] + [("ce-time", "2018-13-40T03:56:24Z")], "ce-time"),
    ],
)
def test_fields_that_are_none_are_named(headers: list[tuple[str, str]], words: str) -> None:
    with pytest.raises(EventMalformed, match=words):
        read("t", headers, b"")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "event: is not JSON"),
        (b"\xff", "no JSON"),
        (b'{"a":' * 100_000, "event: is nested too deeply"),
        (b"[" * 100_000, "event: expected `object`"),
        (b"3", "event: expected `object`"),
        (b'{"id": "1", "source": "a", "id": "2"}', "event: has the key 'id' more than once"),
        (structured_of(data=...)[:-1] + b', "data": 1, "data": 2}', "event: has the key 'data' more than once"),
        (structured_of(data=...)[:-1] + b', "data": 1e999}', "event.data: is no JSON: Number out of range"),
        (structured_of(data=...)[:-1] + b', "data": ["\\ud800"]}', "event: is not JSON"),
        (structured_of(data=...)[:-1] + b', "data": "\xff"}', "event: is no JSON: it is not UTF-8"),
        (structured_of(data_base64="AQI="), "both"),
        (structured_of(data=..., data_base64="?"), "no base64"),
        (structured_of(data=..., data_base64=7), "no base64"),
        (structured_of(id={"a": 1}), "event.id: is no JSON string"),
        (structured_of(id=1), "event.id: is no JSON string"),
        (structured_of(source=True), "event.source: is no JSON string"),
        (structured_of(time=1), "event.time: is no JSON string"),
        (structured_of(partitionkey=1), "event.partitionkey: is no JSON string"),
        (structured_of(subject=""), "event.subject: is empty"),
        (structured_of(dataschema=""), "event.dataschema: is empty"),
        (structured_of(comexample=1.5), "neither text"),
        (structured_of(specversion="1.1"), "not read here"),
        (structured_of(specversion=1), "event.specversion: is no JSON string"),
    ],
)
def test_json_that_is_no_event_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(EventMalformed, match=words):
        as_json(body)


def test_an_extension_never_stands_for_what_the_sidecar_writes() -> None:
    event = Event("t", "ann", "1", sequence="7", correlation_id="w", extensions={"sequence": "9", "id": "x"})
    assert attributes_of(event)["sequence"] == "7"
    assert attributes_of(event)["id"] == "1"
    (read_back,) = read("t", [*BINARY, ("ce-sequence", "9"), ("ce-correlationid", "victim")], b"")
    assert (read_back.sequence, read_back.correlation_id, read_back.extensions) == ("", "", {})


def test_what_json_is() -> None:
    assert all(map(is_json, ("", "application/json", "text/json; charset=x", "application/x+json")))
    assert not any(map(is_json, ("text/plain", "application/jsonx")))


def test_data_that_is_not_what_it_says_is_kept_as_it_is() -> None:
    for data, kind in ((b"not json", "application/json"), (b"\xff", "text/plain"), (b"\x00", "image/png")):
        event = Event("t", "ann", "1", "x", data=data, data_content_type=kind)
        assert as_json(json.dumps(structured(event)).encode())[0].data == data
