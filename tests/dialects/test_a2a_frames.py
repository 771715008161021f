"""Usage in the messages of a gRPC answer: read in whatever pieces it comes, and never more than that."""

from __future__ import annotations

import random
from typing import Any

import pytest

from meshd.dialects.a2a_answer_fields import ANSWERS
from meshd.dialects.a2a_extension import EXTENSION
from meshd.dialects.a2a_frames import Frames, is_read
from meshd.dialects.a2a_usage import READ_BYTES_MAX, Reports
from meshd.dialects.protobuf_writing import encoded, frame

STREAM = "SendStreamingMessage"


def said(given: int, made: int, more: str = "") -> bytes:
    metadata = {EXTENSION: {"usage": {"input_tokens": given, "output_tokens": made}}, "more": more}
    status = {"state": "TASK_STATE_WORKING"}
    event = {"statusUpdate": {"taskId": "t-1", "status": status, "metadata": metadata}}
    return frame(encoded(event, ANSWERS[STREAM]))


def heard(answer: bytes, *, size: int = 1 << 20, method: str = STREAM) -> tuple[Any, str]:
    reports, frames = Reports(is_any=True), Frames(method)
    for at in range(0, len(answer), size):
        frames.feed(answer[at : at + size], reports)
    return reports.more_than((0, 0), is_new=True), reports.task_id


@pytest.mark.parametrize("size", [1, 2, 5, 7, 64, 1 << 20])
def test_each_message_is_read_however_it_is_cut(size: int) -> None:
    assert heard(said(10, 1) + said(30, 4), size=size) == ((30, 4), "t-1")
    assert heard((said(10, 1) + said(30, 4))[:-1], size=size) == ((10, 1), "t-1")


@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_what_is_too_long_or_compressed_is_passed_over(size: int) -> None:
    long = said(99, 99, "x" * READ_BYTES_MAX)
    squeezed = b"\1" + said(77, 77)[1:]
    assert heard(long + squeezed + said(3, 2) + long, size=size) == ((3, 2), "t-1")


def test_nonsense_reports_nothing_and_holds_little() -> None:
    chance = random.Random(7)
    for _ in range(300):
        junk = bytearray(said(5, 5))
        for _ in range(3):
            junk[chance.randrange(5, len(junk))] = chance.randrange(256)
        heard(bytes(junk), size=chance.randrange(1, 40))
    endless = Frames(STREAM)
    reports = Reports(is_any=True)
    endless.feed(b"\0\xff\xff\xff\xff" + b"usage" * 100_000, reports)
    assert len(endless._pending) == 0
    assert reports.more_than((0, 0), is_new=True) == (0, 0)


def test_only_answers_of_1_0_are_read() -> None:
    assert all(is_read(method) for method in ("SendMessage", STREAM, "GetTask", "CancelTask", "SubscribeToTask"))
    assert not is_read("message/send")
