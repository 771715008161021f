"""The official clients, unpatched, against the very bytes and header fields of our refusals, cuts and errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import openai
import pytest

from meshd.call import Ask
from meshd.dialects.table import DIALECTS
from meshd.refusal import TABLE, Reason, Refused, refusal_headers
from tests.dialects.server import AnswerServer, serving

CALL_ID = "call-7f3"
MESSAGES: Any = [{"role": "user", "content": "Is it foggy?"}]
TERMINAL = [reason for reason in Reason if not TABLE[reason].is_retryable]
RETRYABLE = [reason for reason in Reason if TABLE[reason].is_retryable]

OPENAI_ERRORS: dict[int, type[openai.APIStatusError]] = {
    400: openai.BadRequestError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
    502: openai.InternalServerError,
    503: openai.InternalServerError,
    504: openai.InternalServerError,
}
ANTHROPIC_ERRORS: dict[int, type[anthropic.APIStatusError]] = {
    400: anthropic.BadRequestError,
    403: anthropic.PermissionDeniedError,
    404: anthropic.NotFoundError,
    409: anthropic.ConflictError,
    422: anthropic.UnprocessableEntityError,
    429: anthropic.RateLimitError,
    502: anthropic.InternalServerError,
    503: anthropic.InternalServerError,
    504: anthropic.InternalServerError,
}


@pytest.fixture(scope="module")
def server() -> Iterator[AnswerServer]:
    yield from serving()


def refused(reason: Reason) -> Refused:
    return Refused(reason, f"workflow w-1 of agent scout: {reason.value}, used 50,000 of 50,000; ask the team")


def prepare(server: AnswerServer, dialect: str, reason: Reason) -> str:
    no = refused(reason)
    content_type, body = DIALECTS[dialect].refusal_body(no, call_id=CALL_ID)
    headers = [(b"content-type", content_type), *refusal_headers(no, call_id=CALL_ID, workflow="w-1")]
    return server.prepare(no.status, headers, body)


def ask_openai(url: str, max_retries: int = 2) -> BaseException:
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=max_retries) as client,
        pytest.raises(openai.APIError) as caught,
    ):
        client.chat.completions.create(model="m", messages=MESSAGES)
    return caught.value


async def ask_openai_async(url: str, max_retries: int = 2) -> BaseException:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=max_retries) as client:
        with pytest.raises(openai.APIError) as caught:
            await client.chat.completions.create(model="m", messages=MESSAGES)
    return caught.value


def ask_anthropic(url: str, max_retries: int = 2) -> BaseException:
    with (
        anthropic.Anthropic(base_url=url, api_key="k", max_retries=max_retries) as client,
        pytest.raises(anthropic.APIError) as caught,
    ):
        client.messages.create(model="m", max_tokens=9, messages=MESSAGES)
    return caught.value


async def ask_anthropic_async(url: str, max_retries: int = 2) -> BaseException:
    async with anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=max_retries) as client:
        with pytest.raises(anthropic.APIError) as caught:
            await client.messages.create(model="m", max_tokens=9, messages=MESSAGES)
    return caught.value


def check_openai(error: BaseException, reason: Reason) -> None:
    row = TABLE[reason]
    assert isinstance(error, OPENAI_ERRORS.get(row.status, openai.APIStatusError))
    assert error.status_code == row.status
    assert error.code == row.code
    assert error.type == row.openai_type
    assert error.request_id == CALL_ID
    assert refused(reason).message in error.message


def check_anthropic(error: BaseException, reason: Reason) -> None:
    row = TABLE[reason]
    assert isinstance(error, ANTHROPIC_ERRORS.get(row.status, anthropic.APIStatusError))
    assert error.status_code == row.status
    assert error.request_id == CALL_ID
    assert refused(reason).message in error.message
    assert isinstance(error.body, dict)
    assert error.body["error"]["type"] == row.anthropic_type
    assert error.body["error"]["details"] == {"error_code": row.code}
    assert error.body["request_id"] == CALL_ID


CHECKS = {"openai": check_openai, "anthropic": check_anthropic}
SYNC = {"openai": ask_openai, "anthropic": ask_anthropic}
ASYNC = {"openai": ask_openai_async, "anthropic": ask_anthropic_async}


@pytest.mark.parametrize("reason", TERMINAL, ids=lambda reason: reason.value)
@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_a_terminal_refusal_is_asked_for_once_and_raised_with_its_type(
    server: AnswerServer, dialect: str, reason: Reason
) -> None:
    url = prepare(server, dialect, reason)
    CHECKS[dialect](SYNC[dialect](url), reason)
    assert server.asked(url) == 1
    CHECKS[dialect](asyncio.run(ASYNC[dialect](url)), reason)
    assert server.asked(url) == 2


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_a_retryable_refusal_is_tried_again_after_its_second(server: AnswerServer, dialect: str) -> None:
    # All at once: each client keeps to the `Retry-After` of one second that it was told.
    urls = [prepare(server, dialect, reason) for reason in RETRYABLE]
    with ThreadPoolExecutor(len(urls)) as pool:
        errors = list(pool.map(lambda url: SYNC[dialect](url, 1), urls))
    for url, reason, error in zip(urls, RETRYABLE, errors, strict=True):
        CHECKS[dialect](error, reason)
        assert server.asked(url) == 2


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_a_retryable_refusal_is_tried_again_by_the_async_client(server: AnswerServer, dialect: str) -> None:
    urls = [prepare(server, dialect, reason) for reason in RETRYABLE]

    async def all_at_once() -> list[BaseException]:
        return await asyncio.gather(*(ASYNC[dialect](url, 1) for url in urls))

    for url, reason, error in zip(urls, RETRYABLE, asyncio.run(all_at_once()), strict=True):
        CHECKS[dialect](error, reason)
        assert server.asked(url) == 2


@pytest.mark.parametrize("reason", list(Reason), ids=lambda reason: reason.value)
def test_a_plain_refusal_is_problem_details(reason: Reason) -> None:
    content_type, body = DIALECTS["plain"].refusal_body(refused(reason), call_id=CALL_ID)
    problem = json.loads(body)
    assert content_type == b"application/problem+json"
    assert problem["type"] == f"urn:meshd:reason:{reason.value}"
    assert problem["status"] == TABLE[reason].status
    assert problem["detail"] == refused(reason).message
    assert problem["instance"] == f"urn:meshd:call:{CALL_ID}"


# -- streams

SSE = [(b"content-type", b"text/event-stream")]


def openai_stream(server: AnswerServer, *, usage: bool, is_error: bool, tool: bool = False) -> str:
    options = {"stream_options": {"include_usage": True}} if usage else {}
    body = json.dumps({"model": "m", "messages": MESSAGES, "stream": True, "n": 2} | options).encode()
    meter = DIALECTS["openai"].meter(DIALECTS["openai"].read("chat", body))
    call = {"tool_calls": [{"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a'}}]}
    deltas = [{"role": "assistant", "content": "Thick "}, {"content": "fog"}, *([call] if tool else [])]
    events = []
    for index in (0, 1):
        for delta in deltas:
            chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m-1"}
            choices = [{"index": index, "delta": delta, "finish_reason": None}]
            events.append(b"data: " + json.dumps(chunk | {"choices": choices}).encode() + b"\n\n")
    for event in events:
        meter.read_event(event)
    end = meter.error_event(refused(Reason.BUDGET_EXHAUSTED)) if is_error else meter.cut(is_event_forwarded=True)
    return server.prepare(200, SSE, b"".join(events) + end)


def anthropic_stream(server: AnswerServer, *, is_error: bool, is_tool: bool = False, is_unstarted: bool = False) -> str:
    body = json.dumps({"model": "m", "max_tokens": 9, "messages": MESSAGES, "stream": True}).encode()
    ask: Ask = DIALECTS["anthropic"].read("chat", body)
    meter = DIALECTS["anthropic"].meter(ask)
    message: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m-1", "content": []}
    message |= {"stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 12, "output_tokens": 1}}
    block: dict[str, Any] = {"type": "text", "text": ""}
    delta: dict[str, Any] = {"type": "text_delta", "text": "Thick fog"}
    if is_tool:
        block = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}
        delta = {"type": "input_json_delta", "partial_json": '{"place": "Us'}
    members: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": delta},
    ]
    events = [f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in members]
    if is_unstarted:
        events = []
    for event in events:
        meter.read_event(event)
    end = meter.error_event(refused(Reason.BUDGET_EXHAUSTED)) if is_error else meter.cut(is_event_forwarded=True)
    return server.prepare(200, SSE, b"".join(events) + end)


@pytest.mark.parametrize("usage", [True, False])
def test_openai_reads_a_cut_as_the_end_for_length(server: AnswerServer, usage: bool) -> None:
    url = openai_stream(server, usage=usage, is_error=False)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="k") as client:
        chunks = list(client.chat.completions.create(model="m", messages=MESSAGES, stream=True, n=2))
    finished = {c.index: c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason}
    text = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)
    assert finished == {0: "length", 1: "length"}
    assert text == "Thick fogThick fog"
    reports = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert len(reports) == int(usage)
    if usage:
        assert reports[0].completion_tokens == len("Thick fog" * 2) // 4
        assert reports[0].total_tokens == reports[0].prompt_tokens + reports[0].completion_tokens


@pytest.mark.parametrize("tool", [True, False])
def test_openai_s_accumulating_helper_reads_a_cut(server: AnswerServer, tool: bool) -> None:
    url = openai_stream(server, usage=True, is_error=False, tool=tool)
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="k") as client,
        client.chat.completions.stream(model="m", messages=MESSAGES, n=2) as stream,
    ):
        kinds = [event.type for event in stream]
        snapshot = stream.current_completion_snapshot
    assert "content.done" in kinds
    assert [choice.finish_reason for choice in snapshot.choices] == ["length", "length"]
    assert snapshot.usage is not None


def test_openai_async_reads_a_cut(server: AnswerServer) -> None:
    url = openai_stream(server, usage=False, is_error=False)

    async def finish_reasons() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k") as client:
            stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
            return [c.finish_reason async for chunk in stream for c in chunk.choices if c.finish_reason]

    assert asyncio.run(finish_reasons()) == ["length", "length"]


def test_openai_raises_an_error_event(server: AnswerServer) -> None:
    url = openai_stream(server, usage=False, is_error=True)
    seen: list[Any] = []

    def run() -> None:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="k") as client:
            seen.extend(client.chat.completions.create(model="m", messages=MESSAGES, stream=True))

    with pytest.raises(openai.APIError) as caught:
        run()
    assert caught.value.code == "meshd_budget_exhausted"
    assert caught.value.type == "budget_exhausted"
    assert caught.value.message == refused(Reason.BUDGET_EXHAUSTED).message
    assert server.asked(url) == 1


@pytest.mark.parametrize(("is_tool", "is_unstarted"), [(False, False), (True, False), (False, True)])
def test_anthropic_reads_a_cut_as_the_end_for_length(server: AnswerServer, is_tool: bool, is_unstarted: bool) -> None:
    url = anthropic_stream(server, is_error=False, is_tool=is_tool, is_unstarted=is_unstarted)
    with anthropic.Anthropic(base_url=url, api_key="k") as client:
        with client.messages.stream(model="m", max_tokens=9, messages=MESSAGES) as stream:
            message = stream.get_final_message()
        kinds = [
            event.type for event in client.messages.create(model="m", max_tokens=9, messages=MESSAGES, stream=True)
        ]
    assert message.stop_reason == "max_tokens"
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == int(not is_unstarted)
    if not is_unstarted:
        assert message.usage.input_tokens == 12
        assert message.usage.output_tokens >= 2


def test_anthropic_async_reads_a_cut(server: AnswerServer) -> None:
    url = anthropic_stream(server, is_error=False)

    async def stop_reason() -> str | None:
        async with (
            anthropic.AsyncAnthropic(base_url=url, api_key="k") as client,
            client.messages.stream(model="m", max_tokens=9, messages=MESSAGES) as stream,
        ):
            return (await stream.get_final_message()).stop_reason

    assert asyncio.run(stop_reason()) == "max_tokens"


def test_anthropic_raises_an_error_event(server: AnswerServer) -> None:
    url = anthropic_stream(server, is_error=True)

    def run() -> None:
        with anthropic.Anthropic(base_url=url, api_key="k") as client:
            list(client.messages.create(model="m", max_tokens=9, messages=MESSAGES, stream=True))

    with pytest.raises(anthropic.APIStatusError) as caught:
        run()
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["type"] == "billing_error"
    assert caught.value.body["error"]["details"] == {"error_code": "meshd_budget_exhausted"}
    assert refused(Reason.BUDGET_EXHAUSTED).message in caught.value.message
    assert server.asked(url) == 1


def test_what_the_sdks_send_is_read(server: AnswerServer) -> None:
    url = openai_stream(server, usage=False, is_error=False)
    tools: Any = [{"type": "function", "function": {"name": "tide_table", "parameters": {}}}]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="k") as client:
        client.chat.completions.create(
            model="gpt-4o", messages=MESSAGES, tools=tools, stream=True, max_tokens=8
        ).close()
    ask = DIALECTS["openai"].read("chat", server.body(url))
    assert (ask.model, ask.tools, ask.is_stream, ask.output_cap) == ("gpt-4o", ("tide_table",), True, 8)
    # What the fast reading of arrays counts on: the SDKs write JSON without blanks.
    assert b'": ' not in server.body(url)
    url = anthropic_stream(server, is_error=False)
    tools = [{"name": "tide_table", "input_schema": {"type": "object"}}]
    with anthropic.Anthropic(base_url=url, api_key="k") as client:
        client.messages.create(model="claude-x", messages=MESSAGES, tools=tools, stream=True, max_tokens=8).close()
    ask = DIALECTS["anthropic"].read("chat", server.body(url))
    assert (ask.model, ask.tools, ask.is_stream, ask.output_cap) == ("claude-x", ("tide_table",), True, 8)
    assert b'": ' not in server.body(url)
