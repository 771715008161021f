"""The stand-in provider, as the official SDKs and the scenes of the demo meet it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import aiohttp
import anthropic
import openai
import pytest

from demo.llm_forms import Account, BadRequestError, count_tokens, understand
from demo.llm_server import Provider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Served:
    """A provider that listens, with a client of each SDK."""

    def __init__(self, provider: Provider, port: int, control_port: int) -> None:
        self.provider = provider
        self.url = f"http://127.0.0.1:{port}"
        self.control = f"http://127.0.0.1:{control_port}"
        self.openai = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="key-o", max_retries=0)
        self.anthropic = anthropic.AsyncAnthropic(base_url=self.url, api_key="key-a", max_retries=0)

    def account(self, key: str) -> tuple[int, int, int]:
        account = self.provider.books.accounts[key]
        return account.calls, account.input_tokens, account.output_tokens


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    provider = Provider()
    found = Served(provider, *await provider.start(0, 0))
    yield found
    await found.openai.close()
    await found.anthropic.close()
    await provider.stop()


def messages(text: str) -> Any:
    return [{"role": "user", "content": text}]


async def test_a_plain_chat_reports_what_the_books_say(served: Served) -> None:
    reply = await served.openai.chat.completions.create(model="m", messages=messages("hi in 9 words"))
    assert reply.usage is not None
    assert len((reply.choices[0].message.content or "").split()) == 9
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (7, 9)
    assert reply.choices[0].finish_reason == "stop"
    assert served.account("key-o") == (1, 7, 9)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_the_output_cap_is_obeyed_and_said(served: Served, name: str) -> None:
    reply = await served.openai.chat.completions.create(  # type: ignore[call-overload]
        model="m", messages=messages("hi in 900 words"), **{name: 5}
    )
    assert reply.usage.completion_tokens == 5
    assert reply.choices[0].finish_reason == "length"
    assert served.account("key-o")[2] == 5


@pytest.mark.parametrize("is_asked", [True, False])
async def test_a_chat_streams_in_pieces_with_usage_only_where_asked(served: Served, is_asked: bool) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if is_asked else {}
    stream = await served.openai.chat.completions.create(
        model="m", messages=messages("hi in 30 words"), stream=True, **options
    )
    chunks = [chunk async for chunk in stream]
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    usages = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert len(pieces) == 5
    assert len("".join(pieces).split()) == 30
    assert usages == ([30] if is_asked else [])
    assert served.account("key-o")[2] == 30


async def test_messages_stream_in_pieces_and_report_usage(served: Served) -> None:
    async with served.anthropic.messages.stream(
        model="m", max_tokens=20, messages=messages("hi in 30 words")
    ) as stream:
        pieces = [text async for text in stream.text_stream]
        final = await stream.get_final_message()
    assert len(pieces) == 4
    assert (final.usage.input_tokens, final.usage.output_tokens) == (7, 20)
    assert final.stop_reason == "max_tokens"
    assert served.account("key-a") == (1, 7, 20)


async def test_a_plain_message_reports_usage(served: Served) -> None:
    reply = await served.anthropic.messages.create(model="m", max_tokens=50, messages=messages("hi in 3 words"))
    assert (reply.usage.output_tokens, reply.stop_reason) == (3, "end_turn")


async def test_a_stream_that_nobody_reads_to_its_end_is_billed_for_what_was_made(served: Served) -> None:
    stream = await served.openai.chat.completions.create(model="m", messages=messages("hi in 5000 words"), stream=True)
    await anext(aiter(stream))
    await stream.close()
    assert served.account("key-o")[:2] == (1, 7)
    assert served.account("key-o")[2] > 0


async def test_a_dead_provider_drops_connections_and_counts_them(served: Served) -> None:
    await served.openai.models.list()
    async with aiohttp.ClientSession() as http:
        await http.post(f"{served.control}/behave", json={"mode": "dead"})
        before = served.provider.books.connections
        with pytest.raises(openai.APIConnectionError):
            await served.openai.models.list()
        assert served.provider.books.connections == before + 1
        await http.post(f"{served.control}/behave", json={"mode": "answer"})
        assert [model.id async for model in await served.openai.models.list()] == ["stand-in"]
        async with http.get(f"{served.control}/books") as reply:
            books = json.loads(await reply.text())
    assert books["connections"] == served.provider.books.connections
    assert books["mode"] == "answer"


async def test_a_failing_provider_answers_500_and_bills_nothing(served: Served) -> None:
    served.provider.books.mode = "error"
    with pytest.raises(openai.InternalServerError):
        await served.openai.chat.completions.create(model="m", messages=messages("hi"))
    assert served.provider.books.accounts == {}


async def test_an_unknown_mode_is_refused(served: Served) -> None:
    async with aiohttp.ClientSession() as http, http.post(f"{served.control}/behave", json={"mode": "odd"}) as reply:
        assert reply.status == 400
    assert served.provider.books.mode == "answer"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b"\xff\xfe",
        b"{}",
        b'{"messages": []}',
        b'{"messages": ["hi"]}',
        b'{"messages": [{"content": "hi"}], "max_tokens": 0}',
        b'{"messages": [{"content": "hi"}], "max_tokens": "many"}',
        b'{"messages": [{"content": "hi"}], "max_completion_tokens": true}',
    ],
)
def test_nonsense_is_refused_and_costs_nothing(raw: bytes) -> None:
    account = Account()
    with pytest.raises(BadRequestError):
        understand(raw, account)
    assert account == Account()


async def test_nonsense_over_http_answers_400_and_no_key_401(served: Served) -> None:
    async with aiohttp.ClientSession() as http:
        url = f"{served.url}/v1/messages"
        async with http.post(url, data=b"{", headers={"x-api-key": "k"}) as reply:
            assert (reply.status, (await reply.json())["error"]["type"]) == (400, "invalid_request_error")
        async with http.post(url, data=b"{}") as reply:
            assert reply.status == 401


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("one two", 2), ("a, b!!", 4), ("don't", 3), ("  \n ", 0), ("übermäßig", 1)]
)
def test_tokens_are_words_and_runs_of_marks(text: str, tokens: int) -> None:
    assert count_tokens(text) == tokens
    assert count_tokens(text) <= len(text.encode())
