"""Talks: what goes on with a context or a task is of the workflow in which that began."""

from __future__ import annotations

import json
from typing import Any

import pytest
from a2a.types import a2a_pb2
from hypothesis import given
from hypothesis import strategies as st

from meshd.call import Call, Direction, Kind, Rpc, Target
from meshd.dialects import a2a_answers
from meshd.dialects.a2a_answers import AnswerIds
from meshd.filters import talks
from meshd.filters.talks import Talks
from meshd.outcome import Outcome, Verdict
from meshd.wire.sse import Splitter
from meshd_sdk.context import Context


def call_of(
    context_id: str = "", task_id: str = "", *, target: str = "writer", now_s: float = 0.0, method: str = "SendMessage",
    inbound: str = "", is_stream: bool = False, binding: str = "jsonrpc",
) -> Any:  # fmt: skip
    rpc = Rpc("a2a", method, b"1", is_stream=is_stream)
    rpc.context_id, rpc.task_id, rpc.binding = context_id, task_id, binding
    direction = Direction.INBOUND if inbound else Direction.OUTBOUND
    headers = [(b"authorization", inbound.encode())]
    call = Call("c-1", direction, "POST", "/", "localhost", headers, now_s, 1000.0 + now_s, "10.0.0.1:4")
    call.rpc, call.target = rpc, Target(Kind.AGENT, target)
    return call


def ids_in(body: bytes, *, is_stream: bool, is_grpc: bool) -> tuple[str, str] | None:
    ids = AnswerIds(talks.HEARD_BYTES_MAX, is_stream=is_stream, is_grpc=is_grpc)
    return ids.feed(body) or ids.end()


def workflow(name: str, deadline_s: float | None = None) -> Context:
    return Context(name, "manager", account=f"workflow/{name}", deadline_s=deadline_s)


DONE = Outcome(Verdict.SUCCESS, 1.0)


def test_a_context_that_the_caller_named_is_known_again() -> None:
    known = Talks()
    known.begin(call_of("c-1"), workflow("w-1"))

    assert known.find(call_of("c-1")) == workflow("w-1")
    assert known.find(call_of("c-2")) is None
    assert known.find(call_of("c-1", target="other")) is None


@pytest.mark.parametrize("result", [
    {"task": {"id": "t-9", "contextId": "c-9", "status": {"state": "x"}}},
    {"message": {"messageId": "m", "contextId": "c-9", "taskId": "t-9"}},
    {"kind": "task", "id": "t-9", "contextId": "c-9", "status": {}},
    {"statusUpdate": {"taskId": "t-9", "contextId": "c-9", "status": {}}},
])  # fmt: skip
def test_what_the_agent_makes_is_learned_of_its_answer(result: Any) -> None:
    known = Talks()
    hearing = known.begin(call_of(), workflow("w-1"))
    assert hearing is not None
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "result": result}).encode()
    for at in range(0, len(body), 7):
        hearing.hear(body[at : at + 7])
    hearing.settle(DONE)

    assert known.find(call_of("c-9")) == workflow("w-1")
    assert known.find(call_of(task_id="t-9", method="GetTask")) == workflow("w-1")


def test_of_a_stream_it_is_learned_at_once() -> None:
    known = Talks()
    hearing = known.begin(call_of(is_stream=True), workflow("w-1"))
    assert hearing is not None
    hearing.hear(b'data: {"jsonrpc":"2.0","id":1,"result":{"task":{"id":"t-9","contextId":"c-9",')
    assert known.find(call_of("c-9")) is None
    hearing.hear(b'"status":{}}}}\n\ndata: {"jsonrpc"')
    assert known.find(call_of("c-9")) == workflow("w-1")


@pytest.mark.parametrize("answer", [
    a2a_pb2.StreamResponse(task=a2a_pb2.Task(id="t-9", context_id="c-9")),
    a2a_pb2.StreamResponse(message=a2a_pb2.Message(task_id="t-9", context_id="c-9")),
    a2a_pb2.StreamResponse(status_update=a2a_pb2.TaskStatusUpdateEvent(task_id="t-9", context_id="c-9")),
    a2a_pb2.SendMessageResponse(task=a2a_pb2.Task(id="t-9", context_id="c-9")),
])  # fmt: skip
def test_of_a_frame_of_grpc(answer: Any) -> None:
    raw = answer.SerializeToString()
    frame = b"\x00" + len(raw).to_bytes(4, "big") + raw
    for end in range(len(frame)):
        assert ids_in(frame[:end], is_stream=True, is_grpc=True) is None
    assert ids_in(frame + frame[:3], is_stream=True, is_grpc=True) == ("c-9", "t-9")


def test_what_was_in_two_workflows_says_nothing() -> None:
    known = Talks()
    known.begin(call_of("c-1"), workflow("w-1"))
    known.begin(call_of("c-1"), workflow("w-2"))
    known.begin(call_of("c-1"), workflow("w-1"))

    assert known.find(call_of("c-1")) is None


def test_a_task_of_one_workflow_in_the_context_of_another_says_nothing() -> None:
    known = Talks()
    known.begin(call_of("c-1"), workflow("w-1"))
    known.begin(call_of("", "t-1"), workflow("w-2"))

    assert known.find(call_of("c-1", "t-1")) is None


def test_it_ends_with_its_workflow_and_with_the_day() -> None:
    known = Talks()
    known.begin(call_of("c-1"), workflow("w-1", deadline_s=1010.0))
    known.begin(call_of("c-2"), workflow("w-2"))

    assert known.find(call_of("c-1", now_s=9.0)) is not None
    assert known.find(call_of("c-1", now_s=10.0)) is None
    assert known.find(call_of("c-2", now_s=talks.KEPT_S)) is not None
    assert known.find(call_of("c-2", now_s=talks.KEPT_S + 1)) is None


def test_who_calls_from_outside_goes_on_with_what_it_began_itself() -> None:
    known = Talks()
    known.begin(call_of("c-1", inbound="alice"), workflow("w-1"))

    assert known.find(call_of("c-1", inbound="alice")) == workflow("w-1")
    assert known.find(call_of("c-1", inbound="mallory")) is None
    assert known.find(call_of("c-1")) is None


def test_it_is_bounded() -> None:
    known = Talks()
    for number in range(talks.TALKS_MAX + 10):
        known.begin(call_of(f"c-{number}"), workflow("w-1"))

    assert len(known) == talks.TALKS_MAX
    assert known.find(call_of("c-0")) is None
    assert known.find(call_of(f"c-{talks.TALKS_MAX}")) is not None


def test_an_answer_that_is_long_is_not_kept() -> None:
    known = Talks()
    hearing = known.begin(call_of(), workflow("w-1"))
    assert hearing is not None
    for _ in range(100):
        hearing.hear(b" " * 1024)
    hearing.hear(b'{"result": {"contextId": "c-9"}}')
    hearing.settle(DONE)

    assert not known


@given(st.binary(max_size=200), st.booleans(), st.booleans())
def test_nonsense_says_nothing(body: bytes, is_stream: bool, is_grpc: bool) -> None:
    found = ids_in(body, is_stream=is_stream, is_grpc=is_grpc)
    assert found is None or all(len(one) <= 512 for one in found)


@pytest.mark.parametrize("body", [b'{"result": 7}', b'{"result": {"contextId": 7, "taskId": []}}', b'{"error": {}}'])
def test_answers_that_name_nothing(body: bytes) -> None:
    assert ids_in(body, is_stream=False, is_grpc=False) == ("", "")


@pytest.mark.uncompiled
@pytest.mark.parametrize("piece", [b"x", b":\n"])
def test_an_answer_in_tiny_pieces_is_not_read_over_and_over(monkeypatch: Any, piece: bytes) -> None:
    read = 0

    class Counting(Splitter):
        def feed(self, data: bytes) -> list[bytes]:
            nonlocal read
            read += len(data)
            return super().feed(data)

    monkeypatch.setattr(a2a_answers, "Splitter", Counting)
    hearing = Talks().begin(call_of(is_stream=True), workflow("w-1"))
    assert hearing is not None
    for _ in range(2000):
        hearing.hear(piece)
    assert read == 2000 * len(piece)
