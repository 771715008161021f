"""Timeouts never grow, statuses never raise, and what we write of google.rpc is what Google's own classes read."""

from __future__ import annotations

import base64
from urllib.parse import unquote

import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from meshd.wire.fields import is_grpc
from meshd.wire.grpc import (
    DETAILS_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    encode_details,
    encode_message,
    read_status,
    read_timeout,
    status_of_reset,
    write_timeout,
)
from meshd.wire.message import Fields, WireError

TEXT = st.text(st.characters(codec="utf-8"), max_size=4000)


@given(st.floats(min_value=0, max_value=1e9, allow_nan=False))
def test_a_timeout_is_never_lengthened_and_hardly_shortened(left_s: float) -> None:
    written = write_timeout(left_s)
    assert len(written) <= 9
    got = read_timeout(written)
    assert got <= max(left_s, 1e-9) * (1 + 1e-12)
    assert got >= left_s * 0.9999 - 1e-9 or left_s >= 99_999_999


@given(st.integers(0, 99_999_999), st.sampled_from("HMSmun"))
def test_every_timeout_is_read(number: int, unit: str) -> None:
    seconds = {"H": 3600, "M": 60, "S": 1, "m": 1e-3, "u": 1e-6, "n": 1e-9}[unit]
    assert read_timeout(f"{number}{unit}".encode()) == pytest.approx(number * seconds)


@given(st.binary(max_size=12))
def test_nonsense_for_a_timeout_is_refused_or_read(value: bytes) -> None:
    try:
        found = read_timeout(value)
    except WireError:
        return
    assert 0 <= found <= 99_999_999 * 3600


@pytest.mark.parametrize("value", [b"", b"1", b"S", b"123456789S", b"-1S", b"1s", b"1S\n", b" 1S", b"\xb9S"])
def test_what_is_no_timeout(value: bytes) -> None:
    with pytest.raises(WireError):
        read_timeout(value)


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (b"0", 0),
        (b"16", 16),
        (b"017", 17),
        (b"", 2),
        (b"-1", 2),
        (b"x", 2),
        (b"9999", 2),
        (b"1 ", 2),
        ("٣".encode(), 2),
    ],
)
def test_a_status_is_a_number_or_unknown(value: bytes, status: int) -> None:
    assert read_status([(b"a", b"1"), (b"grpc-status", value)]) == status
    assert read_status([(b"a", b"1")]) == -1


@pytest.mark.parametrize(("code", "status"), [(0, 13), (2, 13), (7, 14), (8, 1), (11, 8), (12, 7), (255, 13)])
def test_a_reset_stands_for_a_status(code: int, status: int) -> None:
    assert status_of_reset(code) == status


@given(TEXT)
def test_a_message_comes_back_as_it_was_or_cut_between_characters(message: str) -> None:
    encoded = encode_message(message)
    assert len(encoded) <= MESSAGE_BYTES_MAX
    assert all(32 <= byte <= 126 for byte in encoded)
    decoded = unquote(encoded.decode("ascii"), errors="strict")
    assert message.startswith(decoded)
    assert decoded == message or len(encoded) > MESSAGE_BYTES_MAX - 40


def test_a_lone_surrogate_is_no_reason_to_fail() -> None:
    assert encode_message("a\ud800b") == b"a?b"
    assert base64.b64decode(encode_details(1, "\ud800", "R", "d", {"k": "\ud800"}) + b"==")


@given(st.integers(0, 16), TEXT, st.dictionaries(st.sampled_from(["call", "workflow", "rule"]), TEXT))
def test_details_are_what_google_reads(status: int, message: str, metadata: dict[str, str]) -> None:
    encoded = encode_details(status, message, "BUDGET_EXHAUSTED", "meshd", metadata)
    assert len(encoded) <= DETAILS_BYTES_MAX
    assert not encoded.endswith(b"=")
    read = status_pb2.Status.FromString(base64.b64decode(encoded + b"=" * (-len(encoded) % 4)))
    assert read.code == status
    assert message.startswith(read.message)
    (detail,) = read.details
    info = error_details_pb2.ErrorInfo()
    assert detail.Unpack(info)
    assert (info.reason, info.domain) == ("BUDGET_EXHAUSTED", "meshd")
    assert set(info.metadata) == set(metadata)
    assert all(metadata[key].startswith(value) for key, value in info.metadata.items())


@pytest.mark.parametrize(
    ("content_type", "found"),
    [
        (b"application/grpc", True), (b"application/grpc+proto", True), (b"application/grpc;x=y", True),
        (b"Application/gRPC+json", True), (b"application/grpc ;x", True), (b"application/grpc-web", False),
        (b"application/grpc-web+proto", False), (b"application/grpcx", False), (b"application/json", False),
        (b"", False), (b"application/grp", False),
    ],
)  # fmt: skip
def test_what_is_framed_as_grpc(content_type: bytes, found: bool) -> None:
    assert is_grpc(content_type) is found


@pytest.mark.parametrize("is_first", [True, False])
def test_a_timeout_is_taken_from_grpc_alone(is_first: bool) -> None:
    timeout = (b"grpc-timeout", b"1S")
    for kind, forwarded in ((b"application/grpc", False), (b"application/json", True)):
        found = [timeout, (b"content-type", kind)]
        fields = Fields(found if is_first else found[::-1])
        assert (timeout in fields.forward) is forwarded
        assert fields.grpc_timeouts == ([] if forwarded else [timeout])
