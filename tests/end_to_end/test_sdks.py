"""The official SDKs get through meshd what they get directly: each case runs both ways and is compared."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import anthropic
import openai
import pytest

from tests.end_to_end.documents import document
from tests.end_to_end.provider import Provider
from tests.end_to_end.sidecar import Sidecar, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "say something short"}]}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
CLAUDE_TOOLS = [{"name": "look", "input_schema": {"type": "object", "properties": {}}}]
KEY = "sk-sdks"


@pytest.fixture(scope="module")
def through(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """One sidecar for the whole file: its default rules, and a budget that nothing here exhausts."""
    one = Sidecar(tmp_path_factory.mktemp("sdks") / "home")
    document_ = document(provider.url, "limits: {unattributed_tokens: 1000000}\n")
    yield one.start(document_)
    one.kill()


@pytest.fixture
def bases(through: Sidecar, provider: Provider) -> list[tuple[str, str]]:
    """(OpenAI's base URL, Anthropic's): directly, and through meshd."""
    return [
        (f"{provider.url}/v1", provider.url),
        (f"{through.url}/openai/v1", f"{through.url}/anthropic"),
    ]


def act(**what: Any) -> dict[str, str]:
    return {"x-act": json.dumps(what)}


def clients(base: tuple[str, str], **options: Any) -> tuple[openai.OpenAI, anthropic.Anthropic]:
    return (
        openai.OpenAI(base_url=base[0], api_key=KEY, **({"max_retries": 0} | options)),
        anthropic.Anthropic(base_url=base[1], api_key=KEY, **({"max_retries": 0} | options)),
    )


def both(
    bases: list[tuple[str, str]], case: Callable[[openai.OpenAI, anthropic.Anthropic], Any], **options: Any
) -> Any:
    """Run `case` directly and through meshd, hold the two to be the same, and return what it gave."""
    results = []
    for base in bases:
        one, other = clients(base, **options)
        with one, other:
            results.append(case(one, other))
    assert results[1] == results[0]
    return results[1]


def test_a_plain_answer(bases: list[tuple[str, str]]) -> None:
    answer = both(bases, lambda one, _: one.chat.completions.create(**ASK).model_dump())
    assert answer["usage"]["total_tokens"] == 6 + 5
    answer = both(bases, lambda _, other: other.messages.create(**ASK, max_tokens=3).model_dump())
    assert (answer["stop_reason"], answer["usage"]["output_tokens"]) == ("max_tokens", 3)


@pytest.mark.parametrize(
    "options", [{}, {"include_usage": True}, {"include_usage": False}], ids=["unasked", "asked", "declined"]
)
def test_a_chat_stream_chunk_by_chunk(bases: list[tuple[str, str]], options: dict[str, bool]) -> None:
    def case(one: openai.OpenAI, _: Any) -> Any:
        more = {"stream_options": options} if options else {}
        with one.chat.completions.create(**ASK, stream=True, extra_headers=act(words=9), **more) as stream:
            return [chunk.model_dump() for chunk in stream]

    chunks = both(bases, case)
    usages = [chunk["usage"] for chunk in chunks if chunk["usage"]]
    assert [usage["completion_tokens"] for usage in usages] == ([9] if options.get("include_usage") else [])
    assert (
        "".join(chunk["choices"][0]["delta"]["content"] or "" for chunk in chunks if chunk["choices"]).count("w") == 9
    )


def test_a_messages_stream_event_by_event(bases: list[tuple[str, str]]) -> None:
    def case(_: Any, other: anthropic.Anthropic) -> Any:
        with other.messages.create(**ASK, max_tokens=20, stream=True, extra_headers=act(words=9)) as stream:
            return [event.model_dump() for event in stream]

    assert both(bases, case)[-1]["type"] == "message_stop"

    def accumulated(_: Any, other: anthropic.Anthropic) -> Any:
        with other.messages.stream(**ASK, max_tokens=20) as stream:
            return stream.get_final_message().model_dump()

    assert both(bases, accumulated)["usage"]["output_tokens"] == 5


def test_the_chat_helper_that_gathers_a_stream(bases: list[tuple[str, str]]) -> None:
    def case(one: openai.OpenAI, _: Any) -> Any:
        with one.chat.completions.stream(**ASK) as stream:
            kinds = [event.type for event in stream]
            return kinds, stream.get_final_completion().choices[0].message.content

    assert both(bases, case)[1] == "word " * 5


def what_ends(stream: Any) -> Exception:
    """Read to the end, which is an error, of whichever library of the SDK's."""
    try:
        list(stream)
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError("it ended as if it were whole")


def headers_of(raw: Any) -> dict[str, str]:
    """The fields that are the provider's own: no connection's, no clock's, none of meshd's additions."""
    left_out = {"date", "server", "connection", "keep-alive", "transfer-encoding", "via"}
    return {key: value for key, value in raw.headers.items() if key not in left_out and not key.startswith("x-meshd")}


def test_raw_responses(bases: list[tuple[str, str]]) -> None:
    def openai_case(one: openai.OpenAI, _: Any) -> Any:
        raw = one.chat.completions.with_raw_response.create(**ASK)
        return raw.status_code, headers_of(raw), raw.parse().model_dump(), raw.http_response.content

    def anthropic_case(_: Any, other: anthropic.Anthropic) -> Any:
        raw = other.messages.with_raw_response.create(**ASK, max_tokens=9)
        return raw.status_code, headers_of(raw), raw.parse().model_dump(), raw.http_response.content

    assert both(bases, openai_case)[1]["x-provider"] == "yes"
    assert both(bases, anthropic_case)[0] == 200


def test_streaming_responses(bases: list[tuple[str, str]]) -> None:
    def openai_case(one: openai.OpenAI, _: Any) -> Any:
        with one.chat.completions.with_streaming_response.create(**ASK, stream=True) as reply:
            return reply.status_code, headers_of(reply), list(reply.iter_lines())

    def anthropic_case(_: Any, other: anthropic.Anthropic) -> Any:
        with other.messages.with_streaming_response.create(**ASK, max_tokens=9, stream=True) as reply:
            return reply.status_code, headers_of(reply), b"".join(reply.iter_bytes())

    assert "data: [DONE]" in both(bases, openai_case)[2]
    assert b"message_stop" in both(bases, anthropic_case)[2]


def test_tool_calls(bases: list[tuple[str, str]]) -> None:
    called = act(tool="look", words=3)

    def plain(one: openai.OpenAI, other: anthropic.Anthropic) -> Any:
        chat = one.chat.completions.create(**ASK, tools=TOOLS, extra_headers=called)  # type: ignore[call-overload]
        message = other.messages.create(**ASK, max_tokens=9, tools=CLAUDE_TOOLS, extra_headers=called)
        return chat.model_dump(), message.model_dump()

    def streamed(one: openai.OpenAI, other: anthropic.Anthropic) -> Any:
        with one.chat.completions.create(**ASK, tools=TOOLS, stream=True, extra_headers=called) as stream:  # type: ignore[call-overload]
            chunks = [chunk.model_dump() for chunk in stream]
        with other.messages.stream(**ASK, max_tokens=9, tools=CLAUDE_TOOLS, extra_headers=called) as events:  # type: ignore[arg-type]
            return chunks, events.get_final_message().model_dump()

    chat, message = both(bases, plain)
    assert chat["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "look"
    assert message["content"][0]["name"] == "look"
    assert both(bases, streamed)[1]["stop_reason"] == "tool_use"


def test_embeddings_and_models(bases: list[tuple[str, str]]) -> None:
    def case(one: openai.OpenAI, _: Any) -> Any:
        made = one.embeddings.create(model="e", input=["a b c", "d"], encoding_format="float")
        return made.model_dump(), [model.model_dump() for model in one.models.list()]

    assert both(bases, case)[0]["usage"]["total_tokens"] == 3 + 4


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 429, 500, 503, 529])
def test_the_providers_own_errors_pass_untouched(bases: list[tuple[str, str]], status: int) -> None:
    def case(one: openai.OpenAI, other: anthropic.Anthropic) -> Any:
        found = []
        for create, library in ((one.chat.completions.create, openai), (other.messages.create, anthropic)):
            # A model of its own, so that these failures open no breaker of another test's.
            asked = ASK | {"model": f"m{status}", "max_tokens": 5}
            with pytest.raises(library.APIStatusError) as caught:  # type: ignore[attr-defined]
                create(**asked, extra_headers=act(id=uuid.uuid4().hex, statuses=[status]))
            error = caught.value
            found.append((type(error), error.status_code, error.body, error.message, headers_of(error.response)))
        return found

    openai_error, anthropic_error = both(bases, case)
    assert openai_error[1] == anthropic_error[1] == status
    assert openai_error[2] == {"message": f"words of theirs {status}", "type": "theirs", "param": None, "code": "c1"}


@pytest.mark.parametrize("statuses", [[500, 200], [429, 429, 200], [503, 500, 200]], ids=str)
def test_a_clients_retries_and_ours_end_in_the_same_answer(
    bases: list[tuple[str, str]], provider: Provider, statuses: list[int]
) -> None:
    ids: list[str] = []

    def case(one: openai.OpenAI, other: anthropic.Anthropic) -> Any:
        found = []
        for create in (one.chat.completions.create, other.messages.create):
            ids.append(uuid.uuid4().hex)
            asked = ASK | {"model": f"retry-{ids[-1]}", "max_tokens": 5}
            answer = create(**asked, extra_headers=act(id=ids[-1], statuses=statuses))
            found.append(answer.model_dump(exclude={"model"}))
        return found

    both(bases, case, max_retries=3)
    assert [len(provider.of(id)) for id in ids] == [len(statuses)] * 4


def test_a_clients_own_timeout(bases: list[tuple[str, str]], provider: Provider) -> None:
    ids: list[str] = []

    def case(one: openai.OpenAI, other: anthropic.Anthropic) -> Any:
        found = []
        for create, library in ((one.chat.completions.create, openai), (other.messages.create, anthropic)):
            ids.append(uuid.uuid4().hex)
            with pytest.raises(library.APITimeoutError) as caught:  # type: ignore[attr-defined]
                create(**ASK, max_tokens=9, timeout=0.3, extra_headers=act(id=ids[-1], holds=True))
            ids.append(uuid.uuid4().hex)
            paused = act(id=ids[-1], pause_at=2, words=9)
            with create(**ASK, max_tokens=9, stream=True, timeout=1.5, extra_headers=paused) as stream:
                silent = what_ends(stream)
            found.append((str(caught.value), type(silent)))
        return found

    try:
        both(bases, case)
    finally:
        for id in ids:
            provider.go_on(id)


def test_a_stream_that_the_caller_leaves(bases: list[tuple[str, str]], provider: Provider) -> None:
    def case(one: openai.OpenAI, other: anthropic.Anthropic) -> Any:
        found = []
        for create in (one.chat.completions.create, other.messages.create):
            id = uuid.uuid4().hex
            with create(**ASK, max_tokens=40, stream=True, extra_headers=act(id=id, pause_at=4, words=40)) as stream:
                events = iter(stream)
                found.append([next(events).model_dump() for _ in range(3)])
            provider.go_on(id)
            until(lambda id=id: provider.of(id)[0].is_ended.is_set())
        return found

    assert len(both(bases, case)[0]) == 3


def test_a_stream_that_the_provider_breaks_off_is_broken_through_meshd_too(bases: list[tuple[str, str]]) -> None:
    def case(one: openai.OpenAI, other: anthropic.Anthropic) -> Any:
        found = []
        for create, library in ((one.chat.completions.create, openai), (other.messages.create, anthropic)):
            asked = ASK | {"model": "breaks-off"}
            with create(**asked, max_tokens=9, stream=True, extra_headers=act(dies_at=4, words=9)) as stream:
                first = next(iter(stream)).model_dump()
                broken = what_ends(stream)
            found.append((type(broken), isinstance(broken, library.APIError), first))  # type: ignore[attr-defined]
        return found

    both(bases, case)


async def test_the_async_clients(bases: list[tuple[str, str]]) -> None:
    results = []
    for base in bases:
        async with (
            openai.AsyncOpenAI(base_url=base[0], api_key=KEY) as one,
            anthropic.AsyncAnthropic(base_url=base[1], api_key=KEY) as other,
        ):
            chat = await one.chat.completions.create(**ASK)
            chunks = [
                chunk.model_dump()
                async for chunk in await one.chat.completions.create(
                    **ASK, stream=True, stream_options={"include_usage": True}
                )
            ]
            message = await other.messages.create(**ASK, max_tokens=9)
            async with other.messages.stream(**ASK, max_tokens=9) as stream:
                final = (await stream.get_final_message()).model_dump()
            made = await one.embeddings.create(model="e", input="a b", encoding_format="float")
            models = [model.model_dump() async for model in one.models.list()]
            with pytest.raises(anthropic.RateLimitError) as caught:
                await other.with_options(max_retries=0).messages.create(
                    **(ASK | {"model": "busy"}), max_tokens=9, extra_headers=act(statuses=[429], id=uuid.uuid4().hex)
                )
            raw = await one.chat.completions.with_raw_response.create(**ASK)
            answers = [answer.model_dump() for answer in (chat, message, made, raw.parse())]
            results.append((answers, chunks, final, models, caught.value.body, headers_of(raw)))
    assert results[1] == results[0]


async def test_an_async_stream_that_is_cancelled_frees_everything(through: Sidecar, provider: Provider) -> None:
    import asyncio

    id = uuid.uuid4().hex

    async def read() -> None:
        async with openai.AsyncOpenAI(base_url=f"{through.url}/openai/v1", api_key=KEY) as one:
            async for _ in await one.chat.completions.create(
                **ASK, stream=True, extra_headers=act(id=id, pause_at=3, words=30)
            ):
                began.set()

    began = asyncio.Event()
    task = asyncio.create_task(read())
    await asyncio.wait_for(began.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    provider.go_on(id)
    await asyncio.to_thread(until, lambda: through.admin("/v1/status")["status"]["calls_open"] == 0)
    await asyncio.to_thread(until, lambda: sum(account[2] for account in through.accounts().values()) == 0)
