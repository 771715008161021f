"""Requests as JSON: what is no base64 is kept as nothing else."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from meshd.api.json_reading import from_json
from meshd.refusal import Refused
from meshd_sdk.v1 import events_pb2, session_pb2, state_pb2
from tests.api.house import house
from tests.api.test_state import POLICY, get, token_of

DATA = bytes(range(256))
FORMS = [
    base64.b64encode(DATA).decode(),
    base64.urlsafe_b64encode(DATA).decode(),
    base64.b64encode(DATA).decode().rstrip("="),
    base64.encodebytes(DATA).decode(),
]


@pytest.mark.parametrize("text", FORMS)
def test_base64_in_each_of_its_forms(text: str) -> None:
    made: Any = from_json(json.dumps({"value": text}), state_pb2.CommitRequest)
    assert made.value == DATA


NONE = [
    '{"steps": []}',
    "!!!",
    "plain text",
    "four more",
    "a",
    "aaaaa",
    "aaa=a",
    "aa===",
    "é",
    "aGVsbG8.",
    "aGVsbG8\x00",
]


@pytest.mark.parametrize("text", NONE)
async def test_a_value_that_was_not_encoded_is_refused_by_its_field(tmp_path: Path, text: str) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        status, said = await one.ask("StateService/Commit", {"token": token, "key": "mesh/x", "value": text})
        assert (status, said["code"], "value" in said["message"]) == (400, "invalid_argument", True)
        assert (await get(one, token, "mesh/x")).version == 0


@pytest.mark.parametrize(
    ("kind", "said", "where"),
    [
        (events_pb2.PublishRequest, {"event": {"topic": "a", "data": "{}"}}, "event.data"),
        (session_pb2.ConnectRequest, {"publish": {"request": {"event": {"data": "{}"}}}}, "publish.request.event.data"),
        (state_pb2.WriteShadowRequest, {"value": "no base64"}, "value"),
    ],
)
def test_also_within_other_messages(kind: Any, said: dict[str, Any], where: str) -> None:
    with pytest.raises(Refused, match=f"{where} is bytes"):
        from_json(json.dumps(said), kind)


@pytest.mark.parametrize("said", [{}, {"value": None}, {"value": ""}, {"unknown": "!!!"}, {"key": "!!!"}])
def test_what_is_not_there_and_what_is_not_bytes_is_not_looked_at(said: dict[str, Any]) -> None:
    made: Any = from_json(json.dumps(said), state_pb2.CommitRequest)
    assert made.value == b""


def test_a_long_value_that_is_none_is_found_at_once() -> None:
    with pytest.raises(Refused):
        from_json(json.dumps({"value": "A" * 1_000_000 + "\n" * 1_000_000 + "!"}), state_pb2.CommitRequest)
