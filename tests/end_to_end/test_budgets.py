"""No budget is overspent, by the provider's own count: not by a thousand calls at once, not by a kill."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
import uuid
from typing import TYPE_CHECKING, Any

import openai
import pytest

from meshd.filters.minting import mint_run
from meshd.mesh_key import MeshKeys
from tests.end_to_end.documents import document
from tests.end_to_end.provider import Provider
from tests.end_to_end.sidecar import Sidecar, fetch, until

if TYPE_CHECKING:
    from collections.abc import Callable

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "go"}]}
INPUT_TOKENS = 3 + 1
CALLS = 1000


def act(**what: Any) -> dict[str, str]:
    return {"x-act": json.dumps(what)}


def key() -> str:
    """An API key, under which the provider bills this test alone."""
    return f"sk-{uuid.uuid4().hex}"


def client_of(sidecar: Sidecar, key: str, workflow: str = "", **options: Any) -> openai.OpenAI:
    headers = {"x-meshd-workflow": workflow} if workflow else {}
    return openai.OpenAI(
        base_url=f"{sidecar.url}/openai/v1", api_key=key, max_retries=0, default_headers=headers, **options
    )


def spend(client: openai.OpenAI, *, words: int = 40, calls: int = 500, **more: Any) -> int:
    """Call until refused for good; return the tokens that the answers said."""
    spent = 0
    for _ in range(calls):
        try:
            usage = client.chat.completions.create(**(ASK | more), extra_headers=act(words=words)).usage
        except openai.APIStatusError as error:
            if error.status_code != 402:
                raise
            return spent
        assert usage is not None
        spent += usage.total_tokens
    raise AssertionError("never refused")


def settled(sidecar: Sidecar) -> bool:
    return sum(account[2] for account in sidecar.accounts().values()) == 0


@pytest.mark.parametrize("mode", ["fast", "durable"])
def test_a_runaway_is_stopped_at_its_budget(sidecar: Sidecar, provider: Provider, mode: str) -> None:
    sidecar.start(document(provider.url, tokens=5000, mode=mode))
    mine = key()
    with client_of(sidecar, mine, "runaway") as client:
        spent = spend(client)
    assert provider.tokens[mine] == spent <= 5000
    total, booked, reserved = sidecar.accounts()["workflow/runaway"]
    assert (total, booked, reserved) == (5000, spent, 0)
    # What is left is less than one more call of this size may cost, its floor included.
    assert spent > 5000 - 300
    assert sidecar.metric("meshd_budget_bound_violations_total") == 0


@pytest.mark.parametrize("mode", ["fast", "durable"])
async def test_a_thousand_calls_at_once_overspend_nothing(sidecar: Sidecar, provider: Provider, mode: str) -> None:
    total = 20_000
    sidecar.start(document(provider.url, tokens=total, mode=mode, queue="20s"))
    mine = key()
    async with openai.AsyncOpenAI(
        base_url=f"{sidecar.url}/openai/v1",
        api_key=mine,
        max_retries=0,
        timeout=100,
        default_headers={"x-meshd-workflow": "crowd"},
    ) as client:

        async def one(number: int) -> int:
            words = act(words=10 + number % 50)
            try:
                if number % 3:
                    answer = await client.chat.completions.create(**ASK, max_tokens=64, extra_headers=words)
                    return answer.usage.total_tokens  # type: ignore[union-attr]
                async with await client.chat.completions.create(
                    **ASK, max_tokens=64, stream=True, stream_options={"include_usage": True}, extra_headers=words
                ) as stream:
                    return [chunk.usage.total_tokens async for chunk in stream if chunk.usage][-1]
            except openai.APIStatusError as error:
                if error.status_code not in (402, 429):
                    raise
                return 0

        answered = await asyncio.gather(*(one(number) for number in range(CALLS)))
    spent = sum(answered)
    assert provider.tokens[mine] == spent <= total
    assert spent > total * 0.95, "of what calls in flight gave back, those that waited had the use"
    assert 0 in answered, "more was asked for than there was"
    await asyncio.to_thread(until, lambda: settled(sidecar))
    assert sidecar.accounts()["workflow/crowd"] == (total, spent, 0)
    assert sidecar.metric("meshd_budget_bound_violations_total") == 0


@pytest.mark.parametrize("mode", ["fast", "durable"])
async def test_kills_in_the_middle_never_let_the_providers_books_pass_the_total(
    sidecar: Sidecar, provider: Provider, mode: str
) -> None:
    total, mine = 12_000, key()
    text = document(provider.url, tokens=total, mode=mode, queue="1s")
    for number in range(3):
        sidecar.start(text)
        aim = provider.tokens[mine] + 1000
        async with openai.AsyncOpenAI(
            base_url=f"{sidecar.url}/openai/v1",
            api_key=mine,
            max_retries=0,
            default_headers={"x-meshd-workflow": "killed"},
        ) as client:

            async def agent(client: openai.AsyncOpenAI = client) -> None:
                with contextlib.suppress(openai.APIError):
                    while True:
                        await client.chat.completions.create(**ASK, max_tokens=30, extra_headers=act(words=30))

            agents = [asyncio.create_task(agent()) for _ in range(12)]
            # Somewhere in the middle of them, with some calls in flight.
            await asyncio.to_thread(until, lambda aim=aim: provider.tokens[mine] > aim)
            sidecar.kill()
            await asyncio.gather(*agents)
        assert provider.tokens[mine] <= total, f"after kill {number}"
    sidecar.start(text)
    with client_of(sidecar, mine, "killed") as last:
        spend(last, words=30)
    # What was in flight is lost, and no more: a dozen calls a kill.
    assert total - 3 * 12 * 200 - 400 < provider.tokens[mine] <= total
    _, booked, reserved = sidecar.accounts()["workflow/killed"]
    assert provider.tokens[mine] <= booked <= total
    assert reserved == 0


def test_a_restart_keeps_the_accounts(sidecar: Sidecar, provider: Provider) -> None:
    text, mine = document(provider.url, tokens=3000), key()
    sidecar.start(text)
    with client_of(sidecar, mine, "kept") as client:
        for _ in range(10):
            client.chat.completions.create(**ASK, max_tokens=40, extra_headers=act(words=40))
    assert sidecar.stop() == 0
    sidecar.start(text)
    with client_of(sidecar, mine, "kept") as client:
        spend(client)
        assert 2500 < provider.tokens[mine] <= 3000
        assert client.models.list().data[0].id == "m", "what is free is free"
    with client_of(sidecar, key(), "another") as client:
        client.chat.completions.create(**ASK, max_tokens=40)


def test_an_upstream_that_ignores_its_cap_has_its_stream_cut_well_formed(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(document(provider.url, tokens=100_000))
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    piece = json.dumps(chunk | {"choices": [{"index": 0, "delta": {"content": "many words " * 20}}]})
    endless = act(events=f"data: {piece}\n\n", times=400)
    with client_of(sidecar, key(), "cut") as client:
        chunks = list(client.chat.completions.create(**ASK, max_tokens=10, stream=True, extra_headers=endless))
    assert chunks[-1].choices[0].finish_reason == "length"
    assert len(chunks) < 60
    until(lambda: settled(sidecar))
    assert sidecar.metric("meshd_calls_total", result="cut") == 1


def test_hanging_up_is_not_free(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(document(provider.url, tokens=100_000))
    mine, id = key(), uuid.uuid4().hex
    with client_of(sidecar, mine, "gone") as client:
        stream = client.chat.completions.create(
            **ASK, max_tokens=500, stream=True, extra_headers=act(id=id, pause_at=5, words=300)
        )
        next(iter(stream))
        stream.close()
    provider.go_on(id)
    until(lambda: settled(sidecar))
    spent = sidecar.accounts()["workflow/gone"][1]
    assert spent == provider.tokens[mine] == INPUT_TOKENS + 300


def test_without_evidence_all_calls_share_one_account(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(document(provider.url, "limits: {unattributed_tokens: 2000}\n", tokens=100_000))
    keys = [key() for _ in range(3)]
    for mine in keys:
        with client_of(sidecar, mine) as client:
            spend(client, max_tokens=40)
    (account,) = sidecar.accounts()
    assert account.startswith("unattributed/researcher/")
    assert 1600 < sum(provider.tokens[mine] for mine in keys) <= 2000
    with client_of(sidecar, keys[0], "named") as client:
        client.chat.completions.create(**ASK, max_tokens=40)


def test_a_run_may_be_given_less_than_the_policy_allows(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(document(provider.url, tokens=100_000))
    mine = key()
    address = mint_run(
        MeshKeys(sidecar.home / "mesh.key"),
        workflow="run-1",
        agent="researcher",
        wall_s=time.time(),
        nonce=b"12345678",
        ceiling=1000,
    )
    with openai.OpenAI(base_url=f"{sidecar.url}/w/{address}/openai/v1", api_key=mine, max_retries=0) as client:
        spend(client, max_tokens=30)
    assert 800 < provider.tokens[mine] <= 1000
    assert "run-1" in str(sidecar.accounts())


def test_the_cap_that_is_granted_is_told(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(document(provider.url, tokens=500))
    with client_of(sidecar, key(), "little") as client:
        raw = client.chat.completions.with_raw_response.create(**ASK, max_tokens=5000, extra_headers=act(words=2))
    granted = int(raw.headers["x-meshd-budget-clamped"])
    assert 16 <= granted < 500
    sent = provider.seen[-1].json
    assert sent["max_tokens"] == granted


def test_a_call_that_fails_costs_what_the_provider_billed(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(document(provider.url, tokens=100_000))
    with client_of(sidecar, key(), "failed") as client:
        for statuses in ([400], [500], [429]):
            with pytest.raises(openai.APIStatusError):
                client.chat.completions.create(
                    **(ASK | {"model": f"m{statuses}"}), extra_headers=act(id=uuid.uuid4().hex, statuses=statuses)
                )
    until(lambda: settled(sidecar))
    assert sidecar.accounts()["workflow/failed"][1] == 0


def test_a_reload_that_raises_a_budget_lets_its_workflow_go_on(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(document(provider.url, tokens=1000))
    mine = key()
    with client_of(sidecar, mine, "raised") as client:
        spend(client, max_tokens=30)
        assert provider.tokens[mine] <= 1000
        sidecar.policy.write_text(document(provider.url, tokens=2000))
        sidecar.signal(signal.SIGHUP)
        until(lambda: "policy taken" in sidecar.log)
        spend(client, max_tokens=30)
    assert 1700 < provider.tokens[mine] <= 2000


def test_whatever_ends_a_call_its_reservation_ends_too(sidecars: Callable[[str], Sidecar], provider: Provider) -> None:
    sidecar = sidecars("ends").start(document(provider.url, tokens=100_000))
    with client_of(sidecar, key(), "ends") as client:
        for what in (
            {"dies_at": 2},
            {"reply": "not JSON"},
            {"reply": '{"choices": []}'},
            {"usage": False},
            {"encoding": "gzip"},
            {"encoding": "bomb"},
            {"encoding": "br"},
        ):
            for is_stream in (False, True):
                with contextlib.suppress(Exception):
                    answer = client.chat.completions.create(
                        **(ASK | {"model": str(what)}), stream=is_stream, extra_headers=act(**what)
                    )
                    if is_stream:
                        list(answer)
    until(lambda: settled(sidecar))
    until(lambda: sidecar.admin("/v1/status")["status"]["calls_open"] == 0)
    assert fetch(f"{sidecar.url}/openai/v1/models")[0] == 200


def test_a_call_that_does_not_fit_by_its_bytes_is_counted_and_goes_out(
    sidecars: Callable[[str], Sidecar], provider: Provider
) -> None:
    sidecar = sidecars("counted").start(document(provider.url, tokens=1_000))
    prompt = "The keeper trims the lamp and writes the wind down. " * 60
    messages = [{"role": "user", "content": prompt}]
    with client_of(sidecar, key(), "counted") as client:
        with pytest.raises(openai.APIStatusError, match="Budget exhausted"):
            client.chat.completions.create(model="m", messages=messages)  # type: ignore[arg-type]
        client.chat.completions.create(
            model="gpt-4o",
            messages=messages,  # type: ignore[arg-type]
            max_tokens=20,
            extra_headers=act(words=5),
        )
    until(lambda: settled(sidecar))
    assert sidecar.metric("meshd_bound_counts_total", result="lowered") == 1
    assert sidecar.metric("meshd_input_bound_ratio_count", family="openai", bound="count") == 1
    assert sidecar.metric("meshd_budget_bound_violations_total") == 0
    assert sidecar.metric("meshd_budget_refused_total") == 1, "the one that could not be counted"
