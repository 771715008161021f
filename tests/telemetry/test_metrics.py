"""What a scrape shows, judged by Prometheus's own tool and parser."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from meshd.call import Ask, Direction, Kind, Usage
from meshd.filters.bounds import Bounds
from meshd.filters.held import Held
from meshd.ledger import Ledger
from meshd.ledger.entry import Entry
from meshd.ledger.holder import Holder
from meshd.outcome import Fault, Verdict
from meshd.refusal import Reason, Refused
from meshd.telemetry import metrics, names
from meshd.telemetry.budgets import sums_of
from meshd.telemetry.series import MODELS_MAX, Histogram, label
from meshd.telemetry.sources import (
    ApprovalReading,
    BreakerReading,
    BudgetReading,
    CatalogueReading,
    EventsReading,
    McpReading,
    OverloadReading,
    ResultReading,
    TurnsReading,
)
from meshd.telemetry.telemetry import Telemetry
from tests.telemetry.calls import call, outcome, run_through, upstream

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call


def run(telemetry: Telemetry, made: Call, *, usage: Usage | None = None, refused: Refused | None = None) -> None:
    telemetry.started(made)
    if refused is not None:
        telemetry.ended(made, refused.status, None, refused)
        return
    ended = outcome(usage=usage, first_byte_s=0.02)
    telemetry.attempted(made, ended)
    telemetry.ended(made, 200, ended, None)


def scrape(telemetry: Telemetry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    telemetry.read_sources()
    text = telemetry.render()[0].decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    return scrape(telemetry).get((name, tuple(sorted(labels.items()))))


def accounts() -> list[Entry]:
    """Accounts as the ledger has them in memory: two workflows, one of them topped up, and one of money."""
    made = []
    for id, limit, spent in (("workflow/a", 1000, 300), ("workflow/b", 500, 0), ("agent/a/@usd", 5_000_000, 1_250_000)):
        entry, holder = Entry(id), Holder("local", 1, 1)
        holder.granted, holder.spent, holder.reserved, holder.total = spent + 100, spent, 40, limit
        entry.holder, entry.limit = holder, limit
        made.append(entry)
    first = made[0].holder
    assert first is not None
    first.extra, first.total, first.elsewhere, first.lent = 200, 1200, 150, 50
    return [*made, Entry("workflow/not-met-yet")]


def busy() -> Telemetry:
    """Telemetry in which every metric has samples."""
    telemetry = Telemetry(version="1.2.3")
    llm, agent = upstream(), upstream("writer", Kind.AGENT, "writer.svc")
    charged = call(llm, is_stream=True)
    telemetry.started(charged)
    ended = outcome(usage=Usage(12, 34), first_byte_s=0.02, is_forwarded=True, is_terminal=True)
    Held(Ledger.in_memory(), None, Ask("chat", "m", input_bound=50), 150, None, Bounds()).settle(ended)
    telemetry.attempted(charged, ended)
    telemetry.ended(charged, 200, ended, None)
    run(telemetry, call(llm), usage=Usage(3, 4, is_estimated=True))
    run(telemetry, call(llm), refused=Refused(Reason.BUDGET_EXHAUSTED, "used up"))
    run(telemetry, call(agent, direction=Direction.INBOUND))
    unavailable = outcome(Verdict.FAILURE)
    unavailable.grpc_status = 14
    run_through(telemetry, call(agent), unavailable)
    again = call(llm)
    telemetry.started(again)
    telemetry.attempted(again, outcome(Verdict.FAILURE, status=0, fault=Fault.CONNECT))
    again.attempt = 2
    telemetry.attempted(again, outcome(Verdict.FAILURE, status=502))
    telemetry.ended(again, 502, outcome(Verdict.FAILURE, status=502), None)
    telemetry.series.fallbacks["openai", "reply"] = 1
    telemetry.shadowed(again, Refused(Reason.NOT_ALLOWED, "no", rule="no-deletes", is_shadow=True))
    telemetry.connection_opened(Direction.OUTBOUND)
    telemetry.connection_opened(Direction.INBOUND)
    telemetry.policy_taken()
    telemetry.policy_refused()
    telemetry.sources.rule_hits = lambda: {"cheap-models-only": 3, "never": 0}
    telemetry.sources.overload = lambda: OverloadReading(
        shed=((("openai", "queue_full"), 3), (("", "queue_full"), 1)), turned=((("openai", "open"), 2),)
    )
    telemetry.sources.breakers = lambda: [
        BreakerReading("openai", "closed", 64, 3, 2), BreakerReading("openai", "open", 8, 1),
        BreakerReading("writer", "half_open"),
    ]  # fmt: skip
    telemetry.series.outbound["openai"].microdollars = 75
    next(iter(telemetry.series.models.values())).microdollars = 75
    telemetry.sources.budget = lambda: BudgetReading(
        spent=20, refused=3, bound_violations=1, counted=5, uncounted=2, models_raised=1,
        spent_microdollars=9, stranded=7, scopes=tuple(sums_of(accounts())),
        warned=(("flow", 2),), degraded=(("flow", 1),), unpriced=(("daily", 4),),
    )  # fmt: skip
    telemetry.tally.supervisor_asked["agent", "stop"] = 1
    telemetry.tally.unread("llm", "br")
    telemetry.sources.claims = lambda: {"first": 2, "replayed": 1}
    telemetry.sources.store = lambda: True
    held = Histogram(metrics.SECONDS_BUCKETS)
    held.observe(3.0)
    telemetry.sources.approvals = lambda: ApprovalReading(2, 1, (("approved", 3),), held, 1, 4, 1)
    lengths = Histogram(metrics.TOKEN_BUCKETS)
    lengths.observe(300)
    counts = (("docs", 5),)
    results = ResultReading((("docs", lengths),), bytes=counts, clipped=counts, left_out=counts, kept=1, kept_bytes=9)
    telemetry.sources.mcp = lambda: McpReading(results=results)
    telemetry.sources.intents = lambda: {"chosen": 1}
    pair, one = ((("task.done", "new"), 2),), ((("task.done",), 2),)
    telemetry.sources.events = lambda: EventsReading(pair, one, pair, pair, one, pair, pair)
    telemetry.sources.state = lambda: {("commit", "done"): 2}
    telemetry.sources.catalogue = lambda: CatalogueReading(
        sorts=(("tool", 3),), sources=(("healthy", 1),), looks=(("ok", 2),), flaws=(("hidden_characters", 1),)
    )
    telemetry.sources.turns = lambda: TurnsReading((("refused", 2),), (("repetition", 2),))
    return telemetry


@pytest.fixture
def promtool(require_engine: Callable[[str], str]) -> str:
    return require_engine("promtool")


def check(promtool: str, exposition: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([promtool, "check", "metrics"], input=exposition, capture_output=True, check=False)


def test_promtool_finds_nothing_to_mend(promtool: str) -> None:
    telemetry = busy()
    telemetry.read_sources()
    found = check(promtool, telemetry.render()[0])
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")


def test_promtool_would_complain(promtool: str) -> None:
    assert check(promtool, b"# HELP a_milliseconds x\n# TYPE a_milliseconds counter\na_milliseconds 1\n").returncode


def test_promtool_accepts_a_start_without_any_call(promtool: str) -> None:
    telemetry = Telemetry()
    telemetry.read_sources()
    assert check(promtool, telemetry.render()[0]).returncode == 0


def test_every_metric_of_the_table_is_shown_with_its_labels_and_no_other() -> None:
    telemetry = busy()
    telemetry.read_sources()
    text = telemetry.render()[0].decode()
    shown: dict[str, set[str]] = {}
    kinds: dict[str, str] = {}
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        kinds[name] = family.type
        shown[name] = {key for sample in family.samples for key in sample.labels} - {"le"}
    ours = {metric.name: metric for metric in metrics.METRICS}
    assert set(shown) - set(metrics.PROCESS_METRICS) == set(ours)
    assert {name: shown[name] for name in ours} == {name: set(metric.labels) for name, metric in ours.items()}
    assert {name: kinds[name] for name in ours} == {name: metric.kind for name, metric in ours.items()}


def test_no_metric_has_a_label_that_grows_with_the_work() -> None:
    labels = {label for metric in metrics.METRICS for label in metric.labels}
    assert not {found for found in labels if re.search("workflow|path|session|prompt|url|call|account|trace", found)}


def test_the_documents_name_every_metric_label_and_attribute() -> None:
    text = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text()
    documented = set(re.findall(r"`([a-z_.]+)`", text))
    expected = {metric.name for metric in metrics.METRICS} | {label for m in metrics.METRICS for label in m.labels}
    expected |= names.ATTRIBUTES | set(names.RESULTS)
    assert expected - documented == set()
    assert {name for name in documented if name.startswith(("meshd_", "gen_ai_client"))} <= expected


def test_calls_are_counted_by_how_they_ended() -> None:
    telemetry = busy()
    of_llm = {"direction": "outbound", "kind": "llm", "target": "openai"}
    assert value(telemetry, "meshd_calls_total", **of_llm, result="ok") == 2
    assert value(telemetry, "meshd_calls_total", **of_llm, result="refused") == 1
    assert value(telemetry, "meshd_calls_total", **of_llm, result="failed") == 1
    assert value(telemetry, "meshd_refusals_total", reason="budget_exhausted", target="openai") == 1
    assert value(telemetry, "meshd_attempts_total", target="openai", verdict="failure") == 2
    assert value(telemetry, "meshd_attempt_faults_total", target="openai", fault="connect") == 1
    assert value(telemetry, "meshd_retries_total", target="openai") == 1
    assert value(telemetry, "meshd_shadow_refusals_total", rule="no-deletes", reason="not_allowed") == 1
    assert value(telemetry, "meshd_rule_hits_total", rule="never") == 0
    assert value(telemetry, "meshd_policy_stale") == 1


@pytest.mark.parametrize(
    ("ended", "refused", "result"),
    [
        (outcome(), None, "ok"),
        (outcome(Verdict.NEUTRAL, status=404), None, "rejected"),
        (outcome(Verdict.BACKPRESSURE, status=429), None, "backpressure"),
        (outcome(Verdict.FAILURE, status=500), None, "failed"),
        (outcome(Verdict.FAILURE, status=0, fault=Fault.RESET), None, "failed"),
        (outcome(Verdict.NEUTRAL, fault=Fault.CALLER_GONE), None, "cancelled"),
        (outcome(Verdict.NEUTRAL, fault=Fault.CUT), None, "cut"),
        (outcome(Verdict.NEUTRAL, fault=Fault.SHUTDOWN), None, "cut"),
        (None, None, "answered"),
        (None, Refused(Reason.LOOP, "no"), "refused"),
        (None, Refused(Reason.MALFORMED, "no"), "refused"),
        (outcome(Verdict.FAILURE, status=0, fault=Fault.CONNECT), Refused(Reason.UPSTREAM_UNREACHABLE, "x"), "failed"),
        (outcome(Verdict.NEUTRAL, fault=Fault.POOL_FULL), Refused(Reason.OVERLOADED, "x"), "refused"),
    ],
)
def test_each_end_has_its_result(ended: object, refused: Refused | None, result: str) -> None:
    telemetry, made = Telemetry(), call(upstream())
    telemetry.started(made)
    telemetry.ended(made, 200, ended, refused)  # type: ignore[arg-type]
    shown = {dict(key[1])["result"]: count for key, count in scrape(telemetry).items() if key[0] == "meshd_calls_total"}
    assert shown == {result: 1}


def test_an_answer_before_any_attempt_is_our_own() -> None:
    telemetry, made = Telemetry(), call(upstream())
    made.attempt = 0
    telemetry.started(made)
    telemetry.ended(made, 200, outcome(), None)
    of_llm = {"direction": "outbound", "kind": "llm", "target": "openai"}
    assert value(telemetry, "meshd_calls_total", **of_llm, result="answered") == 1


def test_bytes_that_never_became_a_call_are_counted() -> None:
    telemetry = Telemetry()
    telemetry.malformed(Direction.INBOUND, Refused(Reason.MALFORMED, "bare LF"))
    assert value(telemetry, "meshd_refusals_total", reason="malformed", target="unknown") == 1
    assert value(telemetry, "meshd_calls_open", direction="inbound") == 0


def test_tokens_are_counted_once_for_each_attempt_that_was_billed() -> None:
    telemetry = busy()
    of_model = {
        "gen_ai_operation_name": "chat", "gen_ai_provider_name": "openai", "gen_ai_request_model": "gpt-4o",
    }  # fmt: skip
    assert value(telemetry, "gen_ai_client_token_usage_sum", **of_model, gen_ai_token_type="input") == 15
    assert value(telemetry, "gen_ai_client_token_usage_count", **of_model, gen_ai_token_type="output") == 2
    assert value(telemetry, "gen_ai_client_token_usage_bucket", **of_model, gen_ai_token_type="input", le="4.0") == 1
    assert value(telemetry, "meshd_tokens_estimated_total", target="openai", gen_ai_token_type="output") == 4
    # A model that failed the first time it was called is named only because it has answered before.
    assert value(telemetry, "gen_ai_client_operation_duration_seconds_count", **of_model, error_type="502") == 1


def test_an_agent_that_invents_models_grows_nothing() -> None:
    telemetry, to = Telemetry(), upstream()
    for number in range(50):
        made = call(to, model=f"junk-{number}")
        telemetry.started(made)
        telemetry.attempted(made, outcome(Verdict.NEUTRAL, status=404))
    assert telemetry.series.model_names == set()
    assert {key[2] for key in telemetry.series.errors} == {"other"}
    for number in range(MODELS_MAX + 50):
        run(telemetry, call(to, model=f"answered-{number}"), usage=Usage(1, 1))
    shown = {dict(key[1]).get("gen_ai_request_model") for key in scrape(telemetry)} - {None}
    assert len(shown) == MODELS_MAX + 1
    assert "other" in shown


def test_targets_are_the_names_of_the_policy() -> None:
    telemetry = Telemetry()
    run(telemetry, call(None), refused=Refused(Reason.UNKNOWN_TARGET, "no such upstream"))
    for number in range(20):
        run(telemetry, call(upstream(f"h{number}.example", Kind.HOST, "h.example"), is_known=False))
    shown = {dict(key[1])["target"] for key in scrape(telemetry) if key[0] == "meshd_calls_total"}
    assert shown == {"unknown", "other"}


@pytest.mark.parametrize("name", ["unknown", "other", 'quo"te\\\n', "x" * 500, "новый", "\ud800", ""])
def test_a_strange_name_gives_a_valid_scrape(promtool: str, name: str) -> None:
    telemetry = Telemetry()
    run(telemetry, call(upstream(name), model=name), usage=Usage(1, 2))
    run(telemetry, call(upstream(name), model=name), refused=Refused(Reason.LOOP, "no"))
    run(telemetry, call(None), refused=Refused(Reason.UNKNOWN_TARGET, "no"))
    run(telemetry, call(upstream("host", Kind.HOST, "h"), is_known=False))
    telemetry.shadowed(call(upstream(name)), Refused(Reason.LOOP, "no", rule=name))
    telemetry.sources.rule_hits = lambda: {name: 1, name + "\n" + "y" * 300: 2, name + "\r" + "y" * 300: 3}
    telemetry.read_sources()
    found = check(promtool, telemetry.render()[0])
    assert (found.returncode, found.stderr) == (0, b"")
    samples = [line.rsplit(b" ", 1)[0] for line in telemetry.render()[0].splitlines() if not line.startswith(b"#")]
    assert len(samples) == len(set(samples))


def test_a_source_that_raises_leaves_the_rest_standing(caplog: pytest.LogCaptureFixture) -> None:
    telemetry = busy()

    def broken() -> dict[str, int]:
        raise RuntimeError("gone")

    telemetry.sources.rule_hits = broken
    telemetry.sources.store = broken  # type: ignore[assignment]
    assert value(telemetry, "meshd_store_up") == 0
    assert value(telemetry, "meshd_budget_spent_tokens_total") == 20
    assert "a source of metrics failed" in caplog.text


def test_accounts_are_added_up_by_what_they_count_together_and_money_apart() -> None:
    telemetry = busy()
    shown = scrape(telemetry)
    of_workflow = {key[0]: found for key, found in shown.items() if key[1] == (("scope", "workflow"),)}
    assert of_workflow == {
        "meshd_budget_accounts_open": 2,
        "meshd_budget_limit_tokens": 1700,
        "meshd_budget_used_tokens": 400,
        "meshd_budget_reserved_tokens": 80,
        "meshd_budget_leased_tokens": 200,
    }
    of_agent = {key[0]: found for key, found in shown.items() if key[1] == (("scope", "agent"),)}
    assert of_agent == {
        "meshd_budget_accounts_open": 1,
        "meshd_budget_limit_microdollars": 5_000_000,
        "meshd_budget_used_microdollars": 1_250_000,
        "meshd_budget_reserved_microdollars": 40,
        "meshd_budget_leased_microdollars": 100,
    }
    assert value(telemetry, "meshd_budget_stranded_tokens") == 7


def test_names_that_agents_choose_make_no_scope() -> None:
    entries = []
    for number in range(50):
        entry = Entry(f"odd-{number}/x")
        entry.holder = Holder("local", 1, 1)
        entries.append(entry)
    assert [(one.scope, one.accounts) for one in sums_of(entries)] == [("other", 50)]


def test_bound_and_charge_can_be_divided() -> None:
    telemetry = busy()
    assert value(telemetry, "meshd_bound_tokens_total", target="openai") == 150
    assert value(telemetry, "meshd_charged_tokens_total", target="openai") == 46
    # What was given back whole says nothing about bounds.
    released = call(upstream())
    ended = outcome(Verdict.FAILURE, status=0, fault=Fault.CONNECT)
    Held(Ledger.in_memory(), None, Ask("chat", "m", input_bound=50), 150, None, Bounds()).settle(ended)
    telemetry.attempted(released, ended)
    assert value(telemetry, "meshd_bound_tokens_total", target="openai") == 150


def test_the_worst_breaker_of_an_upstream_is_shown() -> None:
    telemetry = busy()
    states = {
        state: value(telemetry, "meshd_breaker_state", target="openai", state=state) for state in names.BREAKER_STATES
    }
    assert states == {"closed": 0, "half_open": 0, "open": 1}
    assert value(telemetry, "meshd_breakers_not_closed", target="openai") == 1
    assert value(telemetry, "meshd_breaker_transitions_total", target="openai", state="open") == 2


def test_an_upstreams_load_is_the_sum_of_its_keys_and_its_limit_the_lowest() -> None:
    telemetry = busy()
    assert value(telemetry, "meshd_concurrency_limit", target="openai") == 8
    assert value(telemetry, "meshd_attempts_in_flight", target="openai") == 4
    assert value(telemetry, "meshd_attempts_queued", target="openai") == 2
    assert value(telemetry, "meshd_attempts_shed_total", target="openai", reason="queue_full") == 3
    assert value(telemetry, "meshd_attempts_shed_total", target="other", reason="queue_full") == 1


def test_gauges_come_back_to_zero() -> None:
    telemetry = Telemetry()
    telemetry.connection_opened(Direction.INBOUND)
    telemetry.connection_closed(Direction.INBOUND)
    run(telemetry, call(upstream()))
    assert value(telemetry, "meshd_connections_open", direction="inbound") == 0
    assert value(telemetry, "meshd_connections_opened_total", direction="inbound") == 1
    assert value(telemetry, "meshd_calls_open", direction="outbound") == 0


def test_openmetrics_is_spoken_to_those_who_ask() -> None:
    telemetry = busy()
    telemetry.read_sources()
    body, content_type = telemetry.render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_a_value_on_a_bound_falls_under_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for seen in (0.5, 1.0, 1.5, 2.0, 3.0):
        histogram.observe(seen)
    assert histogram.cumulative() == ([("1.0", 2), ("2.0", 4), ("+Inf", 5)], 8.0)


@given(st.lists(st.floats(0.0) | st.sampled_from((*metrics.TOKEN_BUCKETS, 0, 3)), max_size=30))
def test_each_value_is_counted_under_the_first_bound_that_it_does_not_pass(values: list[float]) -> None:
    histogram = Histogram(metrics.TOKEN_BUCKETS)
    for value in values:
        histogram.observe(value)
    bounds = (*metrics.TOKEN_BUCKETS, float("inf"))
    assert [count for _, count in histogram.cumulative()[0]] == [
        sum(value <= bound for value in values) for bound in bounds
    ]


def test_labels_are_printable_and_short() -> None:
    assert label("a\nb\x00") == "a?b?"
    assert len(label("x" * 1000)) == 80


def test_totals_say_what_happened() -> None:
    totals = busy().totals()
    assert (totals.calls, totals.refused, totals.failed) == (6, 1, 2)
    assert (totals.input_tokens, totals.output_tokens) == (15, 38)
    assert totals.targets["openai"].refused_by_reason == {"budget_exhausted": 1}
    assert totals.targets["openai"].retries == 1


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("api.openai.com", "openai"), ("mine.openai.azure.com", "azure.ai.openai"), ("10.0.0.1", "anthropic"),
        ("us-central1-aiplatform.googleapis.com", "gcp.vertex_ai"), ("evilapi.openai.com.example", "anthropic"),
        ("notapi.openai.com", "anthropic"),
    ],
)  # fmt: skip
def test_a_provider_is_known_by_its_host(host: str, expected: str) -> None:
    assert names.provider(host, "anthropic") == expected


def test_bounds_are_published_beside_what_was_used() -> None:
    telemetry = Telemetry()
    for bound, used, model in (
        (400, 100, "gpt-4o"),
        (90, 100, "gpt-4o"),
        (300, 100, "claude-opus-5-5"),
        (10, 5, "m\n1"),
    ):
        made = call(upstream(), model=model)
        assert made.ask is not None
        made.ask.input_bound = bound
        run(telemetry, made, usage=Usage(used, 7))
    counted = call(upstream())
    assert counted.ask is not None
    counted.ask.input_bound, counted.ask.bound_by = 105, "count"
    run(telemetry, counted, usage=Usage(100, 7))
    of_bytes = {"family": "openai", "bound": "bytes"}
    assert value(telemetry, "meshd_input_bound_tokens_total", **of_bytes) == 490
    assert value(telemetry, "meshd_input_used_tokens_total", **of_bytes) == 200
    assert value(telemetry, "meshd_input_bound_ratio_count", **of_bytes) == 2
    # What was no bound stands out.
    assert value(telemetry, "meshd_input_bound_ratio_bucket", le="0.999", **of_bytes) == 1
    assert value(telemetry, "meshd_input_bound_ratio_bucket", le="4.0", **of_bytes) == 2
    assert value(telemetry, "meshd_input_used_tokens_total", family="openai", bound="count") == 100
    assert value(telemetry, "meshd_input_used_tokens_total", family="anthropic", bound="bytes") == 100
    assert value(telemetry, "meshd_input_used_tokens_total", family="other", bound="bytes") == 5


def test_an_estimate_and_an_empty_input_say_nothing_of_a_bound() -> None:
    telemetry = Telemetry()
    run(telemetry, call(upstream()), usage=Usage(100, 7, is_estimated=True))
    run(telemetry, call(upstream()), usage=Usage(0, 7))
    run(telemetry, call(upstream()))
    assert [name for name, _ in scrape(telemetry) if name.startswith("meshd_input_")] == []


def test_no_model_that_an_agent_makes_up_is_a_series_of_its_own() -> None:
    telemetry = Telemetry()
    for number in range(3_000):
        made = call(upstream(), model=f"claude-{number}" if number % 2 else f"made-up-{number}")
        run(telemetry, made, usage=Usage(1, 1))
    assert set(telemetry.series.bounds) == {("anthropic", "bytes"), ("other", "bytes")}


def test_what_attempts_cost_is_counted_once_by_upstream_and_by_model() -> None:
    telemetry = Telemetry()
    for model, verdict, cost in [
        ("gpt-4o", Verdict.SUCCESS, 75),
        ("gpt-4o", Verdict.FAILURE, 25),
        ("invented", Verdict.FAILURE, 3),
        ("gpt-4o", Verdict.SUCCESS, None),
        ("free", Verdict.SUCCESS, 0),
    ]:
        made, ended = call(upstream(), model=model), outcome(verdict, status=200 if verdict is Verdict.SUCCESS else 502)
        ended.microdollars = cost
        run_through(telemetry, made, ended)
    telemetry.read_sources()
    text = telemetry.render()[0].decode()
    assert 'meshd_cost_microdollars_total{target="openai"} 103.0' in text
    labels = 'gen_ai_operation_name="chat",gen_ai_provider_name="openai",gen_ai_request_model'
    assert f'meshd_model_cost_microdollars_total{{{labels}="gpt-4o"}} 100.0' in text
    assert f'meshd_model_cost_microdollars_total{{{labels}="other"}} 3.0' in text, "nobody has answered for its name"
    assert "invented" not in text


def test_thresholds_are_counted_by_rule() -> None:
    telemetry = busy()
    telemetry.read_sources()
    text = telemetry.render()[0].decode()
    for line in (
        'meshd_budget_warned_total{rule="flow"} 2.0',
        'meshd_budget_degraded_total{rule="flow"} 1.0',
        'meshd_budget_unpriced_total{rule="daily"} 4.0',
        "meshd_budget_spent_microdollars_total 9.0",
    ):
        assert line in text
