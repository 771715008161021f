"""What A2A answers report of tokens: in which spellings, where it stands, and how often it counts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.call import Rpc
from meshd.dialects.a2a import A2A
from meshd.dialects.a2a_extension import EXTENSION, written
from meshd.dialects.a2a_usage import READ_BYTES_MAX, Events, Reports

NOTHING = (0, 0)


def heard(*metadata: Any, is_any: bool = True, place: str = "message") -> Reports:
    """Each metadata in an event of its own."""
    reports = Reports(is_any=is_any)
    for one in metadata:
        result = {
            "message": {"message": {"messageId": "m", "metadata": one}},
            "task": {"task": {"id": "t-1", "status": {"state": "x"}, "metadata": one}},
            "status": {"statusUpdate": {"taskId": "t-1", "status": {}, "metadata": one}},
            "status_message": {"statusUpdate": {"taskId": "t-1", "status": {"message": {"metadata": one}}}},
            "artifact": {"artifactUpdate": {"taskId": "t-1", "artifact": {"metadata": one}}},
            "artifacts": {"task": {"id": "t-1", "status": {}, "artifacts": [{}, {"metadata": one}]}},
            "old": {"kind": "status-update", "taskId": "t-1", "status": {}, "metadata": one},
        }[place]
        body = {"jsonrpc": "2.0", "id": 1, "result": result}
        reports.take_event(b"data: " + json.dumps(body).encode() + b"\r\n\r\n")
    return reports


def total(*metadata: Any, **how: Any) -> tuple[int, int]:
    return heard(*metadata, **how).more_than(NOTHING, is_new=True)


@pytest.mark.parametrize(
    ("said", "tokens"),
    [
        ({EXTENSION: {"usage": {"input_tokens": 10, "output_tokens": 2}}}, (10, 2)),
        ({EXTENSION: {"usage": {"output_tokens": 2}}}, (0, 2)),
        ({"usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}}, (10, 2)),
        ({"usage": {"input_tokens": 10, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 9}}}, (10, 2)),
        (
            {"usage": {"input_tokens": 10, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 4,
                       "output_tokens": 2}},
            (19, 2),
        ),
        ({"usage_metadata": {"promptTokenCount": 10, "candidatesTokenCount": 2, "thoughtsTokenCount": 7}}, (10, 9)),
        ({"usageMetadata": {"promptTokenCount": 10.0, "totalTokenCount": 30.0}}, (10, 20)),
        ({"token_usage": {"total_tokens": 12}}, (0, 12)),
        ({"shared": {"usage": {"input_tokens": 3, "output_tokens": 4}}}, (3, 4)),
        ({"adk_usage_metadata": {"promptTokenCount": 3, "candidatesTokenCount": 4}}, (3, 4)),
        ({"kagent_usage_total": {"promptTokenCount": 3, "candidatesTokenCount": 4}}, (3, 4)),
        ({"usage": {"input_tokens": None, "output_tokens": 4}}, (0, 4)),
        ({"usage": {"cpu": 3}}, NOTHING),
        ({"usage": "much"}, NOTHING),
        ({"my_usage": {"input_tokens": 3}}, NOTHING),
    ],
)  # fmt: skip
def test_spellings(said: dict[str, Any], tokens: tuple[int, int]) -> None:
    assert total(said) == tokens


@pytest.mark.parametrize("place", ["message", "task", "status", "status_message", "artifact", "artifacts", "old"])
def test_places(place: str) -> None:
    said = {"usage": {"input_tokens": 10, "output_tokens": 2}}
    assert total(said, place=place) == (10, 2)
    reports = Reports(is_any=True)
    reports.take_body(json.dumps({"id": "t", "status": {}, "history": [{"metadata": said}], "parts": [said]}).encode())
    assert reports.more_than(NOTHING, is_new=True) == NOTHING


def test_reports_are_sums_and_nothing_is_given_back() -> None:
    said = [{"usage": {"input_tokens": given, "output_tokens": made}} for given, made in ((5, 9), (20, 4), (0, 0))]
    reports = heard(*said)
    assert reports.more_than(NOTHING, is_new=True) == (20, 9)
    assert reports.more_than((20, 2), is_new=True) == (0, 7)
    assert reports.more_than((90, 90), is_new=False) == NOTHING


def test_what_is_of_one_answer_of_a_model_is_added_up() -> None:
    def step(id: str, given: int, **more: Any) -> dict[str, Any]:
        usage = {"promptTokenCount": given, "candidatesTokenCount": 1}
        return {"adk_usage_metadata": usage, "kagent_usage_metadata": usage, "adk_event_id": id, **more}

    reports = heard(step("a", 10), step("b", 20), step("b", 20), step("c", 99, adk_partial=True), place="status")
    assert reports.more_than(NOTHING, is_new=True) == (30, 2)
    # Of new work it is new; what is asked for again was said before.
    assert reports.more_than((30, 2), is_new=True) == (30, 2)
    assert reports.more_than((30, 2), is_new=False) == NOTHING
    unnamed = {"adk_usage_metadata": {"promptTokenCount": 7}}
    assert total(unnamed, unnamed, place="status") == (14, 0)
    both = heard(step("a", 10), {"kagent_usage_total": {"promptTokenCount": 50, "candidatesTokenCount": 9}})
    assert both.more_than(NOTHING, is_new=True) == (50, 9)


def test_behind_a_sidecar_only_what_is_said_on_purpose_counts() -> None:
    copied = {"usage": {"input_tokens": 100}, "adk_usage_metadata": {"promptTokenCount": 100}}
    assert total(copied, is_any=False) == NOTHING
    assert total({**copied, EXTENSION: {"usage": {"input_tokens": 7}}}, is_any=False) == (7, 0)


@pytest.mark.parametrize("bad", [-1, "3", 1.5, True, 10**9 + 1, [], {}, 1e300])
def test_a_report_with_junk_is_none(bad: Any) -> None:
    reports = heard({"usage": {"input_tokens": bad, "output_tokens": 5}})
    assert reports.more_than(NOTHING, is_new=True) == NOTHING
    assert reports.bad


KEYS = [
    "usage", "metadata", "status", "message", "artifacts", "shared", "result", "input_tokens", "total_tokens",
    "adk_usage_metadata", "adk_event_id", EXTENSION,
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=30,
)


@given(JSON)
def test_nonsense_charges_no_less_than_nothing(value: Any) -> None:
    reports = Reports(is_any=True)
    reports.take_body(b'"usage"')
    reports.take_body(b"usage {")
    reports.take_event(b"data: usage\xff\n\n")
    reports.take_body(json.dumps({"usage": "", "result": value, "metadata": value}).encode())
    given, made = reports.more_than((1, 1), is_new=True)
    assert given >= 0
    assert made >= 0


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
@pytest.mark.parametrize("size", [1, 7, 10**6])
def test_an_event_that_is_too_long_hides_none_of_the_others(end: bytes, size: int) -> None:
    stream = b"".join(
        piece + end for piece in (b"data: 1", b"data: " + b"x" * (READ_BYTES_MAX + 9), b"data: 2", b"data: 3")
    )
    for whole, rest in ((stream, b""), (stream + b"data: 4", b"data: 4")):
        events = Events()
        found = [raw for at in range(0, len(whole), size) for raw in events.feed(whole[at : at + size])]
        assert [raw.strip() for raw in found] == [b"data: 1", b"data: 2", b"data: 3"]
        assert events.rest() == rest
    endless = Events()
    for _ in range(100):
        assert endless.feed(b"y" * 10_000) == []
    assert len(endless._pending) <= READ_BYTES_MAX + 10_000
    assert endless.rest() == b""


# ---------------------------------------------------------------------- the extension in requests


def test_every_other_byte_of_a_request_stays() -> None:
    message = b'{"messageId" : "m", "x": 1.50e1, "metadata":{"a":  "\\u00e9", "n":12345678901234567890}, "y":null }'
    body = b'{"jsonrpc":"2.0","id":1,"method":"SendMessage","params":{"message":' + message + b',"z": [ ]}}'
    told = written(body, b'{"hops":1}', is_rpc=True)
    new = b'"n":12345678901234567890,"' + EXTENSION.encode() + b'":{"hops":1}}'
    for kept in (b'"x":1.50e1', b'"a":"\\u00e9"', new, b'"y":null', b'"z":[ ]'):
        assert kept in told
    assert json.loads(told)["params"]["message"].keys() == json.loads(message).keys()
    assert json.loads(written(told, None, is_rpc=True)) == json.loads(body)
    assert written(body, None, is_rpc=True) is body


@pytest.mark.parametrize("method", ["SendMessage", "message/stream"])
def test_what_was_judged_is_what_is_forwarded(method: str) -> None:
    claim = {EXTENSION: {"workflow": "forged"}}
    message = {
        "messageId": "m",
        "parts": [{"text": "hi", "data": claim}],
        "metadata": {"mine": 1, **claim},
        "Metadata": claim,
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {"message": message, "metadata": claim}}
    rpc, clean = Rpc("a2a"), Rpc("a2a")
    A2A().fill(rpc, json.dumps(body).encode(), [])
    assert rpc.forwarded is not None
    sent = json.loads(rpc.forwarded)["params"]
    assert (sent["message"]["metadata"], sent["metadata"]) == ({"mine": 1}, {})
    # For those who read JSON by other cases, too.
    assert sent["message"]["Metadata"] == {}
    # A part that looks so is what its sender says, and no claim.
    assert sent["message"]["parts"] == message["parts"]
    A2A().fill(clean, rpc.forwarded, [])
    assert clean.arguments == rpc.arguments
    assert clean.forwarded is None
