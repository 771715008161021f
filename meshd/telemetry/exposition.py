"""How the counters are read at a scrape: a prometheus_client collector over what the hot path counts.

Rendering is meant for a thread beside the loop: it only reads, and a count that changes meanwhile is one scrape
late. What other rooms keep (`Reading`) is asked for on the loop before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from meshd.dialects.grpc import name_of
from meshd.telemetry import metrics, names
from meshd.telemetry.series import RULES_MAX, VERDICTS, label
from meshd.telemetry.sources import Reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.metrics_core import Metric as Family

    from meshd.telemetry.metrics import Metric
    from meshd.telemetry.series import Histogram, Series, TargetSeries
    from meshd.telemetry.sources import (
        ApprovalReading,
        BudgetReading,
        CatalogueReading,
        EventsReading,
        ResultReading,
        TraceReading,
    )
    from meshd.telemetry.tally import Tally


def _counter(metric: Metric, rows: Iterable[tuple[tuple[str, ...], float]]) -> Family:
    family = CounterMetricFamily(metric.name.removesuffix("_total"), metric.help, labels=metric.labels)
    for labels, value in rows:
        family.add_metric(labels, value)
    return family


def _gauge(metric: Metric, rows: Iterable[tuple[tuple[str, ...], float]]) -> Family:
    family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, value in rows:
        family.add_metric(labels, value)
    return family


def _histogram(metric: Metric, rows: Iterable[tuple[tuple[str, ...], Histogram]]) -> Family:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, histogram in rows:
        buckets, total = histogram.cumulative()
        if buckets[-1][1]:
            family.add_metric(labels, buckets, total)
    return family


class Exposition(Collector):
    """Renders everything. `reading` is replaced before each scrape."""

    def __init__(self, series: Series, tally: Tally, *, version: str, started_s: float) -> None:
        self._series = series
        self._tally = tally
        self._version = version
        self._started_s = started_s
        self.reading = Reading()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the exposition and its content type, as an Accept field asks for (plain text if it does not)."""
        try:
            encoder, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # it compares what is no number in a version with numbers
            encoder, content_type = choose_encoder("")
        return encoder(self._registry), content_type

    def describe(self) -> Iterable[Family]:
        """Nothing is registered ahead: names are checked by a test instead."""
        return []

    def collect(self) -> Iterator[Family]:
        """Yield every family, those without samples too, so that a dashboard can tell zero from absent."""
        targets = self._series.targets()
        yield from self._calls(targets)
        yield from self._attempts(targets)
        yield from self._models()
        yield from self._policy()
        yield from self._budget_and_breakers()
        yield from self._process()

    def _calls(self, targets: list[TargetSeries]) -> Iterator[Family]:
        yield _counter(
            metrics.CALLS,
            (
                ((t.direction, t.kind, t.target, result), count)
                for t in targets
                for result, count in zip(names.RESULTS, t.results, strict=True)
                if count
            ),
        )
        refusals: dict[tuple[str, ...], float] = {}
        for t in targets:
            for reason, count in list(t.refusals.items()):
                key = (reason.value, t.target)
                refusals[key] = refusals.get(key, 0) + count
        yield _counter(metrics.REFUSALS, refusals.items())
        grpc: dict[tuple[str, ...], float] = {}
        for t in targets:
            for status, count in list(t.grpc.items()):
                _add(grpc, (t.direction, t.target, name_of(status)), count)
        yield _counter(metrics.GRPC_CALLS, grpc.items())
        series = self._series
        ways = (("outbound", series.evidence_outbound), ("inbound", series.evidence_inbound))
        ties = [((direction, evidence), count) for direction, counts in ways for evidence, count in counts.items()]
        yield _counter(metrics.CALLS_TIED, [tie for tie in ties if tie[1]])
        yield _histogram(metrics.CALL_DURATION, (((t.direction, t.kind, t.target), t.duration) for t in targets))
        yield _histogram(metrics.FIRST_BYTE, (((t.direction, t.kind, t.target), t.first_byte) for t in targets))

    def _attempts(self, targets: list[TargetSeries]) -> Iterator[Family]:
        attempts: dict[tuple[str, ...], float] = {}
        faults: dict[tuple[str, ...], float] = {}
        retries: dict[tuple[str, ...], float] = {}
        estimated: dict[tuple[str, ...], float] = {}
        bound: dict[tuple[str, ...], float] = {}
        charged: dict[tuple[str, ...], float] = {}
        costs: dict[tuple[str, ...], float] = {}
        for t in targets:
            _add(costs, (t.target,), t.microdollars)
            _add(bound, (t.target,), t.bound)
            _add(charged, (t.target,), t.charged)
            for verdict, count in zip(VERDICTS, t.verdicts, strict=True):
                _add(attempts, (t.target, verdict), count)
            for fault, count in list(t.faults.items()):
                _add(faults, (t.target, fault.value), count)
            _add(retries, (t.target,), t.retries)
            _add(estimated, (t.target, "input"), t.estimated_input)
            _add(estimated, (t.target, "output"), t.estimated_output)
        yield _counter(metrics.ATTEMPTS, attempts.items())
        yield _counter(metrics.ATTEMPT_FAULTS, faults.items())
        yield _counter(metrics.RETRIES, retries.items())
        yield _counter(metrics.FALLBACKS, list(self._series.fallbacks.items()))
        yield _counter(metrics.TOKENS_ESTIMATED, estimated.items())
        yield _counter(metrics.BOUND_TOKENS, bound.items())
        yield _counter(metrics.CHARGED_TOKENS, charged.items())
        yield _counter(metrics.COST, costs.items())

    def _models(self) -> Iterator[Family]:
        models = [((m.operation, m.provider, m.model), m) for m in list(self._series.models.values())]
        tokens = [((*key, "input"), m.input_tokens) for key, m in models]
        tokens += [((*key, "output"), m.output_tokens) for key, m in models]
        yield _histogram(metrics.TOKEN_USAGE, tokens)
        durations = [((*key, ""), m.duration) for key, m in models]
        yield _histogram(metrics.OPERATION_DURATION, [*durations, *list(self._series.errors.items())])
        yield _histogram(metrics.TIME_TO_FIRST_CHUNK, ((key, m.first_chunk) for key, m in models))
        yield _counter(metrics.MODEL_COST, [(key, m.microdollars) for key, m in models if m.microdollars])

    def _policy(self) -> Iterator[Family]:
        tally, hits = self._tally, list(self.reading.rule_hits.items())
        rows: dict[tuple[str, ...], float] = {}
        for position, (rule, count) in enumerate(hits):
            _add(rows, (label(rule) if position < RULES_MAX else metrics.OTHER,), count, keep_zero=True)
        yield _counter(metrics.RULE_HITS, rows.items())
        yield _counter(metrics.SHADOWED, list(self._series.shadowed.items()))
        yield _counter(metrics.POLICY_RELOADS, [(("ok",), tally.reloads_ok), (("failed",), tally.reloads_failed)])
        yield _gauge(metrics.POLICY_RELOADED_AT, [((), tally.policy_taken_s)] if tally.policy_taken_s else [])
        yield _gauge(metrics.POLICY_STALE, [((), float(tally.is_policy_stale))])

    def _budget_and_breakers(self) -> Iterator[Family]:
        reading = self.reading
        budget = reading.budget
        yield from _scopes(budget)
        yield _gauge(metrics.BUDGET_STRANDED, [((), budget.stranded)] if budget else [])
        yield _counter(metrics.BUDGET_SPENT, [((), budget.spent)] if budget else [])
        yield _counter(metrics.BUDGET_REFUSED, [((), budget.refused)] if budget else [])
        yield _counter(metrics.BOUND_VIOLATIONS, [((), budget.bound_violations)] if budget else [])
        counted = [(("lowered",), budget.counted), (("kept",), budget.uncounted)] if budget else []
        yield _counter(metrics.BOUND_COUNTS, counted)
        yield _gauge(metrics.BOUNDS_RAISED, [((), budget.models_raised)] if budget else [])
        bounds = [((one.family, one.bound_by), one) for one in list(self._series.bounds.values())]
        yield _counter(metrics.INPUT_BOUND, ((key, one.bound) for key, one in bounds))
        yield _counter(metrics.INPUT_USED, ((key, one.used) for key, one in bounds))
        yield _histogram(metrics.BOUND_RATIO, ((key, one.ratio) for key, one in bounds))
        yield _counter(metrics.BUDGET_SPENT_MONEY, [((), budget.spent_microdollars)] if budget else [])
        passed = (budget.warned, budget.degraded, budget.unpriced) if budget else ((), (), ())
        for metric, counts in zip(
            (metrics.BUDGET_WARNED, metrics.BUDGET_DEGRADED, metrics.BUDGET_UNPRICED), passed, strict=True
        ):
            rows: dict[tuple[str, ...], float] = {}
            for rule, count in counts:
                _add(rows, (label(rule),), count)
            yield _counter(metric, rows.items())
        turns = reading.turns
        yield _counter(metrics.TURNS, [((one,), count) for one, count in turns.decisions] if turns else [])
        yield _counter(metrics.LOOPS, [((one,), count) for one, count in turns.detectors] if turns else [])
        yield _counter(metrics.CLAIMS, [((result,), count) for result, count in sorted(reading.claims.items())])
        yield _gauge(metrics.MCP_SESSIONS, [((), float(reading.mcp.sessions))])
        yield _counter(metrics.MCP_TOKENS_SAVED, [((), reading.mcp.tokens_saved)])
        yield from _results(reading.mcp.results)
        worst: dict[str, int] = {}
        not_closed: dict[tuple[str, ...], float] = {}
        for breaker in reading.breakers:
            target = label(breaker.upstream)
            rank = names.BREAKER_STATES.index(breaker.state)
            worst[target] = max(worst.get(target, 0), rank)
            _add(not_closed, (target,), rank > 0, keep_zero=True)
        yield _gauge(
            metrics.BREAKER_STATE,
            (
                ((target, state), float(rank == found))
                for target, found in worst.items()
                for rank, state in enumerate(names.BREAKER_STATES)
            ),
        )
        yield _gauge(metrics.BREAKERS_NOT_CLOSED, not_closed.items())
        yield from _overload(reading)

    def _process(self) -> Iterator[Family]:
        tally, up = self._tally, self.reading.is_store_up
        yield _gauge(metrics.CALLS_OPEN, _by_direction(tally.calls_outbound, tally.calls_inbound))
        yield _gauge(metrics.CONNECTIONS, _by_direction(tally.connections_outbound, tally.connections_inbound))
        yield _counter(metrics.CONNECTIONS_OPENED, _by_direction(tally.opened_outbound, tally.opened_inbound))
        yield _counter(metrics.TRACE_ENTRIES, [((entry,), count) for entry, count in list(tally.entries.items())])
        yield _counter(metrics.SUPERVISOR_ASKED, list(tally.supervisor_asked.items()))
        yield from _approvals(self.reading.approvals)
        yield from _catalogue(self.reading.catalogue)
        yield _counter(metrics.INTENTS, [((one,), count) for one, count in self.reading.intents.items()])
        yield from _events(self.reading.events)
        yield _counter(metrics.STATE_OPERATIONS, list(self.reading.state.items()))
        yield _gauge(metrics.STORE_UP, [] if up is None else [((), float(up))])
        yield from _trace(self.reading.trace)
        yield _counter(metrics.SPANS_EXPORTED, [((), tally.spans_exported)])
        yield _counter(
            metrics.SPANS_DROPPED, [(("queue_full",), tally.spans_dropped), (("export_failed",), tally.spans_failed)]
        )
        yield _counter(metrics.USAGE_MALFORMED, [((), tally.usage_malformed)])
        yield _counter(metrics.REPLIES_UNREAD, list(tally.replies_unread.items()))
        yield _counter(metrics.LOG_LINES_SUPPRESSED, [((), tally.lines_suppressed)])
        yield _gauge(metrics.BUILD, [((self._version, names.PROFILE), 1.0)])
        yield _gauge(metrics.STARTED_AT, [((), self._started_s)])


def _events(reading: EventsReading) -> Iterator[Family]:
    yield _counter(metrics.EVENTS_PUBLISHED, reading.published)
    yield _counter(metrics.EVENTS_HANDED, reading.handed)
    yield _counter(metrics.EVENTS_SETTLED, reading.settled)
    yield _counter(metrics.EVENTS_REFUSED, reading.refused)
    yield _counter(metrics.EVENTS_LED, reading.led)
    yield _gauge(metrics.EVENTS_DEAD, reading.dead)
    yield _gauge(metrics.EVENTS_LAG, reading.lag)


def _approvals(reading: ApprovalReading | None) -> Iterator[Family]:
    yield _gauge(metrics.APPROVALS_PENDING, [((), reading.pending)] if reading else [])
    yield _gauge(metrics.CALLS_HELD, [((), reading.held)] if reading else [])
    yield _counter(metrics.APPROVALS, [((result,), count) for result, count in reading.results] if reading else [])
    yield _histogram(metrics.APPROVAL_HELD, [((), reading.held_seconds)] if reading else [])
    yield _counter(metrics.APPROVAL_KEYS_REFUSED, [((), reading.keys_refused)] if reading else [])
    notices = [(("ok",), reading.told), (("failed",), reading.untold)] if reading else []
    yield _counter(metrics.APPROVAL_NOTICES, notices)


def _catalogue(reading: CatalogueReading | None) -> Iterator[Family]:
    for metric, counts in (
        (metrics.CATALOGUE_ENTRIES, reading.sorts if reading else ()),
        (metrics.CATALOGUE_SOURCES, reading.sources if reading else ()),
    ):
        yield _gauge(metric, [((one,), count) for one, count in counts])
    for metric, counts in (
        (metrics.CATALOGUE_LOOKS, reading.looks if reading else ()),
        (metrics.CATALOGUE_FLAWS, reading.flaws if reading else ()),
    ):
        yield _counter(metric, [((one,), count) for one, count in counts])
    yield _gauge(metrics.CATALOGUE_QUARANTINED, [((), reading.quarantined)] if reading else [])
    yield _gauge(metrics.CATALOGUE_SHARED, [((), reading.shared_entries)] if reading else [])
    yield _gauge(metrics.CATALOGUE_SIDECARS, [((), reading.shared_sidecars)] if reading else [])
    yield _gauge(metrics.CATALOGUE_BYTES, [((), reading.shared_bytes)] if reading else [])


def _results(reading: ResultReading) -> Iterator[Family]:
    yield _histogram(metrics.RESULT_TOKENS, [((name,), histogram) for name, histogram in reading.tokens])
    yield _counter(metrics.RESULT_BYTES, [((name,), count) for name, count in reading.bytes])
    yield _counter(metrics.RESULTS_CLIPPED, [((name,), count) for name, count in reading.clipped])
    yield _counter(metrics.RESULT_LEFT_OUT, [((name,), count) for name, count in reading.left_out])
    yield _gauge(metrics.RESULTS_KEPT, [((), reading.kept)])
    yield _gauge(metrics.RESULTS_KEPT_BYTES, [((), reading.kept_bytes)])


def _overload(reading: Reading) -> Iterator[Family]:
    """Yield how many attempts may be under way, are, wait, and were turned away."""
    limits: dict[tuple[str, ...], float] = {}
    in_flight: dict[tuple[str, ...], float] = {}
    queued: dict[tuple[str, ...], float] = {}
    for one in reading.breakers:
        key = (label(one.upstream),)
        if one.limit is not None:
            limits[key] = min(limits.get(key, one.limit), one.limit)
        _add(in_flight, key, one.in_flight, keep_zero=True)
        _add(queued, key, one.queued, keep_zero=True)
    yield _gauge(metrics.CONCURRENCY_LIMIT, limits.items())
    yield _gauge(metrics.ATTEMPTS_IN_FLIGHT, in_flight.items())
    yield _gauge(metrics.ATTEMPTS_QUEUED, queued.items())
    for metric, counts in (
        (metrics.ATTEMPTS_SHED, reading.overload.shed),
        (metrics.BREAKER_TURNS, reading.overload.turned),
    ):
        rows: dict[tuple[str, ...], float] = {}
        for (target, what), count in counts:
            _add(rows, (label(target) if target else metrics.OTHER, what), count)
        yield _counter(metric, rows.items())


def _scopes(budget: BudgetReading | None) -> Iterator[Family]:
    """Yield what the accounts come to, by what they count together; those of money apart from those of tokens."""
    found = budget.scopes if budget else ()
    accounts: dict[tuple[str, ...], float] = {}
    for sums in found:
        _add(accounts, (sums.scope,), sums.accounts, keep_zero=True)
    yield _gauge(metrics.BUDGET_ACCOUNTS, accounts.items())
    tokens = [sums for sums in found if not sums.is_money]
    money = [sums for sums in found if sums.is_money]
    for amounts, those in ((_OF_TOKENS, tokens), (_OF_MONEY, money)):
        limit, used, reserved, leased = amounts
        yield _gauge(limit, [((sums.scope,), sums.limit) for sums in those])
        yield _gauge(used, [((sums.scope,), sums.used) for sums in those])
        yield _gauge(reserved, [((sums.scope,), sums.reserved) for sums in those])
        yield _gauge(leased, [((sums.scope,), sums.leased) for sums in those])


_OF_TOKENS = (metrics.BUDGET_LIMIT, metrics.BUDGET_USED, metrics.BUDGET_RESERVED, metrics.BUDGET_LEASED)
_OF_MONEY = (
    metrics.BUDGET_LIMIT_MONEY, metrics.BUDGET_USED_MONEY, metrics.BUDGET_RESERVED_MONEY, metrics.BUDGET_LEASED_MONEY,
)  # fmt: skip


def _by_direction(outbound: int, inbound: int) -> list[tuple[tuple[str, ...], float]]:
    return [(("outbound",), outbound), (("inbound",), inbound)]


def _trace(trace: TraceReading | None) -> Iterator[Family]:
    yield _counter(metrics.TRACE_EVENTS, [((), trace.records)] if trace else [])
    yield _counter(metrics.TRACE_BYTES, [((), trace.bytes)] if trace else [])
    yield _counter(metrics.TRACE_MISSED, [((), trace.missed)] if trace else [])
    yield _gauge(metrics.TRACE_KEPT, [((), trace.kept_bytes)] if trace else [])


def _add(rows: dict[tuple[str, ...], float], key: tuple[str, ...], count: float, *, keep_zero: bool = False) -> None:
    if count or keep_zero:
        rows[key] = rows.get(key, 0) + count
