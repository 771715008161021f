"""The reader of protobuf messages: by A2A's official descriptors, and against what is no message."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import a2a.client  # noqa: F401 - before its layer for 0.3, which else takes the client of 1.0 for its own
import pytest
from a2a.compat.v0_3 import a2a_v0_3_pb2
from a2a.types import a2a_pb2
from google.protobuf import json_format, struct_pb2
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st

from meshd.dialects import protobuf
from meshd.dialects.a2a_fields import NEW, OLD
from meshd.dialects.protobuf import (
    BYTES,
    DOUBLE,
    FLAG,
    NUMBER,
    STRUCT,
    TEXT,
    TIME,
    VALUE,
    MapOf,
    decoded,
    framed,
    joined,
    split,
)
from meshd.refusal import Refused

SORTS = {
    FieldDescriptor.TYPE_STRING: TEXT, FieldDescriptor.TYPE_BYTES: BYTES, FieldDescriptor.TYPE_BOOL: FLAG,
    FieldDescriptor.TYPE_INT32: NUMBER, FieldDescriptor.TYPE_INT64: NUMBER, FieldDescriptor.TYPE_DOUBLE: DOUBLE,
}  # fmt: skip
UNTOLD = {("ListTasksRequest", "status")}
"""An enum of which a rule needs no name: it is kept by its number."""


def check(table: Any, descriptor: Any) -> None:
    fields = {field.number: field for field in descriptor.fields}
    for number, member in table.items():
        field = fields[number]
        assert member.name == field.json_name, descriptor.full_name
        assert member.is_repeated == field.is_repeated, field.full_name
        inner = field.message_type
        if inner is None:
            if field.enum_type is not None:
                assert list(member.sort) == [value.name for value in field.enum_type.values]
            else:
                assert member.sort == SORTS[field.type], field.full_name
        elif inner.full_name == "google.protobuf.Struct":
            assert member.sort == STRUCT
        elif inner.full_name == "google.protobuf.Value":
            assert member.sort == VALUE
        elif inner.full_name == "google.protobuf.Timestamp" and member.sort == TIME:
            pass
        elif inner.GetOptions().map_entry:
            of = inner.fields_by_name["value"]
            assert isinstance(member.sort, MapOf)
            assert inner.fields_by_name["key"].type == FieldDescriptor.TYPE_STRING
            if of.message_type is None:
                assert member.sort.sort == SORTS[of.type]
            else:
                check(member.sort.sort, of.message_type)
        else:
            check(member.sort, inner)
    missing = set(fields) - set(table)
    assert missing <= {field.number for field in fields.values() if (descriptor.name, field.name) in UNTOLD}


def test_the_tables_of_1_0_are_the_official_ones() -> None:
    service = a2a_pb2.DESCRIPTOR.services_by_name["A2AService"]
    assert set(NEW) == {method.name for method in service.methods}
    for method in service.methods:
        check(NEW[method.name], method.input_type)


def test_the_tables_of_0_3_are_the_official_ones() -> None:
    service = a2a_v0_3_pb2.DESCRIPTOR.services_by_name["A2AService"]
    assert set(OLD) == {method.name for method in service.methods}
    for method in service.methods:
        check(OLD[method.name][1], method.input_type)


def request() -> Any:
    data = struct_pb2.Value()
    json_format.ParseDict({"a": [1, 2.5, None, True, {"b": "c"}], "e": {}}, data)
    metadata = struct_pb2.Struct()
    metadata.update({"k": "v", "n": -1.25})
    return a2a_pb2.SendMessageRequest(
        tenant="t",
        message=a2a_pb2.Message(
            message_id="m-1",
            context_id="c-1",
            task_id="t-1",
            role=a2a_pb2.ROLE_USER,
            parts=[
                a2a_pb2.Part(text="héllo ☃"),
                a2a_pb2.Part(raw=b"\x00\xff", media_type="image/png", filename="x.png"),
                a2a_pb2.Part(data=data),
            ],
            metadata=metadata,
            extensions=["https://example.com/e"],
            reference_task_ids=["t-0", "t-00"],
        ),
        configuration=a2a_pb2.SendMessageConfiguration(
            accepted_output_modes=["text/plain"], history_length=-3, return_immediately=True
        ),
        metadata=metadata,
    )


def test_a_message_is_read_as_protobuf_s_own_json() -> None:
    sent = request()

    assert decoded(sent.SerializeToString(), NEW["SendMessage"], "x") == json_format.MessageToDict(sent)


def test_what_no_table_knows_is_kept_by_its_number() -> None:
    raw = joined([(1, 2, b"t"), (99, 2, b"later"), (98, 0, 7), (97, 5, b"\x01\x02\x03\x04")])

    found = decoded(raw, NEW["GetTask"], "x")

    assert found == {"tenant": "t", "#99": ["bGF0ZXI="], "#98": [7], "#97": ["AQIDBA=="]}


def test_a_message_ends_where_it_ends() -> None:
    whole = request().SerializeToString()
    for end in range(len(whole)):
        # Cut between two fields it is a shorter message, anywhere else none; never something else.
        try:
            found = decoded(whole[:end], NEW["SendMessage"], "x")
        except Refused:
            continue
        assert found == json_format.MessageToDict(a2a_pb2.SendMessageRequest.FromString(whole[:end]))


@given(st.binary(max_size=200))
def test_nonsense_is_refused_or_read_and_never_more(data: bytes) -> None:
    for table in (NEW["SendMessage"], OLD["SendMessage"][1], NEW["GetTask"]):
        with suppress(Refused):
            json.dumps(decoded(data, table, "x"))


@given(st.binary(max_size=60))
def test_what_is_split_is_joined_to_the_same(data: bytes) -> None:
    try:
        fields = split(data, "x")
    except Refused:
        return
    assert split(joined(fields), "x") == fields


def field(number: int, value: bytes) -> bytes:
    return joined([(number, 2, value)])


def nested(depth: int) -> bytes:
    value = b""
    for _ in range(depth):
        value = field(5, field(1, field(1, b"k") + field(2, value)))
    return value


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (field(1, b"a") + field(1, b"b"), "'tenant' more than once"),
        (field(2, field(1, b"a")) + field(2, field(2, b"b")), "'message' more than once"),
        (field(2, field(1, b"a") + field(1, b"b")), "'messageId' more than once"),
        (field(2, field(1, b"\xff")), "not UTF-8"),
        (b"\x0b\x0c", "type 3"),
        (b"\x00\x00", "field 0"),
        (b"\xff" * 11, "more than 10 bytes"),
        (b"\x0a\xff\xff\xff\xff\x0f", "ends early"),
        (b"\x0a", "ends early"),
        (field(4, field(1, field(1, b"k")) + field(1, field(1, b"k"))), "the key 'k' more than once"),
        (field(2, field(5, field(4, field(3, b"x") + b"\x20\x01"))), "value of two types"),
        (field(2, field(5, field(4, nested(200)))), "more than 100 deep"),
        (field(9, b"") * (protobuf.FIELDS_MAX + 1), "more than 100000 fields"),
    ],
)
def test_what_parsers_would_take_in_different_ways_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(Refused, match=words):
        decoded(data, NEW["SendMessage"], "the request")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "before its first message is whole"),
        (b"\x00\x00\x00\x00", "before its first message is whole"),
        (b"\x00\x00\x00\x00\x05abc", "5 bytes, and 3 came"),
        (b"\x00\xff\xff\xff\xffabc", "4294967295 bytes"),
        (b"\x00\x00\x00\x00\x01a\x00\x00\x00\x00\x01b", "more than one message"),
        (b"\x02\x00\x00\x00\x01a", "flags 2"),
    ],
)
def test_what_is_no_frame_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(Refused, match=words):
        framed(body, "the request")
