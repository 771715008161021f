"""A2A over REST and gRPC is read as over JSON-RPC: operation, key, ids and what it does."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest
from a2a.types import a2a_pb2
from google.protobuf import json_format

from meshd.call import Rpc
from meshd.dialects.a2a import A2A, CARD, MESSAGE_BYTES_MAX, A2AGrpc
from meshd.dialects.a2a_rest import place_of
from meshd.refusal import Refused

SAID = {
    "message": {
        "messageId": "m-1", "contextId": "c-1", "taskId": "t-1", "role": "ROLE_USER", "parts": [{"text": "hello"}],
    },
    "configuration": {"acceptedOutputModes": ["text/plain"], "returnImmediately": True},
}  # fmt: skip
NEW_PATH = "/lf.a2a.v1.A2AService/SendMessage"
A2A_, GRPC = A2A(), A2AGrpc()


def frame(message: bytes, *, is_compressed: bool = False) -> bytes:
    return bytes([is_compressed]) + len(message).to_bytes(4, "big") + message


def read(
    dialect: Any, body: bytes, path: str = "/", method: str = "POST", headers: list[tuple[bytes, bytes]] | None = None
) -> Rpc:
    rpc = Rpc("a2a")
    dialect.fill(rpc, body, headers or [], method, path)
    return rpc


def protobuf(said: dict[str, Any] = SAID) -> bytes:
    return frame(json_format.ParseDict(said, a2a_pb2.SendMessageRequest()).SerializeToString())


def test_one_message_is_the_same_whichever_way_it_comes() -> None:
    rpcs = [
        read(A2A_, json.dumps({"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": SAID}).encode()),
        read(A2A_, json.dumps(SAID).encode(), "/message:send"),
        read(GRPC, protobuf(), NEW_PATH),
    ]
    found = {
        (rpc.protocol, rpc.method, rpc.key, rpc.context_id, rpc.task_id, rpc.arguments, rpc.is_stream, rpc.is_read_only)
        for rpc in rpcs
    }
    assert len(found) == 1
    assert [rpc.binding for rpc in rpcs] == ["jsonrpc", "rest", "grpc"]
    assert b"m-1" not in rpcs[0].arguments


@pytest.mark.parametrize(
    ("method", "path", "headers", "operation", "task"),
    [
        ("POST", "/message:send", [], "SendMessage", ""),
        ("POST", "/any/prefix/message:stream?x=1", [], "SendStreamingMessage", ""),
        ("POST", "/v1/message:send", [], "message/send", ""),
        ("POST", "/v1/message:send", [(b"a2a-version", b"1.0")], "SendMessage", ""),
        ("POST", "/message:send", [(b"a2a-version", b"0.3")], "message/send", ""),
        ("POST", "/message%3Asend", [], "SendMessage", ""),
        ("POST", "//message:send", [], "SendMessage", ""),
        ("POST", "/message:send/", [], "SendMessage", ""),
        ("GET", "/tasks", [], "ListTasks", ""),
        ("GET", "/tasks/t-1", [], "GetTask", "t-1"),
        ("GET", "/v1/tasks/t-1", [], "tasks/get", "t-1"),
        ("POST", "/tasks/t-1:cancel", [], "CancelTask", "t-1"),
        ("POST", "/tasks/t-1%3acancel", [], "CancelTask", "t-1"),
        ("GET", "/tasks/t-1:subscribe", [], "SubscribeToTask", "t-1"),
        ("POST", "/tenant/tasks/t-1:subscribe", [], "SubscribeToTask", "t-1"),
        ("POST", "/tasks/t-1/pushNotificationConfigs", [], "CreateTaskPushNotificationConfig", "t-1"),
        ("GET", "/tasks/t-1/pushNotificationConfigs", [], "ListTaskPushNotificationConfigs", "t-1"),
        ("GET", "/tasks/t-1/pushNotificationConfigs/c", [], "GetTaskPushNotificationConfig", "t-1"),
        ("DELETE", "/tasks/t-1/pushNotificationConfigs/c", [], "DeleteTaskPushNotificationConfig", "t-1"),
        ("GET", "/extendedAgentCard", [], "GetExtendedAgentCard", ""),
        ("GET", "/v1/card", [], "agent/getAuthenticatedExtendedCard", ""),
    ],
)  # fmt: skip
def test_what_a_path_of_rest_is(method: str, path: str, headers: Any, operation: str, task: str) -> None:
    assert A2A_.recognise(method, path) is not None
    body = json.dumps({"message": {"messageId": "m"}}).encode() if "message" in path else b""
    rpc = read(A2A_, body, path, method, headers)
    assert (rpc.method, rpc.task_id, rpc.binding) == (operation, task, "rest")
    assert rpc.is_read_only is (method == "GET" or operation == "SubscribeToTask")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/"), ("POST", "/tasksx"), ("POST", "/message:sender"), ("POST", "/x?a=/message:send"),
        ("POST", "/tasks"), ("PUT", "/tasks/t-1"), ("GET", "/message:send"), ("GET", "/tasks/t-1:cancel"),
        ("DELETE", "/tasks/t-1"), ("GET", "/"), ("GET", "/tasks/a/b/c"),
    ],
)  # fmt: skip
def test_what_is_none_of_rest_s(method: str, path: str) -> None:
    assert place_of(method, path) is None
    # A POST is then a message of JSON-RPC or nothing; what else there is passes, judged by its method and path.
    assert (A2A_.recognise(method, path) is not None) is (method == "POST")


def test_a_card_is_asked_for_at_its_well_known_paths() -> None:
    for path in ("/.well-known/agent-card.json", "/a/.well-known/agent.json?x=1"):
        assert A2A_.recognise("GET", path) == CARD
        assert A2A_.recognise("HEAD", path) is None


def test_a_get_that_may_be_something_else_does_not_only_read() -> None:
    assert not read(A2A_, b"", "/tasks/t", "GET", [(b"x-http-method-override", b"DELETE")]).is_read_only
    assert not read(A2A_, b"{}", "/tasks/t", "GET").is_read_only


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<xml/>", "not JSON"),
        (b"[]", "object"),
        (b'{"message": {"messageId": "a"}, "message": {}}', "more than once"),
        (b'{"message": {"messageId": "a", "messageId": "b"}}', "more than once"),
        (b'{"message": {"messageId": "a", "parts": [{"data": {"x": 1, "x": 2}}]}}', "more than once"),
        (b'{"message": {"messageId": "a"}, "request": {"messageId": "b"}}', "two names"),
        (b'{"message": [1]}', "object"),
        (b'{"message": {"messageId": 7}}', "must be a string"),
        (b'{"message": {"messageId": "%s"}}' % (b"x" * 600), "over 512"),
        (b'{"message": {"parts": ' + b"[" * 500 + b"]" * 500 + b"}}", "deep"),
        (b'{"message": "\xff"}', "UTF-8"),
    ],
)
def test_bodies_of_rest_that_are_none(body: bytes, words: str) -> None:
    with pytest.raises(Refused, match=words) as caught:
        read(A2A_, body, "/message:send")
    assert caught.value.status == 400


def test_an_id_of_ten_kilobytes_is_the_agent_s_to_judge_and_says_nothing_here() -> None:
    said = {"message": {"messageId": "m", "contextId": "c" * 10_000, "taskId": "t" * 10_000}}
    rpcs = [
        read(A2A_, json.dumps(said).encode(), "/message:send"),
        read(GRPC, protobuf(said), NEW_PATH),
        read(A2A_, b"", "/tasks/" + "t" * 10_000, "GET"),
    ]
    for rpc in rpcs:
        assert (rpc.context_id, rpc.task_id) == ("", "")


@pytest.mark.parametrize("spelling", [("messageId", "contextId", "taskId"), ("message_id", "context_id", "task_id")])
def test_both_spellings_of_a_name_are_read(spelling: tuple[str, str, str]) -> None:
    said = {"message": dict(zip(spelling, ("m", "c", "t"), strict=True))}
    rpc = read(A2A_, json.dumps(said).encode(), "/message:send")
    assert (rpc.key, rpc.context_id, rpc.task_id, rpc.takes_task) == ("m", "c", "t", False)


@pytest.mark.parametrize("path", [NEW_PATH, "/a2a.v1.A2AService/SendMessage"])
@pytest.mark.parametrize("body", [b"", b"\x00", frame(b"\xff\xff"), protobuf()[:-1], protobuf() + b"\x00"])
def test_bodies_of_grpc_that_are_none(path: str, body: bytes) -> None:
    with pytest.raises(Refused) as caught:
        read(GRPC, body, path)
    assert caught.value.grpc == 3


@pytest.mark.parametrize("path", ["/lf.a2a.v1.A2AService/Other", "/x.Y/SendMessage", "/SendMessage", "/"])
def test_other_methods_of_grpc_stream_by(path: str) -> None:
    assert GRPC.recognise("POST", path) is None


def test_a_compressed_message_is_read_within_bounds() -> None:
    message = protobuf()[5:]
    for encoding, packed in ((b"gzip", gzip.compress(message)), (b"deflate", zlib.compress(message))):
        rpc = read(GRPC, frame(packed, is_compressed=True), NEW_PATH, headers=[(b"grpc-encoding", encoding)])
        assert rpc.key == "m-1"
    bomb = frame(gzip.compress(b"\x00" * (MESSAGE_BYTES_MAX + 1)), is_compressed=True)
    for body, headers, words in (
        (bomb, [(b"grpc-encoding", b"gzip")], "over"),
        (frame(b"xxxx", is_compressed=True), [(b"grpc-encoding", b"gzip")], "not compressed as it says"),
        (frame(message, is_compressed=True), [(b"grpc-encoding", b"br")], "cannot read"),
        (frame(message, is_compressed=True), [], "cannot read"),
    ):
        with pytest.raises(Refused, match=words):
            read(GRPC, body, NEW_PATH, headers=headers)
