"""openai and anthropic as they are: plain and streamed, sync and async, through the sidecar and past it."""

from __future__ import annotations

from typing import Any

import anthropic
import openai
import pytest

from meshd_sdk import current
from tests.sdk.instrument.world import CHAT, World

pytestmark = pytest.mark.usefixtures("instrumented")
KEY = "sk-models"


def openai_plain(base: str) -> str:
    with openai.OpenAI(base_url=f"{base}/llm/v1", api_key=KEY, max_retries=0) as client:
        return client.chat.completions.create(**CHAT).choices[0].message.content or ""


def openai_streamed(base: str) -> str:
    with openai.OpenAI(base_url=f"{base}/llm/v1", api_key=KEY, max_retries=0) as client:
        chunks = client.chat.completions.create(**CHAT, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def openai_helper(base: str) -> str:
    with (
        openai.OpenAI(base_url=f"{base}/llm/v1", api_key=KEY, max_retries=0) as client,
        client.chat.completions.stream(**CHAT) as stream,
    ):
        return stream.get_final_completion().choices[0].message.content or ""


async def openai_async(base: str) -> str:
    async with openai.AsyncOpenAI(base_url=f"{base}/llm/v1", api_key=KEY, max_retries=0) as client:
        return (await client.chat.completions.create(**CHAT)).choices[0].message.content or ""


async def openai_async_streamed(base: str) -> str:
    async with openai.AsyncOpenAI(base_url=f"{base}/llm/v1", api_key=KEY, max_retries=0) as client:
        chunks = await client.chat.completions.create(**CHAT, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices])


def anthropic_plain(base: str) -> str:
    with anthropic.Anthropic(base_url=f"{base}/claude", api_key=KEY, max_retries=0) as client:
        return client.messages.create(**CHAT).content[0].text  # type: ignore[union-attr]


def anthropic_streamed(base: str) -> str:
    with (
        anthropic.Anthropic(base_url=f"{base}/claude", api_key=KEY, max_retries=0) as client,
        client.messages.stream(**CHAT) as stream,
    ):
        return "".join(stream.text_stream)


async def anthropic_async(base: str) -> str:
    async with anthropic.AsyncAnthropic(base_url=f"{base}/claude", api_key=KEY, max_retries=0) as client:
        return (await client.messages.create(**CHAT)).content[0].text  # type: ignore[union-attr]


async def anthropic_async_streamed(base: str) -> str:
    async with (
        anthropic.AsyncAnthropic(base_url=f"{base}/claude", api_key=KEY, max_retries=0) as client,
        client.messages.stream(**CHAT) as stream,
    ):
        return "".join([text async for text in stream.text_stream])


ALL = [
    openai_plain,
    openai_streamed,
    openai_helper,
    openai_async,
    openai_async_streamed,
    anthropic_plain,
    anthropic_streamed,
    anthropic_async,
    anthropic_async_streamed,
]
each = pytest.mark.parametrize("ask", ALL, ids=lambda ask: ask.__name__)


def bound(ask: Any, base: str) -> Any:
    """An act that asks there: a coroutine function where `ask` is one."""
    import inspect

    if inspect.iscoroutinefunction(ask):

        async def act(_: Any) -> Any:
            return await ask(base)

        return act
    return lambda _: ask(base)


@each
def test_a_model_called_for_an_answer_is_paid_by_its_workflow(world: World, ask: Any) -> None:
    workflow, answer = world.tell(bound(ask, world.url))
    assert answer.strip() == "word word word word word"
    world.is_charged(workflow, "claude" if ask.__name__.startswith("anthropic") else "llm")
    world.is_paid(workflow)


@each
def test_a_provider_called_directly_is_told_nothing(world: World, ask: Any) -> None:
    before = len(world.provider.seen)
    assert world.tell(bound(ask, world.provider.url))[1].strip() == "word word word word word"
    (seen,) = world.provider.seen[before:]
    assert [name for name in seen.headers if name.startswith(("x-meshd", "trace", "baggage"))] == []


def test_extra_headers_win(world: World) -> None:
    tokens: list[str] = []

    def first(_: Any) -> None:
        now = current()
        assert now is not None
        tokens.append(now.token)

    earlier, _ = world.tell(first)

    def second(_: Any) -> None:
        with openai.OpenAI(base_url=f"{world.url}/llm/v1", api_key=KEY, max_retries=0) as client:
            client.chat.completions.create(**CHAT, extra_headers={"x-meshd-context": tokens[0]})

    world.tell(second)
    world.is_charged(earlier, "llm")


def test_a_retry_carries_the_context_too(world: World) -> None:
    def act(_: Any) -> str:
        headers = {"x-act": '{"id": "again", "statuses": [500, 200]}'}
        with openai.OpenAI(base_url=f"{world.url}/llm/v1", api_key=KEY, max_retries=2) as client:
            return client.chat.completions.create(**CHAT, extra_headers=headers).choices[0].message.content or ""

    workflow, _ = world.tell(act)
    world.is_paid(workflow)
