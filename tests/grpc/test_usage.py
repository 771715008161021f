"""Usage that an agent reports in its trailers is charged in full, once, to whoever called, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest

from meshd.engines.port import StoreError
from tests.grpc import testing_pb2 as pb
from tests.grpc.conftest import policy
from tests.grpc.service import Server
from tests.proxy.harness import CHAT, CHAT_REPLY, until

GIVEN, MADE = "x-meshd-usage-input-tokens", "x-meshd-usage-output-tokens"
BUDGET = "  - {name: purse, match: {kind: %s}, budget: {tokens: %d}}\n"
WORKFLOW = (("x-meshd-workflow", "task-1"),)


def spent(one: Any, account: str = "workflow/task-1") -> int:
    entry = one.proxy.chain.per_attempt[0].ledger.accounts.get(account)
    return entry.holder.spent if entry is not None and entry.holder is not None else 0


def reports(server: Server, *trailers: tuple[str, str]) -> None:
    server.servicer.trailers = list(trailers)


async def settled(one: Any) -> None:
    """Wait for the end of the calls, and of what the ledger does behind them."""
    await one.idle()
    await one.proxy.chain.per_attempt[0].ledger._leases.finish()


@pytest.mark.parametrize("kind", ["agent", "tool"])
async def test_it_is_charged_to_the_workflow(mesh: Any, serve: Any, stub: Any, kind: str) -> None:
    server = await serve()
    one = await mesh(policy(server.port, kind=kind, rules=BUDGET % (kind, 10_000)))
    made = stub(one.port)
    for number, trailers in enumerate((((GIVEN, "100"), (MADE, "20")), ((GIVEN, "7"),), ((MADE, "3"),)), start=1):
        reports(server, *trailers)
        await made.EmptyCall(pb.Empty(), metadata=WORKFLOW)
        await settled(one)
        assert spent(one) == (120, 127, 130)[number - 1]
    outcome = one.attempts[0].outcome
    assert (outcome.usage.input_tokens, outcome.usage.output_tokens) == (100, 20)
    assert outcome.held.charged == 120
    ledger = one.proxy.chain.per_attempt[0].ledger
    assert ledger.spent_tokens == 130
    assert ledger.bound_violations == 0
    assert ledger.reserved_tokens == 0
    totals = one.telemetry.totals().targets["up"]
    assert (totals.input_tokens, totals.output_tokens) == (107, 23)


async def test_a_stream_and_a_failed_call_report_too(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    reports(server, (MADE, "40"))
    one = await mesh(policy(server.port, rules=BUDGET % ("agent", 10_000)))
    made = stub(one.port)
    call = made.FullDuplexCall(metadata=WORKFLOW)
    await call.done_writing()
    assert [reply async for reply in call] == []
    failing = made.UnaryCall(pb.SimpleRequest(response_status=pb.EchoStatus(code=13, message="x")), metadata=WORKFLOW)
    assert (await failing.code()).value[0] == 13
    await settled(one)
    assert spent(one) == 80


async def test_what_the_account_lacks_is_charged_all_the_same(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    one = await mesh(policy(server.port, rules=BUDGET % ("agent", 100)))
    ledger = one.proxy.chain.per_attempt[0].ledger
    made = stub(one.port)
    for number, total in ((90, 90), (50, 140), (5, 145)):
        reports(server, (GIVEN, str(number)))
        await made.EmptyCall(pb.Empty(), metadata=WORKFLOW)
        await settled(one)
        assert spent(one) == total
    assert ledger.bound_violations == 2
    assert ledger.refused == 0


async def test_every_account_that_counts_the_call_is_charged(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    reports(server, (GIVEN, "30"), (MADE, "12"))
    rules = (
        BUDGET % ("agent", 1000)
        + "  - {name: daily, match: {kind: agent}, budget: {tokens: 5000, dollars: 1, per: agent}}\n"
        + "  - {name: trial, match: {kind: agent}, shadow: true, budget: {tokens: 10}}\n"
    )
    one = await mesh(policy(server.port, rules=rules))
    await stub(one.port).EmptyCall(pb.Empty(), metadata=WORKFLOW)
    await settled(one)
    for account in ("workflow/task-1", "agent/a", "shadow/workflow/task-1"):
        assert spent(one, account) == 42, account
    # Nobody here knows what an agent's tokens cost.
    assert not any(account.endswith("/@usd") for account in one.proxy.chain.per_attempt[0].ledger.accounts)


@pytest.mark.parametrize(
    "value", ["-5", "+5", "1.5", "", "07", "1e3", "0x10", "NaN", "٣", "1000000000", "9" * 40, "5, 6"]
)
async def test_what_is_no_number_is_counted_and_charges_nothing(
    mesh: Any, upstream_h2: Any, h2_client: Any, value: str
) -> None:
    async def script(server: Any) -> None:
        half = await server.request()
        server.head(half.id, ("content-type", "application/grpc"))
        trailers = [("grpc-status", "0"), (GIVEN, value), (MADE, "7")]
        server.h2.send_headers(half.id, trailers, end_stream=True)
        server.flush()
        await server.closed()

    up = await upstream_h2(script)
    one = await mesh(policy(up.port, rules=BUDGET % ("agent", 10_000)))
    fields = (("content-type", "application/grpc"), ("te", "trailers"), *WORKFLOW)
    half = await (await h2_client(one)).ask("/up/a.B/C", *fields, method="POST", body=b"")
    assert half.trailers == {"grpc-status": "0"}
    await settled(one)
    assert spent(one) == 0
    assert one.telemetry.tally.usage_malformed == 1


async def test_a_report_that_stands_twice_is_none(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    reports(server, (GIVEN, "5"), (GIVEN, "6"))
    one = await mesh(policy(server.port, rules=BUDGET % ("agent", 10_000)))
    await stub(one.port).EmptyCall(pb.Empty(), metadata=WORKFLOW)
    await settled(one)
    assert (spent(one), one.telemetry.tally.usage_malformed) == (0, 1)


@pytest.mark.parametrize(
    ("kind", "rules"),
    [("host", "  - {budget: {tokens: 1000}}\n"), ("agent", ""), ("agent", "  - {match: {kind: agent}, breaker: {}}\n")],
    ids=["a host", "no budget", "another rule"],
)
async def test_whom_nobody_believes_and_what_no_budget_counts(
    mesh: Any, serve: Any, stub: Any, kind: str, rules: str
) -> None:
    server = await serve()
    reports(server, (GIVEN, "100"))
    one = await mesh(policy(server.port, kind=kind, rules=rules))
    await stub(one.port).EmptyCall(pb.Empty(), metadata=WORKFLOW)
    await settled(one)
    assert not one.proxy.chain.per_attempt[0].ledger.accounts


async def test_calls_at_once_are_all_charged(mesh: Any, serve: Any, stub: Any) -> None:
    import asyncio

    server = await serve()
    reports(server, (GIVEN, "3"))
    one = await mesh(policy(server.port, rules=BUDGET % ("agent", 100)))
    made = stub(one.port)
    await asyncio.gather(*(made.EmptyCall(pb.Empty(), metadata=WORKFLOW) for _ in range(50)))
    await settled(one)
    assert spent(one) == 150


async def test_a_store_that_is_away_loses_no_charge_that_can_be_kept(
    mesh: Any, serve: Any, stub: Any, caplog: Any
) -> None:
    server = await serve()
    one = await mesh(policy(server.port, rules=BUDGET % ("agent", 100)))
    ledger = one.proxy.chain.per_attempt[0].ledger
    made = stub(one.port)
    reports(server, (GIVEN, "1"))
    await made.EmptyCall(pb.Empty(), metadata=WORKFLOW)
    await settled(one)
    ledger.fault = StoreError("gone")
    reports(server, (GIVEN, "60"))
    await made.EmptyCall(pb.Empty(), metadata=WORKFLOW)
    await until(lambda: spent(one) == 61)
    # Of an account that was never read nothing can be kept, and the log says so.
    await made.EmptyCall(pb.Empty(), metadata=(("x-meshd-workflow", "other"),))
    await settled(one)
    assert "60 tokens that workflow/other has spent could not be charged" in caplog.text
    ledger.fault = None


async def test_an_llm_is_charged_by_its_meter_whatever_its_trailers_say(
    mesh: Any, upstream_h2: Any, h2_client: Any
) -> None:
    async def script(server: Any) -> None:
        half = await server.request()
        await server.ended(half.id)
        server.head(half.id, ("content-type", "application/grpc"))
        await server.send_all(half.id, CHAT_REPLY, end=False)
        server.h2.send_headers(half.id, [("grpc-status", "0"), (GIVEN, "1"), (MADE, "0")], end_stream=True)
        server.flush()
        await server.closed()

    up = await upstream_h2(script)
    one = await mesh(
        f'upstreams:\n  llm: {{url: "http://127.0.0.1:{up.port}", kind: llm, dialect: openai}}\n'
        "rules: [{match: {kind: llm}, budget: {tokens: 10000}}]\n"
    )
    fields = (("content-type", "application/grpc"), ("te", "trailers"), *WORKFLOW)
    half = await (await h2_client(one)).ask("/llm/v1/chat/completions", *fields, method="POST", body=CHAT)
    assert bytes(half.body) == CHAT_REPLY
    await settled(one)
    assert spent(one) == 10
