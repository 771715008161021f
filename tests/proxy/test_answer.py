"""What is read of a reply on its way, with real meters and the budget's real tickets."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest

from meshd.call import Wait
from meshd.dialects.table import DIALECTS
from meshd.filters.budget import Budget
from meshd.filters.contract import Cut
from meshd.filters.held import HeldStream
from meshd.ledger import Ledger
from meshd.outcome import Fault
from meshd.proxy.answer import AnswerError, PlainAnswer, StreamAnswer, inflater_for, splitter_of
from meshd_sdk.context import Context
from tests.filters.calls import call, outcome, policy

CAP = 100
CUT_AT = 1.5 * CAP + 256
WORDS = "four"
"""What each event of the streams here brings: four bytes, by the low guess one token."""


def openai_event(**members: Any) -> bytes:
    chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m-1"} | members
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def anthropic_event(kind: str, **members: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | members)}\n\n".encode()


def words_of(dialect: str, field: str) -> bytes:
    if dialect == "openai":
        return openai_event(choices=[{"index": 0, "delta": {field: WORDS}, "finish_reason": None}], usage=None)
    return anthropic_event("content_block_delta", index=0, delta={"type": f"{field}_delta", field: WORDS})


STREAMS = [
    ("openai", "content"),
    ("openai", "reasoning_content"),
    ("anthropic", "text"),
    ("anthropic", "thinking"),
    ("anthropic", "partial_json"),
]
of_each = pytest.mark.parametrize(("dialect", "field"), STREAMS)


async def held_stream(ledger: Ledger, dialect: str) -> tuple[Any, HeldStream]:
    """Return a meter and the budget's ticket for a streamed call that was granted CAP tokens."""
    document = policy("rules: [{name: all, match: {kind: llm}, budget: {tokens: 5000}}]")
    speaks = DIALECTS[dialect]
    body = {"model": "m", "messages": [{"role": "user", "content": "go on"}], "stream": True, "max_tokens": CAP}
    ask = speaks.read("chat", json.dumps(body).encode())
    made = call("openai" if dialect == "openai" else "claude", ask=ask, of=document)
    made.dialect = speaks
    made.context = Context(workflow="w1", agent="researcher", account="workflow/w1")
    made.plan = document.plan(made.target, "researcher", "chat")
    ticket = Budget(ledger).admit(made)
    if isinstance(ticket, Wait):
        ticket = await ticket.coroutine
    assert isinstance(ticket, HeldStream)
    return speaks.meter(ask), ticket


@of_each
@pytest.mark.parametrize("events_in_a_piece", [1, 3])
async def test_a_stream_that_runs_away_from_its_cap_is_cut(dialect: str, field: str, events_in_a_piece: int) -> None:
    ledger = Ledger.in_memory()
    try:
        meter, ticket = await held_stream(ledger, dialect)
        answer = StreamAnswer(meter, (ticket.on_event,), None)
        event = words_of(dialect, field)
        piece = event * events_in_a_piece
        forwarded = b""
        for _ in range(1000):
            forwarded += answer.data(piece)
            if answer.cut is not None:
                break
        assert answer.cut is not None, "an upstream that ignores its cap streams on without end"
        assert not answer.cut.is_error
        assert forwarded.count(event) == CUT_AT, "not one event beyond the cap and its margin"
        assert forwarded == event * int(CUT_AT)
        assert meter.cut().endswith(b"data: [DONE]\n\n" if dialect == "openai" else b'{"type":"message_stop"}\n\n')
        ticket.settle(outcome(200, Fault.CUT, is_forwarded=True))
        (account,) = ledger.snapshot()
        assert account.spent > CAP + 256, "what it was seen to make is charged"
        assert account.reserved == 0
    finally:
        await ledger.close()


@of_each
async def test_a_stream_that_keeps_to_its_cap_passes_whole(dialect: str, field: str) -> None:
    ledger = Ledger.in_memory()
    try:
        meter, ticket = await held_stream(ledger, dialect)
        answer = StreamAnswer(meter, (ticket.on_event,), None)
        event = words_of(dialect, field)
        assert b"".join(answer.data(event) for _ in range(CAP)) == event * CAP
        assert answer.cut is None
        ticket.settle(outcome(200, is_forwarded=True))
    finally:
        await ledger.close()


async def test_a_report_that_runs_away_is_believed_before_the_text() -> None:
    ledger = Ledger.in_memory()
    try:
        meter, ticket = await held_stream(ledger, "openai")
        answer = StreamAnswer(meter, (ticket.on_event,), None)
        usage = {"prompt_tokens": 9, "completion_tokens": 5000, "total_tokens": 5009}
        hidden = openai_event(choices=[{"index": 0, "delta": {"content": "x"}, "finish_reason": None}], usage=usage)
        assert answer.data(hidden) == b""
        assert answer.cut is not None
        ticket.settle(outcome(200, Fault.CUT, is_forwarded=True))
    finally:
        await ledger.close()


def meter_of(dialect: str) -> Any:
    speaks = DIALECTS[dialect]
    return speaks.meter(speaks.read("chat", b'{"model":"m","stream":true}'))


def test_every_watcher_sees_an_event_until_one_cuts() -> None:
    seen: list[str] = []

    def first(event: Any) -> Any:
        seen.append("first")
        return event

    def second(event: Any) -> Any:
        seen.append("second")
        return Cut("enough") if len(seen) > 3 else event

    answer = StreamAnswer(meter_of("openai"), (first, second, first), None)
    event = words_of("openai", "content")
    assert answer.data(event) == event
    assert answer.data(event) == b""
    assert answer.cut is not None
    assert seen == ["first", "second", "first", "first", "second"]


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "plain"])
@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"\xff\xfe", b'{"usage":', b"{}"])
@pytest.mark.parametrize("is_held", [True, False])
def test_a_plain_reply_of_nonsense_passes_as_it_is(dialect: str, body: bytes, is_held: bool) -> None:
    answer = PlainAnswer(meter_of(dialect), (lambda event: event,), None, is_held=is_held, bytes_max=100)
    passed = answer.data(body)
    assert passed == (b"" if is_held else body)
    assert passed + answer.end() == body


@pytest.mark.parametrize(
    ("headers", "is_stream"),
    [
        ([(b"content-type", b"text/event-stream")], True),
        ([(b"date", b"x"), (b"content-type", b"Text/Event-Stream; charset=utf-8")], True),
        ([(b"content-type", b"application/json")], False),
        ([(b"x-content-type", b"text/event-stream")], False),
        ([], False),
    ],
)
def test_a_stream_is_known_by_its_type(headers: list[tuple[bytes, bytes]], is_stream: bool) -> None:
    assert (splitter_of(meter_of("openai"), headers, 1 << 20) is not None) is is_stream


GEMINI: Any = DIALECTS["gemini"]
GEMINI_BODY = b'{"contents":[]}'


@pytest.mark.parametrize(
    ("meter", "content_type", "module"),
    [
        (meter_of("ollama"), b"application/x-ndjson", "ndjson"),
        (meter_of("ollama"), b"application/json; charset=utf-8", ""),
        (meter_of("ollama"), b"text/event-stream", ""),
        (meter_of("openai"), b"application/x-ndjson", ""),
        (GEMINI.meter(GEMINI.read("chat", GEMINI_BODY)), b"application/json", ""),
        (GEMINI.meter(GEMINI.read("chat", GEMINI_BODY)), b"text/event-stream", "sse"),
        (
            GEMINI.meter(GEMINI.read("chat", GEMINI_BODY, "/models/m:streamGenerateContent")),
            b"application/json; charset=UTF-8",
            "json_array",
        ),
        (meter_of("bedrock"), b"application/vnd.amazon.eventstream", "event_stream"),
        (meter_of("bedrock"), b"application/json", ""),
    ],
)
def test_the_meter_says_how_a_reply_is_framed(meter: Any, content_type: bytes, module: str) -> None:
    splitter = splitter_of(meter, [(b"content-type", content_type)], 1 << 20)
    assert type(splitter).__module__.rpartition(".")[2] == (module or "builtins")


def test_a_frame_that_is_broken_breaks_the_answer() -> None:
    meter = meter_of("bedrock")
    splitter = splitter_of(meter, [(b"content-type", b"application/vnd.amazon.eventstream")], 1 << 20)
    answer = StreamAnswer(meter, (), None, splitter)
    with pytest.raises(AnswerError, match="checksum"):
        answer.data(b"event: no frame at all")


def test_the_rest_of_an_array_is_forwarded() -> None:
    meter = GEMINI.meter(GEMINI.read("chat", GEMINI_BODY, "/models/m:streamGenerateContent"))
    splitter = splitter_of(meter, [(b"content-type", b"application/json")], 1 << 20)
    answer = StreamAnswer(meter, (), None, splitter)
    body = b'[{"candidates":[{"finishReason":"STOP"}]}\n]\n'
    assert answer.data(body[:7]) + answer.data(body[7:]) + answer.end() == body
    assert meter.is_terminal


@pytest.mark.parametrize("value", [b"", b"identity", b"Identity, ", b" "])
def test_an_encoding_that_is_none_needs_no_decoder(value: bytes) -> None:
    assert inflater_for([(b"content-type", b"x"), (b"content-encoding", value)], 100) is None


@pytest.mark.parametrize("value", [b"br", b"gzip, br", b"gzip, gzip", b"nonsense"])
def test_an_encoding_that_cannot_be_read_is_said(value: bytes) -> None:
    with pytest.raises(AnswerError, match="encoding"):
        inflater_for([(b"content-encoding", value)], 100)


def test_an_encoded_stream_is_metered() -> None:
    event = words_of("openai", "content")
    inflater = inflater_for([(b"content-encoding", b"gzip")], 10_000)
    answer = StreamAnswer(meter_of("openai"), (), inflater)
    assert answer.data(gzip.compress(event * 3)) == event * 3
    assert answer.meter.output_estimate == 3


def test_a_bomb_is_no_answer() -> None:
    answer = StreamAnswer(meter_of("openai"), (), inflater_for([(b"content-encoding", b"gzip")], 10_000))
    with pytest.raises(AnswerError, match="caps"):
        answer.data(gzip.compress(b"x" * 10_000_000))


def gzipped_answer() -> PlainAnswer:
    inflater = inflater_for([(b"content-encoding", b"gzip")], 10_000)
    return PlainAnswer(meter_of("openai"), (), inflater, is_held=False, bytes_max=10_000)


MEMBERS = b"".join(map(gzip.compress, (b'{"usage":{"prompt_tokens":5,', b"", b'"completion_tokens":2}}')))


@pytest.mark.parametrize("piece_bytes", [1, 2, 7, len(MEMBERS)])
@pytest.mark.parametrize("behind", [b"", b"\0" * 30, b"no gzip"], ids=["nothing", "zeros", "else"])
def test_a_gzip_of_several_members_is_decoded_to_its_end(piece_bytes: int, behind: bytes) -> None:
    answer, body = gzipped_answer(), MEMBERS + behind
    out = b"".join(answer.data(body[at : at + piece_bytes]) for at in range(0, len(body), piece_bytes))
    assert out + answer.end() == b'{"usage":{"prompt_tokens":5,"completion_tokens":2}}'
    assert answer.meter.usage is not None
    assert answer.meter.usage.total == 7


@pytest.mark.parametrize("cut_bytes", [1, 8, 30])
def test_a_gzip_that_is_cut_short_is_no_whole_answer(cut_bytes: int) -> None:
    answer = gzipped_answer()
    answer.data(MEMBERS[:-cut_bytes])
    with pytest.raises(AnswerError, match="in the middle"):
        answer.end()


def test_a_compressed_body_of_nothing_is_whole() -> None:
    assert gzipped_answer().end() == b""


def test_a_compressed_stream_ends_with_its_last_word() -> None:
    event = words_of("openai", "content")
    for last, is_whole in ((b"data: [DONE]\n\n", True), (b"", False)):
        flushed = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
        body = flushed.compress(event + last) + flushed.flush(zlib.Z_SYNC_FLUSH)
        answer = StreamAnswer(meter_of("openai"), (), inflater_for([(b"content-encoding", b"gzip")], 10_000))
        assert answer.data(body) == event + last
        if is_whole:
            assert answer.end() == b""
        else:
            with pytest.raises(AnswerError, match="in the middle"):
                answer.end()
