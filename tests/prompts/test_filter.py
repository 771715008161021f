"""The filter: what becomes of a call that names prompts, in each dialect, and that others cost nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from meshd.call import Call, Wait
from meshd.chain import FILTERS
from meshd.dialects.table import DIALECTS
from meshd.engines.memory import MemoryStore
from meshd.engines.port import StoreError
from meshd.filters.allow_list import AllowList
from meshd.filters.approval import Approval
from meshd.filters.budget import Budget
from meshd.filters.idempotency import Idempotency
from meshd.filters.prompts import Prompts
from meshd.filters.routing import Routing
from meshd.filters.turns import Turns
from meshd.prompts.finding import NOTHING
from meshd.prompts.noting import Used
from meshd.prompts.record import digest_of, made
from meshd.prompts.registry import Registry
from meshd.refusal import Reason, Refused
from meshd.telemetry import names
from meshd.telemetry.span_attributes import attributes
from meshd_sdk.context import Context
from tests.filters.calls import call, policy

POLICY = policy(
    """
rules:
  - name: cheaper
    match: {model: dear}
    route: {model: gpt-4o}
  - name: few
    match: {model: few}
    allow: {prompts: ["sum*"]}
  - name: none
    match: {model: none}
    allow: {prompts: []}
  - name: trial
    shadow: true
    match: {model: trial}
    allow: {prompts: []}
limits: {request_body: 4KiB}
"""
)
TEXT = "Summarise {{topic}}."


@pytest.fixture
async def prompts() -> AsyncIterator[Prompts]:
    store = MemoryStore()
    registry = Registry(lambda: store, lambda: 1.0)
    await registry.shelf.add("", made("summarise", "1.2.0", TEXT))
    await registry.shelf.add("", made("long", "1.0.0", "{{a}}" + "x" * 3000))
    await registry.shelf.promote("", "summarise", "production", lambda _: {"1.2.0": 1}, None, 1.0)
    yield Prompts(registry)
    await registry.close()


def read(
    body: dict[str, Any] | bytes, dialect: str = "openai", path: str = "/v1/chat/completions", workflow: str = "wf"
) -> Call:
    """Make a call as it stands before the filter: located, read, routed."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    made_ = call("claude" if dialect == "anthropic" else "openai", path=path, of=POLICY, body=raw)
    made_.dialect = DIALECTS[dialect]
    made_.body = raw
    operation = made_.dialect.recognise("POST", path)
    made_.ask = made_.dialect.read(operation, raw, path, [])
    made_.target = made_.target._replace(model=made_.ask.model)
    made_.context = Context(workflow, "researcher", account="workflow/" + workflow)
    made_.agent = "researcher"
    Routing().admit(made_)
    return made_


async def through(prompts: Prompts, one: Call) -> Call:
    decision = prompts.admit(one)
    if isinstance(decision, Wait):
        assert await decision.coroutine is None
    return one


def chat(text: str = "prompt://summarise?topic=bees", model: str = "gpt-4o", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def test_its_place_is_before_all_that_judge_the_content() -> None:
    order = [place.filter for place in FILTERS]
    at = order.index(Prompts)
    assert order.index(AllowList) < at
    assert all(at < order.index(later) for later in (Idempotency, Turns, Approval, Budget))


@pytest.mark.parametrize(
    ("dialect", "path", "body", "place"),
    [
        ("openai", "/v1/chat/completions", chat(), ("messages", 0, "content")),
        ("openai", "/v1/responses", {"model": "gpt-4o", "input": "prompt://summarise?topic=bees"}, ("input",)),
        ("anthropic", "/v1/messages", {"max_tokens": 5, **chat()}, ("messages", 0, "content")),
        ("gemini", "/v1beta/models/gemini-2.0-flash:generateContent",
         {"contents": [{"parts": [{"text": "prompt://summarise?topic=bees"}]}]}, ("contents", 0, "parts", 0, "text")),
        ("ollama", "/api/chat", chat(), ("messages", 0, "content")),
        ("ollama", "/api/generate", {"model": "m", "prompt": "prompt://summarise?topic=bees"}, ("prompt",)),
    ],
)  # fmt: skip
async def test_what_is_judged_is_what_is_forwarded(
    prompts: Prompts, dialect: str, path: str, body: dict[str, Any], place: tuple[str | int, ...]
) -> None:
    one = await through(prompts, read(body, dialect, path))
    plain: Any = json.loads(json.dumps(body))
    here = plain
    for step in place[:-1]:
        here = here[step]
    here[place[-1]] = "Summarise bees."
    assert one.body is not None
    assert json.loads(one.body) == plain
    twin = read(json.loads(one.body), dialect, path)
    assert one.ask is not None
    assert twin.ask is not None
    compact = json.dumps(plain, separators=(",", ":")).encode()
    twin.ask = twin.dialect.read(twin.ask.operation, compact, path, [])
    assert one.ask.input_bound == twin.ask.input_bound
    assert json.loads(one.dialect.rewrite(one.ask, one.body))[place[0]] == plain[place[0]]
    assert one.reply_headers == [(b"x-meshd-prompt", b"summarise@1.2.0")]
    assert one.prompts.used == (Used("summarise", "1.2.0", digest_of(TEXT), "production", True),)
    assert attributes(one, 200, None, None, None, 0)[names.MESHD_PROMPTS] == ("summarise@1.2.0",)
    assert "summarise@production is summarise@1.2.0" in prompts.explain(one)


async def test_a_call_that_names_none_is_not_touched(prompts: Prompts) -> None:
    for body in (chat("hello"), chat("see prompt://summarise"), chat('say "prompt:x"'), chat("prompt:x")):
        one = read(body)
        was = (one.body, one.ask)
        assert prompts.admit(one) is None
        assert (one.body, one.ask) == was
        assert one.body is was[0]
        assert one.prompts in (None, NOTHING)
        assert one.reply_headers == []
        assert prompts.explain(one) == "it names no prompt"


async def test_it_waits_once_for_each_workflow(prompts: Prompts) -> None:
    for workflow in ("one", "two"):
        decision = prompts.admit(read(chat(), workflow=workflow))
        assert isinstance(decision, Wait)
        await decision.coroutine
        assert prompts.admit(read(chat(), workflow=workflow)) is None
    assert prompts.admit(read(chat("prompt://summarise@1.2.0?topic=x"), workflow="three")) is None


async def test_a_route_to_another_model_still_holds(prompts: Prompts) -> None:
    one = await through(prompts, read(chat(model="dear")))
    assert one.ask is not None
    assert (one.ask.model, one.ask.model_sent) == ("dear", "gpt-4o")
    assert one.body is not None
    sent = json.loads(one.dialect.rewrite(one.ask, one.body))
    assert (sent["model"], sent["messages"][0]["content"]) == ("gpt-4o", "Summarise bees.")


async def test_no_prompt_within_a_prompt_is_looked_for(prompts: Prompts) -> None:
    await prompts.registry.shelf.add("", made("nested", "1.0.0", "prompt://summarise?topic={{x}}"))
    one = await through(prompts, read(chat("prompt://nested@1.0.0?x=prompt%3A%2F%2Fsummarise")))
    assert one.body is not None
    assert json.loads(one.body)["messages"][0]["content"] == "prompt://summarise?topic=prompt://summarise"
    assert prompts.admit(one) is None
    assert json.loads(one.body)["messages"][0]["content"].startswith("prompt://")


@pytest.mark.parametrize(
    ("body", "reason", "status"),
    [
        (chat("prompt://none"), Reason.PROMPT_UNRESOLVED, 404),
        (chat("prompt://summarise@^9"), Reason.PROMPT_UNRESOLVED, 404),
        (chat("prompt://summarise"), Reason.PROMPT_UNRESOLVED, 422),
        (chat("prompt://summarise?topic=a&more=b"), Reason.PROMPT_UNRESOLVED, 422),
        (chat(prompt_variables={"spare": "x"}), Reason.PROMPT_UNRESOLVED, 422),
        (chat("prompt://Summarise"), Reason.MALFORMED, 400),
        (chat("prompt://long@1.0.0?a=" + "y" * 2000), Reason.TOO_LARGE, 413),
    ],
)
async def test_what_is_refused_changes_nothing(
    prompts: Prompts, body: dict[str, Any], reason: Reason, status: int
) -> None:
    one = read(body)
    was = (one.body, one.ask)
    with pytest.raises(Refused) as caught:
        await through(prompts, one)
    assert (caught.value.reason, caught.value.status, caught.value.is_retryable) == (reason, status, False)
    assert (one.body, one.ask, one.reply_headers) == (*was, [])


async def test_a_store_that_does_not_answer_refuses_for_now(prompts: Prompts) -> None:
    prompts.registry.shelf.pinned = lambda *_: _raise()  # type: ignore[method-assign]
    with pytest.raises(Refused, match="it is away") as caught:
        await through(prompts, read(chat()))
    assert (caught.value.reason, caught.value.is_retryable) == (Reason.STORE_UNAVAILABLE, True)


async def _raise() -> Any:
    raise StoreError("it is away")


async def test_a_name_that_is_forbidden_is_not_looked_up(prompts: Prompts) -> None:
    told: list[Refused] = []
    allow = AllowList(lambda _, refused: told.append(refused))
    for model, text, is_allowed in (
        ("few", "prompt://summarise?topic=x", True), ("few", "prompt://other", False), ("none", "prompt://x", False),
        ("few", "see prompt://other", True), ("none", "nothing", True), ("gpt-4o", "prompt://x", True),
    ):  # fmt: skip
        one = read(chat(text, model))
        if is_allowed:
            assert allow.admit(one) is None
            continue
        with pytest.raises(Refused, match="is not allowed") as caught:
            allow.admit(one)
        assert caught.value.reason is Reason.NOT_ALLOWED
    with pytest.raises(Refused) as caught:
        allow.admit(read(chat("prompt://x", "trial")))
    assert caught.value.is_shadow
    with pytest.raises(Refused, match="no name of a prompt"):
        allow.admit(read(chat("prompt://X", "few")))
