"""What is read of MCP and A2A messages, and what is told to whoever sends none."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from meshd.call import Call, Direction, Kind, Rpc, Target
from meshd.dialects.a2a import A2A
from meshd.dialects.mcp import HEADER_MISMATCH, Mcp
from meshd.dialects.table import spoken_in
from meshd.refusal import TABLE, Reason, Refused

MCP, A2A_ = Mcp(), A2A()
BOTH = (b"accept", b"application/json, text/event-stream")


def read(body: Any, *headers: tuple[bytes, bytes], dialect: Any = MCP) -> Rpc:
    rpc = Rpc(dialect.name)
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    dialect.fill(rpc, raw, list(headers) or [BOTH])
    return rpc


def message(method: str, params: Any = None, **members: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": method} | members
    return made if params is None else made | {"params": params}


def tool_call(**params: Any) -> dict[str, Any]:
    return message("tools/call", {"name": "add", "arguments": {"b": 2.0, "a": 1}} | params)


def test_a_tool_call() -> None:
    rpc = read(tool_call(_meta={"progressToken": "p-1", "meshd/idempotency-key": "k"}))
    assert (rpc.protocol, rpc.method, rpc.id, rpc.tool) == ("mcp", "tools/call", b"1", "add")
    assert rpc.arguments == b'{"a":1,"b":2}'
    assert (rpc.key, rpc.progress_token) == ("k", b'"p-1"')
    assert (rpc.is_read_only, rpc.is_stream, rpc.is_json_taken, rpc.is_reply) == (False, True, True, False)
    assert rpc.forwarded is None


def test_arguments_that_are_not_there() -> None:
    assert read(message("tools/call", {"name": "add"})).arguments == b"{}"
    assert read(message("tools/call", {"name": "add", "arguments": None})).arguments == b"{}"


def test_a_later_leg_of_a_call_is_another_call() -> None:
    first = read(tool_call())
    second = read(tool_call(inputResponses={"x": {"action": "accept"}}, requestState="theirs"))
    assert first.arguments != second.arguments
    assert b"theirs" in second.arguments
    assert not second.is_resumable


def test_our_own_state_goes_no_further() -> None:
    version = (b"mcp-protocol-version", b"2026-07-28")
    ours = f"meshd.3.1790000000.abcd-efgh-jkmn.{'A' * 22}"
    rpc = read(tool_call(requestState=ours, _meta={"x": 1}, inputResponses={"a": {"action": "accept"}}), BOTH, version)
    assert (rpc.leg, rpc.is_resumable, rpc.arguments) == (3, True, b'{"a":1,"b":2}')
    assert (rpc.state, rpc.is_declined) == (ours, False)
    assert rpc.forwarded is not None
    assert json.loads(rpc.forwarded) == tool_call(_meta={"x": 1})
    for answers in ({"a": {"action": "decline"}}, {"a": {"action": "accept"}, "b": {"action": "cancel"}}):
        assert read(tool_call(requestState=ours, inputResponses=answers), BOTH, version).is_declined
    for answers in (7, [], {}, {"a": 7}, {"a": {}}, {"a": {"action": ["decline"]}}):
        assert not read(tool_call(requestState=ours, inputResponses=answers), BOTH, version).is_declined
    made_up = (ours + "A", ours[:-1], ours.replace("3", "9", 1), ours.replace("abcd", "ab.d"), ours.replace("17", "-7"))
    for state in (*made_up, "meshd.3", "meshd.", "meshd." + "9" * 5000):
        with pytest.raises(Refused, match="none that meshd has given out"):
            read(tool_call(requestState=state), BOTH, version)


READS = {
    "initialize": True, "ping": True, "tools/list": True, "resources/read": True, "prompts/get": True,
    "server/discover": True, "notifications/initialized": True, "notifications/cancelled": True,
    "tools/call": False, "tasks/cancel": False, "x/delete_everything": False, "Tools/List": False,
}  # fmt: skip


@pytest.mark.parametrize(("method", "is_read_only"), READS.items())
def test_what_only_reads(method: str, is_read_only: bool) -> None:
    assert read(message(method, {"name": "x"})).is_read_only is is_read_only


@pytest.mark.parametrize("name", ["message/send", "message/stream", "SendMessage", "SendStreamingMessage"])
def test_an_a2a_message(name: str) -> None:
    said = {"role": "user", "parts": [{"text": "hi"}], "messageId": "m-1"}
    rpc = read(message(name, {"message": said}), (b"accept", b"*/*"), dialect=A2A_)
    assert (rpc.protocol, rpc.key, rpc.is_read_only) == ("a2a", "m-1", False)
    assert rpc.arguments == b'{"parts":[{"text":"hi"}],"role":"user"}'
    assert rpc.is_stream is ("tream" in name)
    with_more = read(
        message(name, {"message": said | {"messageId": "m-2"}, "configuration": {"blocking": True}}), dialect=A2A_
    )
    assert with_more.arguments == b'{"configuration":{"blocking":true},"message":' + rpc.arguments + b"}"


@pytest.mark.parametrize("name", ["tasks/get", "GetTask", "agent/getAuthenticatedExtendedCard", "ListTasks"])
def test_what_only_reads_of_an_agent(name: str) -> None:
    rpc = read(message(name, {"id": "t"}), dialect=A2A_)
    assert (rpc.is_read_only, rpc.arguments) == (True, b'{"id":"t"}')


def test_a_method_that_nobody_knows_may_change_something() -> None:
    assert not read(message("tasks/cancel", {"id": "t"}), dialect=A2A_).is_read_only


def test_notifications_and_replies() -> None:
    notification = read({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progress": 1}})
    assert (notification.id, notification.is_reply, notification.is_read_only) == (b"", False, True)
    for reply in ({"result": {"action": "accept"}}, {"error": {"code": -1, "message": "no"}}):
        rpc = read({"jsonrpc": "2.0", "id": 7} | reply)
        assert (rpc.id, rpc.method, rpc.is_reply, rpc.is_read_only) == (b"", "", True, True)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (b"application/json", (False, True)),
        (b"text/event-stream", (True, False)),
        (b"Application/JSON;q=1, Text/Event-Stream", (True, True)),
        (b"*/*", (False, True)),
        (b"text/plain", (False, False)),
    ],
)
def test_what_the_caller_takes(accept: bytes, expected: tuple[bool, bool]) -> None:
    rpc = read(tool_call(), (b"accept", accept))
    assert (rpc.is_stream, rpc.is_json_taken) == expected


# What is sent, the code of the refusal, what it says, and the id that it can name.
BAD: list[tuple[Any, int, str, bytes]] = [
    (b"", -32700, "not JSON", b""),
    (b"\xff\xfe", -32700, "UTF-8", b""),
    (b"{", -32700, "not JSON", b""),
    (b'"x"', -32700, "the request body", b""),
    (b"\x1f\x8b\x08\x00", -32700, "UTF-8", b""),
    (b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}', -32700, "more than once", b""),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}', -32700, "more than once", b""),
    (b"[" * 100_000, -32600, "batch", b""),
    ([message("ping"), message("tools/list")], -32600, "batch", b""),
    (b" \r\n[]", -32600, "batch", b""),
    ({"id": 1, "method": "ping"}, -32600, "jsonrpc", b"1"),
    (message("ping", jsonrpc="1.0"), -32600, "jsonrpc", b"1"),
    (message("ping", jsonrpc=2), -32700, "must be a string", b"1"),
    (message("ping", id={"a": 1}), -32600, "id of a JSON-RPC message", b""),
    (message("ping", id=[1]), -32600, "id of a JSON-RPC message", b""),
    (message("ping", id=True), -32600, "id of a JSON-RPC message", b""),
    (message("ping", id="x" * 5000), -32600, "id of a JSON-RPC message", b""),
    ({"jsonrpc": "2.0", "id": 1}, -32600, "neither a method", b"1"),
    ({"jsonrpc": "2.0"}, -32600, "neither a method", b""),
    ({"jsonrpc": "2.0", "id": 1, "result": {}, "error": {}}, -32600, "neither a method", b"1"),
    (message(""), -32600, "method", b"1"),
    (message("m" * 5000), -32600, "method", b"1"),
    (message("PUT /mcp"), -32600, "without blanks", b"1"),
    (message("tools/call\n"), -32600, "without blanks", b"1"),
    (message("tools/call", [1, 2]), -32602, "params", b"1"),
    (message("tools/call", "x"), -32602, "params", b"1"),
    (message("tools/call", {}), -32602, "names its tool", b"1"),
    (message("tools/call", {"name": ""}), -32602, "names its tool", b"1"),
    (message("tools/call", {"name": 7}), -32700, "must be a string", b"1"),
    (message("tools/call", {"name": "n" * 5000}), -32602, "over 256", b"1"),
    (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","name":"b"}}', -32700, "more than", b"1"),
    (
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"x":{"y":1,"y":2}}}}',
        -32700, "more than once", b"1",
    ),
    (
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":' + b"[" * 300 + b"]" * 300
        + b"}}",
        -32700, "nested", b"1",
    ),
    (
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"n":1e999}}}',
        -32700, "double", b"1",
    ),
    (tool_call(_meta={"meshd/idempotency-key": "k" * 10_000}), -32602, "over 512", b"1"),
    (tool_call(_meta={"meshd/idempotency-key": 7}), -32700, "must be a string", b"1"),
    (tool_call(_meta=[]), -32700, "_meta", b"1"),
]  # fmt: skip


def call_of(dialect: Any, rpc: Rpc | None, *headers: tuple[bytes, bytes], method: str = "POST") -> Call:
    made = Call("c-1", Direction.OUTBOUND, method, "/mcp", "h", list(headers), 0.0, 0.0)
    made.dialect, made.rpc, made.target = dialect, rpc, Target(Kind.TOOL, "tools")
    return made


@pytest.mark.parametrize(("body", "code", "words", "id"), BAD, ids=[str(n) for n in range(len(BAD))])
def test_what_is_no_message(body: Any, code: int, words: str, id: bytes) -> None:
    rpc = Rpc("mcp")
    with pytest.raises(Refused, match=words) as caught:
        MCP.fill(rpc, body if isinstance(body, bytes) else json.dumps(body).encode(), [BOTH])
    refused = caught.value
    assert (refused.reason, refused.jsonrpc, rpc.id) == (Reason.MALFORMED, code, id)
    reply = MCP.refuse(refused, call_of(MCP, rpc, BOTH), "w")
    assert reply is not None
    # 400 only where nobody could tell to what the answer belongs.
    assert reply.status == (200 if id else 400)
    said = json.loads(reply.body)
    assert said["id"] == (json.loads(id) if id else None)
    assert said["error"]["code"] == code
    assert len(said["error"]["message"]) < 500


def encoded(text: str) -> bytes:
    return b"=?base64?" + base64.b64encode(text.encode()) + b"?="


@pytest.mark.parametrize(
    "fields",
    [
        [(b"mcp-method", b"tools/call"), (b"mcp-name", b"add")],
        [(b"mcp-name", encoded("add"))],
        [(b"mcp-method", b"tools/call")],
        [],
    ],
)
def test_header_fields_that_agree(fields: list[tuple[bytes, bytes]]) -> None:
    assert read(tool_call(), BOTH, *fields).tool == "add"


@pytest.mark.parametrize(
    ("params", "fields"),
    [
        (
            {"uri": "file:///" + "x" * 2000},
            [(b"mcp-method", b"resources/read"), (b"mcp-name", b"file:///" + b"x" * 2000)],
        ),
        ({"uri": "ü"}, [(b"mcp-name", encoded("ü"))]),
        ({}, []),
    ],
)
def test_header_fields_that_agree_of_a_resource(params: Any, fields: list[tuple[bytes, bytes]]) -> None:
    assert read(message("resources/read", params), BOTH, *fields).method == "resources/read"


@pytest.mark.parametrize(
    "fields",
    [
        [(b"mcp-method", b"tools/list")],
        [(b"mcp-name", b"delete")],
        [(b"mcp-name", encoded("delete"))],
        [(b"mcp-name", b"=?base64?***?=")],
        [(b"mcp-name", b"\xff")],
        [(b"mcp-name", b"add"), (b"mcp-name", b"delete")],
    ],
)
def test_header_fields_that_say_otherwise(fields: list[tuple[bytes, bytes]]) -> None:
    rpc = Rpc("mcp")
    with pytest.raises(Refused) as caught:
        MCP.fill(rpc, json.dumps(tool_call()).encode(), [BOTH, *fields])
    reply = MCP.refuse(caught.value, call_of(MCP, rpc, BOTH), "")
    assert reply is not None
    # What the specification prescribes.
    assert reply.status == 400
    assert json.loads(reply.body)["error"]["code"] == HEADER_MISMATCH
    assert json.loads(reply.body)["id"] == 1


@pytest.mark.parametrize("dialect", [MCP, A2A_], ids=["mcp", "a2a"])
@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.value)
def test_every_reason_is_an_answer_with_200(dialect: Any, reason: Reason) -> None:
    refused = Refused(reason, "why")
    rpc = Rpc(dialect.name, "resources/read", b'"i-1"')
    reply = dialect.refuse(refused, call_of(dialect, rpc), "w-1")
    said = json.loads(reply.body)
    assert (reply.status, said["id"], said["error"]["code"]) == (200, "i-1", TABLE[reason].jsonrpc)
    data = said["error"]["data"]
    found = data if dialect is MCP else data[0]["metadata"]
    assert (found["reason"], found["workflow"], found["call"]) == (reason.value, "w-1", "c-1")
    names = dict(reply.headers)
    assert names[b"x-meshd-reason"] == reason.value.encode()
    assert (b"retry-after" in names) is TABLE[reason].is_retryable


def test_nobody_waits_for_the_answer_to_a_notification() -> None:
    for rpc in (read({"jsonrpc": "2.0", "method": "notifications/x"}), read({"jsonrpc": "2.0", "id": 1, "result": {}})):
        reply = MCP.refuse(Refused(Reason.NOT_ALLOWED, "why"), call_of(MCP, rpc), "")
        assert reply is not None
        assert (reply.status, reply.body) == (202, b"")
        assert (b"x-meshd-decision", b"refuse") in reply.headers


def test_a_caller_that_takes_nothing_but_a_stream() -> None:
    rpc = read(tool_call(), (b"accept", b"text/event-stream"))
    reply = MCP.refuse(Refused(Reason.NOT_ALLOWED, "why"), call_of(MCP, rpc), "")
    assert reply is not None
    assert reply.headers[0] == (b"content-type", b"text/event-stream")
    assert reply.body.startswith(b'event: message\ndata: {"jsonrpc":"2.0","id":1,"error":')
    assert reply.body.endswith(b"}\n\n")


@pytest.mark.parametrize(
    ("method", "accept", "reason", "status"),
    [
        ("GET", b"text/event-stream", Reason.NOT_ALLOWED, 405),
        ("GET", b"text/event-stream", Reason.CIRCUIT_OPEN, 503),
        ("DELETE", b"*/*", Reason.NOT_ALLOWED, 405),
        ("GET", b"application/json", Reason.NOT_ALLOWED, None),
        ("PUT", b"*/*", Reason.NOT_ALLOWED, None),
    ],
)
def test_what_is_no_post(method: str, accept: bytes, reason: Reason, status: int | None) -> None:
    reply = MCP.refuse(Refused(reason, "why"), call_of(MCP, None, (b"accept", accept), method=method), "")
    assert (None if reply is None else reply.status) == status


JSON = b"application/json"


@pytest.mark.parametrize(
    ("content_type", "fields", "expected"),
    [
        (JSON, [BOTH], "mcp"),
        (b"Application/JSON; charset=utf-8", [BOTH], "mcp"),
        (JSON, [(b"accept", JSON), (b"accept", b"text/event-stream")], "mcp"),
        (JSON, [(b"mcp-session-id", b"x")], "mcp"),
        (JSON, [(b"mcp-protocol-version", b"2025-06-18")], "mcp"),
        (JSON, [(b"a2a-version", b"1.0"), (b"accept", b"*/*")], "a2a"),
        (JSON, [(b"accept", JSON)], "plain"),
        (JSON, [(b"accept", b"*/*")], "plain"),
        (b"text/plain", [BOTH], "plain"),
        (b"", [(b"mcp-session-id", b"x")], "plain"),
    ],
)
def test_what_is_recognised_by_itself(content_type: bytes, fields: Any, expected: str) -> None:
    assert spoken_in(content_type, fields) == expected
