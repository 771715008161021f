"""BudgetService: balances from the ledger's own books, parts that flow back, reports that are charged once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from meshd.engines.port import StoreError
from meshd.ledger import Ledger
from meshd_sdk.v1 import budget_pb2
from tests.api.house import House, house, refusal, until

if TYPE_CHECKING:
    from pathlib import Path

RULES = """
agent: ann
tenant: acme
upstreams:
  openai: {url: "http://127.0.0.1:9", kind: llm, dialect: openai}
  other: {url: "http://127.0.0.1:9", kind: llm, dialect: openai}
rules:
  - {name: flow, match: {kind: llm}, budget: {tokens: 10k, dollars: 5}}
  - {name: daily, match: {kind: llm}, budget: {tokens: 20k, per: agent, window: 1d}}
  - {name: firm, budget: {tokens: 30k, per: tenant}}
  - {name: up, match: {target: openai}, budget: {tokens: 40k, per: upstream}}
  - {name: model, budget: {tokens: 50k, per: model}}
  - {name: trial, shadow: true, budget: {tokens: 1, per: tenant}}
  - {name: others, match: {agent: bob}, budget: {tokens: 9}}
"""


async def balances(one: House, token: str) -> dict[tuple[str, str], budget_pb2.Balance]:
    found = await one.budgets.GetBalance(budget_pb2.GetBalanceRequest(token=token))
    return {(balance.rule, balance.account): balance for balance in found.balances}


async def balance(one: House, token: str, rule: str = "governance") -> budget_pb2.Amounts:
    """How the workflow's own account stands, its sum checked."""
    found = next(value for (name, _), value in (await balances(one, token)).items() if name == rule)
    tokens = found.tokens
    assert tokens.total == tokens.available + tokens.reserved + tokens.spent + tokens.delegated
    return tokens


async def give(one: House, token: str, id: str = "d", tokens: int = 5000) -> budget_pb2.DelegateResponse:
    request = budget_pb2.DelegateRequest(token=token, delegation_id=id, tokens=tokens)
    return await one.budgets.Delegate(request)  # type: ignore[no-any-return]


async def reclaim(one: House, token: str, id: str = "d") -> tuple[int, int]:
    found = await one.budgets.Reclaim(budget_pb2.ReclaimRequest(token=token, delegation_id=id))
    return found.spent_tokens, found.returned_tokens


async def report(one: House, token: str, id: str = "r", **more: Any) -> tuple[int, bool]:
    given = {"model": "m", "input_tokens": 1000, "output_tokens": 200} | more
    found = await one.budgets.ReportUsage(budget_pb2.ReportUsageRequest(token=token, report_id=id, **given))
    return found.charged_tokens, found.is_exhausted


# ------------------------------------------------------------------ balances


async def test_every_account_that_may_be_charged_is_there(tmp_path: Path) -> None:
    async with house(tmp_path, RULES) as one:
        found = await balances(one, (await one.open()).token)
        assert {rule for rule, _ in found} == {"flow", "daily", "firm", "up"}
        by_rule = {rule: balance for (rule, _), balance in found.items()}
        assert by_rule["flow"].account == "workflow/w"
        assert (by_rule["flow"].tokens.total, by_rule["flow"].microdollars.total) == (10_000, 5_000_000)
        assert by_rule["daily"].account.startswith("agent/ann/@1d/")
        ends_s = by_rule["daily"].window_ends.ToSeconds()
        assert ends_s % 86_400 == 0
        assert 0 < ends_s - one.mesh.wall_clock() <= 86_400
        assert by_rule["firm"].account == "tenant/acme"
        assert not by_rule["firm"].HasField("microdollars")
        assert not by_rule["firm"].HasField("window_ends")
        assert by_rule["up"].account == "upstream/openai"


async def test_it_says_what_the_ledger_says(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        token = (await one.open()).token
        assert (await balance(one, token)).available == 50_000
        held = await one.mesh.ledger.wait("workflow/w", 50_000, 7000, 7000, queue_s=0)
        assert (await balance(one, token)).reserved == 7000
        held.settle(3000)  # type: ignore[union-attr]
        found = await balance(one, token)
        assert (found.reserved, found.spent, found.available) == (0, 3000, 47_000)
        await one.mesh.ledger.orders.top_up("workflow/w", 1000)
        assert (await balance(one, token)).total == 51_000


async def test_a_ceiling_is_a_limit_of_its_own(tmp_path: Path) -> None:
    async with house(tmp_path, "agent: ann\n") as one:
        assert await balances(one, (await one.open()).token) == {}
        found = await balances(one, (await one.open(ceiling_tokens=70, ceiling_microdollars=9)).token)
        assert {key: value.tokens.total for key, value in found.items()} == {("", "workflow/w"): 70}
        assert found[("", "workflow/w")].microdollars.total == 9
    async with house(tmp_path) as one:
        assert (await balance(one, (await one.open(ceiling_tokens=70)).token)).total == 70


async def test_calls_without_a_workflow_have_their_shared_account(tmp_path: Path) -> None:
    from meshd_sdk.context import Context

    document = "agent: ann\nlimits: {unattributed_tokens: 300}\ngovernance: {max_tokens_per_workflow: 50000}\n"
    async with house(tmp_path, document) as one:
        token = one.mesh.issue(Context("", "ann", account="unattributed/ann/2026-11-26"), "").decode()
        assert (await balance(one, token)).total == 300
        ended = await refusal(give(one, token, tokens=301))
        assert ended.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_books_that_cannot_be_kept(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        token = (await one.open()).token
        one.mesh.ledger = Ledger.failed(StoreError("the disk is gone"))
        for request in (balances(one, token), give(one, token), reclaim(one, token), report(one, token)):
            ended = await refusal(request)
            assert ended.code() is grpc.StatusCode.UNAVAILABLE
            assert "the disk is gone" in str(ended.details())
            assert dict(ended.trailing_metadata() or ())["grpc-retry-pushback-ms"] == "1000"


# ------------------------------------------------------------------ parts


async def test_a_part_is_given_spent_and_flows_back(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        token = (await one.open()).token
        part = await give(one, token)
        assert part.context.account == part.balance.account
        assert part.context.account.startswith("delegated/")
        assert part.context.account.endswith("/workflow/w")
        assert (part.context.ceiling_tokens, part.balance.tokens.total) == (5000, 5000)
        assert part.context.workflow == "w"
        found = await balance(one, token)
        assert (found.delegated, found.available) == (5000, 45_000)
        assert await report(one, part.context.token) == (1200, False)
        own = await balances(one, part.context.token)
        assert own[("governance", part.context.account)].tokens.spent == 1200
        assert own[("governance", part.context.account)].tokens.available == 3800
        assert await reclaim(one, token) == (1200, 3800)
        await until(lambda: not one.mesh.ledger.orders._tasks)
        await settled(one, token)
        found = await balance(one, token)
        assert (found.spent, found.delegated, found.available) == (1200, 0, 48_800)


async def settled(one: House, token: str, rule: str = "governance") -> None:
    """Wait until no part stands out."""
    async with asyncio.timeout(20):
        while (await balance(one, token, rule)).delegated:
            await asyncio.sleep(0.005)


async def test_asked_again_it_answers_the_same(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        token = (await one.open()).token
        first, *again = await asyncio.gather(*[give(one, token) for _ in range(10)])
        assert all(one.context.account == first.context.account for one in again)
        assert (await give(one, token, tokens=9000)).context.ceiling_tokens == 5000
        assert (await balance(one, token)).delegated == 5000
        ended = await asyncio.gather(*[reclaim(one, token) for _ in range(10)])
        assert set(ended) == {(0, 5000)}
        await settled(one, token)
        assert await reclaim(one, token) == (0, 5000)
        one.ahead_s = 86_400.0
        token = (await one.open()).token
        assert await reclaim(one, token) == (0, 5000)
        # One that has ended stays so, and gives nothing a second time.
        assert (await refusal(give(one, token))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await balance(one, token)).available == 50_000


async def test_parts_of_parts(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        token = (await one.open()).token
        part = (await give(one, token, tokens=5000)).context
        inner = (await give(one, part.token, tokens=3000)).context
        innermost = (await give(one, inner.token, tokens=2000)).context
        assert len({part.account, inner.account, innermost.account}) == 3
        assert {account.count("delegated/") for account in (part.account, inner.account, innermost.account)} == {1}
        assert (await refusal(give(one, inner.token, "more", 1001))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await report(one, innermost.token, input_tokens=300, output_tokens=0)
        assert await reclaim(one, inner.token) == (300, 1700)
        assert (await reclaim(one, part.token))[0] in (0, 300)
        await reclaim(one, token)
        await settled(one, token)
        found = await balance(one, token)
        assert (found.spent, found.available) == (300, 49_700)


async def test_too_little_is_refused_and_sets_nothing_aside(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        token = (await one.open()).token
        ended = await refusal(give(one, token, tokens=50_001))
        assert ended.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "workflow/w" in str(ended.details())
        assert (await give(one, token, tokens=50_000)).context.ceiling_tokens == 50_000
        assert (await balance(one, token)).available == 0
        assert (await refusal(give(one, token, "e", 1))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_no_more_is_given_than_is_there_however_many_ask(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        token = (await one.open()).token
        asked = [give(one, token, f"d{number}", 900) for number in range(80)]
        ended = await asyncio.gather(*asked, return_exceptions=True)
        given = [one for one in ended if not isinstance(one, BaseException)]
        assert len(given) == 55
        assert (await balance(one, token)).delegated == 55 * 900


async def test_a_part_is_found_by_its_own_context_alone(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        token, other = (await one.open("a")).token, (await one.open("b")).token
        await give(one, token)
        for wrong in (reclaim(one, other), reclaim(one, token, "e")):
            assert (await refusal(wrong)).code() is grpc.StatusCode.NOT_FOUND
        assert (await balance(one, token)).delegated == 5000


@pytest.mark.parametrize(
    ("id", "tokens"), [("", 5), ("a b", 5), ("x" * 65, 5), ("ä", 5), ("d\n", 5), ("d", 0), ("d", -5), ("d", 2**60)]
)
async def test_what_is_no_delegation_names_its_field(tmp_path: Path, id: str, tokens: int) -> None:
    async with house(tmp_path) as one:
        ended = await refusal(give(one, (await one.open()).token, id, tokens))
        assert ended.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert str(ended.details()).startswith(("delegation_id", "tokens"))


async def test_a_start_ends_the_parts_of_the_run_before(tmp_path: Path) -> None:
    async with house(tmp_path, is_kept=True) as one:
        token = (await one.open()).token
        part = await give(one, token)
        await report(one, part.context.token)
    async with house(tmp_path, is_kept=True) as one:
        await settled(one, token)
        found = await balance(one, token)
        assert (found.spent, found.available) == (1200, 48_800)
        assert (await refusal(reclaim(one, token))).code() is grpc.StatusCode.NOT_FOUND
        # Its token still verifies, and spends nothing: what is reported under it is charged to the whole.
        assert await report(one, part.context.token, "late") == (1200, False)
        assert (await balance(one, token)).spent == 2400


# ------------------------------------------------------------------ reports


async def test_usage_is_charged_in_full_to_every_account_of_such_a_call(tmp_path: Path) -> None:
    async with house(tmp_path, RULES) as one:
        token = (await one.open()).token
        charged = await report(one, token, model="gpt-4o", input_tokens=1000, output_tokens=200, cached_tokens=100)
        assert charged == (1200, False)
        by_rule = {rule: balance for (rule, _), balance in (await balances(one, token)).items()}
        assert {rule: by_rule[rule].tokens.spent for rule in ("flow", "daily", "firm", "up")} == {
            "flow": 1200, "daily": 1200, "firm": 1200, "up": 0,
        }  # fmt: skip
        assert by_rule["flow"].microdollars.spent > 0
        assert (await one.mesh.ledger.orders.books("model/gpt-4o")).total == 50_000
        assert one.mesh.ledger.bound_violations == 0
        assert one.mesh.ledger.refused == 0
        one.mesh.telemetry.read_sources()
        rendered = one.mesh.telemetry.render()[0].decode()
        line = next(line for line in rendered.splitlines() if line.startswith("gen_ai_client_token_usage_sum"))
        assert 'gen_ai_provider_name="reported"' in line
        assert 'gen_ai_request_model="gpt-4o"' in line


async def test_names_of_models_that_nobody_knows_are_no_labels(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        token = (await one.open()).token
        for number in range(20):
            await report(one, token, f"r{number}", model=f"invented-{number}", input_tokens=1)
        assert one.mesh.telemetry.series.model_names == {"other"}


async def test_a_report_is_charged_once_however_often_it_is_sent(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        token = (await one.open()).token
        charged = await asyncio.gather(*[report(one, token) for _ in range(20)])
        assert sorted(charged) == [(0, False)] * 19 + [(1200, False)]
        one.ahead_s = 86_400.0
        token = (await one.open()).token
        assert await report(one, token) == (0, False)
        assert (await balance(one, token)).spent == 1200
        one.ahead_s = 2 * 86_400.0
        assert await report(one, (await one.open()).token) == (1200, False)  # forgotten by now, as the document says
        other = (await one.open("x")).token
        assert await report(one, other) == (1200, False)


async def test_a_report_is_charged_once_over_a_restart(tmp_path: Path) -> None:
    async with house(tmp_path, is_kept=True) as one:
        token = (await one.open()).token
        assert await report(one, token) == (1200, False)
    async with house(tmp_path, is_kept=True) as one:
        assert await report(one, token) == (0, False)
        assert (await balance(one, token)).spent == 1200


async def test_more_than_is_left_is_charged_all_the_same(tmp_path: Path) -> None:
    async with house(tmp_path, is_kept=True) as one:
        token = (await one.open()).token
        assert await report(one, token, "a", input_tokens=49_000, output_tokens=0) == (49_000, False)
        assert await report(one, token, "b", input_tokens=3000, output_tokens=0) == (3000, True)
        found = await balance(one, token)
        assert (found.spent, found.available) == (52_000, -2000)
        short = await one.mesh.ledger.wait("workflow/w", 50_000, 1, 1, queue_s=0)
        assert not hasattr(short, "settle")
    async with house(tmp_path, is_kept=True) as one:
        found = await balance(one, token)
        assert (found.spent, found.available) == (52_000, -2000)


async def test_a_lease_that_lies_idle_does_not_outlive_a_report(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        token = (await one.open()).token
        held = await one.mesh.ledger.wait("workflow/w", 50_000, 10, 10, queue_s=0)
        held.settle(10)  # type: ignore[union-attr]
        assert await report(one, token, input_tokens=50_000, output_tokens=0) == (50_000, True)
        assert one.mesh.ledger.hold("workflow/w", 50_000, 1) is None


async def test_a_caller_that_hangs_up_leaves_nothing_half_done(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        token = (await one.open()).token
        for number in range(30):
            request = budget_pb2.ReportUsageRequest(token=token, report_id=f"r{number}", model="m", input_tokens=10)
            call = one.budgets.ReportUsage(request)
            await asyncio.sleep(0)
            call.cancel()
        for number in range(30):
            await report(one, token, f"r{number}", input_tokens=10, output_tokens=0)
        found = await balance(one, token)
        assert (found.spent, found.reserved) == (300, 0)


async def test_a_store_that_fails_charges_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with house(tmp_path) as one:
        token = (await one.open()).token

        async def fail(*_: Any) -> bool:
            raise StoreError("no room")

        remembered = type(one.mesh.ledger.orders.remembered)
        with monkeypatch.context() as patch:
            patch.setattr(remembered, "write", fail)
            assert (await refusal(report(one, token))).code() is grpc.StatusCode.UNAVAILABLE
        assert (await balance(one, token)).spent == 0
        assert await report(one, token) == (1200, False)


async def test_what_nothing_limits_opens_no_account(tmp_path: Path) -> None:
    async with house(tmp_path, "agent: ann\n") as one:
        token = (await one.open()).token
        assert await report(one, token) == (1200, False)
        assert await report(one, token) == (0, False)
        assert await one.mesh.ledger.orders.names() == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"report_id": ""},
        {"report_id": "a b"},
        {"report_id": "x" * 65},
        {"model": ""},
        {"model": "x" * 300},
        {"model": "a\nb"},
        {"input_tokens": -1},
        {"output_tokens": -1},
        {"cached_tokens": -1},
        {"cached_tokens": 2000},
        {"input_tokens": 2**62},
        {"output_tokens": 10**13},
    ],
)
async def test_what_is_no_report_names_its_field(tmp_path: Path, wrong: dict[str, Any]) -> None:
    async with house(tmp_path) as one:
        token = (await one.open()).token
        more = dict(wrong)
        ended = await refusal(report(one, token, more.pop("report_id", "r"), **more))
        assert ended.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert next(iter(wrong)) in str(ended.details())
        assert (await balance(one, token)).spent == 0
