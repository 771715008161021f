"""A text as an answer, for what has no socket to show it: JSON-RPC, several choices, bytes that are none."""

from __future__ import annotations

import json

import a2a.types
import mcp.types
import pytest

from meshd.call import Ask
from meshd.dialects.canned import JSON, STREAM, Canned, answer, can_answer
from meshd.dialects.table import DIALECTS

PLAIN, OPENAI = DIALECTS["plain"], DIALECTS["openai"]
CANNED = Canned("try later \u2713", "meshd-reply", "c-1", 1_790_000_000)


class Rpc:
    """As much of a JSON-RPC call as an answer needs."""

    def __init__(self, protocol: str, method: str, id: bytes = b"7", *, is_json_taken: bool = True) -> None:
        self.protocol, self.method, self.id, self.is_json_taken = protocol, method, id, is_json_taken


def test_a_tool_of_mcp_answers_with_a_result() -> None:
    rpc = Rpc("mcp", "tools/call", b'"x-1"')
    assert can_answer(PLAIN, None, rpc)
    content_type, body = answer(PLAIN, None, rpc, CANNED)
    message = mcp.types.JSONRPCResponse.model_validate(json.loads(body))
    result = mcp.types.CallToolResult.model_validate(message.result)
    assert (content_type, message.id) == (JSON, "x-1")
    assert result.content[0].text == CANNED.text  # type: ignore[union-attr]


def test_who_takes_events_only_gets_one() -> None:
    content_type, body = answer(PLAIN, None, Rpc("mcp", "tools/call", is_json_taken=False), CANNED)
    assert content_type == STREAM
    assert json.loads(body.partition(b"data: ")[2])["id"] == 7
    assert body.endswith(b"\n\n")


def test_an_agent_of_a2a_answers_with_a_message() -> None:
    said = json.loads(answer(PLAIN, None, Rpc("a2a", "message/send"), CANNED)[1])["result"]
    assert (said["kind"], said["role"], said["parts"]) == (
        "message", "agent", [{"kind": "text", "text": CANNED.text}],
    )  # fmt: skip
    said = json.loads(answer(PLAIN, None, Rpc("a2a", "SendMessage"), CANNED)[1])["result"]["message"]
    from google.protobuf.json_format import ParseDict

    message = ParseDict(said, a2a.types.Message())
    assert (message.role, message.parts[0].text) == (a2a.types.Role.ROLE_AGENT, CANNED.text)


@pytest.mark.parametrize(
    "rpc",
    [
        Rpc("mcp", "initialize"), Rpc("mcp", "tools/list"), Rpc("mcp", "notifications/cancelled", b""),
        Rpc("mcp", "tools/call", b""), Rpc("a2a", "message/stream"), Rpc("a2a", "tasks/get"),
    ],
)  # fmt: skip
def test_what_a_text_is_no_answer_to(rpc: Rpc) -> None:
    assert not can_answer(PLAIN, None, rpc)


def test_only_what_is_written_here_is_answered() -> None:
    assert can_answer(OPENAI, Ask("chat", "m"), None)
    assert not can_answer(OPENAI, Ask("embeddings", "m"), None)
    assert not can_answer(OPENAI, None, None)
    for name in ("gemini", "bedrock", "ollama"):
        assert not can_answer(DIALECTS[name], Ask("chat", "m"), None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("[1]", JSON), ('{"a": 1}', JSON), ("1", b"text/plain; charset=utf-8"), ("{", b"text/plain; charset=utf-8")],
)
def test_a_body_is_json_where_it_is_an_object_or_a_list(text: str, expected: bytes) -> None:
    assert answer(PLAIN, None, None, Canned(text, "m", "i", 1)) == (expected, text.encode())


def test_as_many_choices_as_were_asked_for_and_no_more_than_sense() -> None:
    body = json.loads(answer(OPENAI, Ask("chat", "m", choices=3), None, CANNED)[1])
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    body = json.loads(answer(OPENAI, Ask("chat", "m", choices=10**6), None, CANNED)[1])
    assert len(body["choices"]) == 128


def test_what_is_no_text_is_replaced() -> None:
    body = answer(PLAIN, None, None, Canned("\udcff", "m", "i", 1))[1]
    assert body == b"?"
