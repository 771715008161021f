"""Dollars hold as tokens do, by the provider's own count; a cheaper model is really the one that is asked for."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from tests.end_to_end.documents import document
from tests.end_to_end.provider import Provider
from tests.end_to_end.sidecar import Sidecar
from tests.end_to_end.test_budgets import ASK, act, client_of, key

ONE_EACH = 'prices: {"m": {input: 1, output: 1}, "dear": {input: 10, output: 40}, "cheap": {input: 1, output: 4}}\n'
"""A token of `m` costs a micro-dollar, so that the provider's count of tokens is one of money."""
CALLS = 300


def priced(provider: Provider, budget: str, more: str = "") -> str:
    rules = f"rules:\n  - name: money\n    match: {{target: openai}}\n    budget: {{{budget}, output_default: 64}}\n"
    return document(provider.url, ONE_EACH + rules + more, tokens=None)


async def test_many_calls_at_once_overspend_no_dollar(sidecar: Sidecar, provider: Provider) -> None:
    total = 12_000
    sidecar.start(priced(provider, 'dollars: "0.012", tokens: 1M, queue: 20s'))
    mine = key()
    async with openai.AsyncOpenAI(
        base_url=f"{sidecar.url}/openai/v1",
        api_key=mine,
        max_retries=0,
        timeout=100,
        default_headers={"x-meshd-workflow": "purse"},
    ) as client:

        async def one(number: int) -> int:
            try:
                answer = await client.chat.completions.create(
                    **ASK, max_tokens=64, extra_headers=act(words=10 + number % 50)
                )
            except openai.APIStatusError as error:
                if error.status_code not in (402, 429):
                    raise
                return 0
            assert answer.usage is not None
            return answer.usage.total_tokens

        spent = sum(await asyncio.gather(*(one(number) for number in range(CALLS))))
    assert provider.tokens[mine] == spent <= total
    assert spent > total * 0.95
    accounts = sidecar.accounts()
    assert accounts["workflow/purse/@usd"] == (total, spent, 0)
    assert accounts["workflow/purse"][1] == spent
    assert sidecar.metric("meshd_budget_spent_microdollars_total") == spent
    assert sidecar.metric("meshd_budget_spent_tokens_total") == spent
    assert sidecar.metric("meshd_cost_microdollars_total", target="openai") == spent
    assert sidecar.metric("meshd_budget_reserved_microdollars") == 0


def test_a_refusal_speaks_of_dollars_and_is_not_tried_again(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(priced(provider, 'dollars: "0.0001", per: model, window: 1d'))
    with client_of(sidecar, key(), "w") as client, pytest.raises(openai.APIStatusError) as info:
        client.chat.completions.create(**ASK, extra_headers=act(words=5))
    error = info.value
    assert error.status_code == 402
    assert "retry-after" not in error.response.headers
    assert error.response.headers["x-should-retry"] == "false"
    for part in ("model/m/@1d/", "rule money, per model, window 1d, resets 20", "of its $0.0001"):
        assert part in error.message


def test_a_model_without_a_price_is_refused_with_the_way_out(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(priced(provider, "dollars: 1"))
    with client_of(sidecar, key(), "w") as client, pytest.raises(openai.PermissionDeniedError) as info:
        client.chat.completions.create(**(ASK | {"model": "mystery"}))
    assert 'prices: {"mystery": {input: 0.15, output: 0.60}}' in info.value.message
    assert sidecar.metric("meshd_budget_unpriced_total", rule="money") == 1


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_cheaper_model_is_asked_for_and_charged(sidecar: Sidecar, provider: Provider, is_stream: bool) -> None:
    sidecar.start(priced(provider, 'dollars: "0.01", warn_at: 0.3, degrade: {at: 0.3, to: cheap}'))
    headers: list[Any] = []
    with client_of(sidecar, key(), "thrift") as client:
        for _ in range(4):
            asked: dict[str, Any] = ASK | {"model": "dear", "max_tokens": 40}
            raw = client.chat.completions.with_raw_response.create(
                **asked, stream=is_stream, extra_headers=act(words=40)
            )
            headers.append(raw.headers)
            if is_stream:
                assert [chunk.model for chunk in raw.parse()]  # read to its end
            else:
                raw.parse()
    sent = [seen.json["model"] for seen in provider.seen[-4:]]
    dear, cheap = 4 * 10 + 40 * 40, 4 * 1 + 40 * 4
    assert sent == ["dear", "dear", "cheap", "cheap"]
    assert [found.get("x-meshd-model-degraded") for found in headers] == [None, None, *["cheap; rule=money"] * 2]
    assert headers[3]["x-meshd-budget-warning"].startswith(
        "rule=money; per=workflow; unit=dollars; at=0.3; limit=$0.01"
    )
    assert sidecar.accounts()["workflow/thrift/@usd"][1] == 2 * dear + 2 * cheap
    assert sidecar.metric("meshd_budget_degraded_total", rule="money") == 2
    assert sidecar.metric("meshd_cost_microdollars_total", target="openai") == 2 * dear + 2 * cheap


def test_a_cheaper_model_that_is_not_allowed_stays_away(sidecar: Sidecar, provider: Provider) -> None:
    allowed = "  - {name: only-dear, match: {target: openai, operation: chat}, allow: {models: dear}}\n"
    sidecar.start(priced(provider, "dollars: 1, degrade: {at: 0.0001, to: cheap}", allowed))
    with client_of(sidecar, key(), "w") as client:
        for _ in range(3):
            client.chat.completions.create(**(ASK | {"model": "dear"}), extra_headers=act(words=40))
    assert [seen.json["model"] for seen in provider.seen[-3:]] == ["dear"] * 3
