"""The facade that the proxy calls at the few moments of a call's life.

`started` once, `attempted` for each attempt (each may be billed), `ended` once: plain function calls, in that
order, on the loop's thread. None of them raises.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

from meshd.call import Call, Direction, Kind
from meshd.outcome import Fault, Verdict
from meshd.refusal import Reason
from meshd.telemetry import metrics, names, redact, sources, span_attributes, spans
from meshd.telemetry.logs import FloodGate
from meshd.telemetry.provenance import Provenance
from meshd.telemetry.series import Series
from meshd.telemetry.sources import Sources
from meshd.telemetry.tally import Tally
from meshd.telemetry.totals import TargetTotals, Totals

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Ask, Usage
    from meshd.dialects.contract import Meter
    from meshd.filters.held import Held
    from meshd.outcome import Outcome
    from meshd.refusal import Refused
    from meshd.telemetry.exposition import Exposition
    from meshd.telemetry.series import ModelSeries, TargetSeries

# Bound once: reading a member from its enum costs 0.17 us on Python 3.11, and every call reads dozens.
_INBOUND: Final = Direction.INBOUND
_CALLER_GONE: Final = Fault.CALLER_GONE
_FAULT_NONE: Final = Fault.NONE
_LLM: Final = Kind.LLM
_BACKPRESSURE: Final = Verdict.BACKPRESSURE
_FAILURE: Final = Verdict.FAILURE
_SUCCESS: Final = Verdict.SUCCESS
_OK: Final = names.OK
_FAILED: Final = names.FAILED
_REFUSED: Final = names.REFUSED

_log = logging.getLogger("meshd.calls")

_CUT_FAULTS: Final = frozenset({Fault.CUT, Fault.DEADLINE, Fault.SHUTDOWN})
_THEIR_REASONS: Final = frozenset({Reason.UPSTREAM_UNREACHABLE, Reason.UPSTREAM_TIMEOUT})
"""Answered by meshd, but it is the upstream that failed: we refuse, they fail."""


class Telemetry:
    """Counts, traces and logs. `sources` may be filled in after construction, by the daemon."""

    def __init__(
        self,
        *,
        version: str = "0",
        agent: str = "",
        otlp_endpoint: str = "",
        ratio: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Set up counters, and the exporter where `otlp_endpoint` (a full URL, see `endpoint.traces_url`) is not empty.

        Raises `otlp.EndpointError` for an address that cannot be used, ValueError for a ratio outside 0 to 1.
        """
        if not 0.0 <= ratio <= 1.0:
            raise ValueError(f"sampling ratio {ratio} is not between 0 and 1")
        self.sources = Sources()
        self.tally = Tally()
        self.series = Series()
        self.provenance = Provenance()
        self.version = version
        self._clock = clock
        self._wall_clock = wall_clock
        self._started_s = wall_clock()
        self._gate = FloodGate()
        self._exposition: Exposition | None = None
        self._is_debug = _log.isEnabledFor(logging.DEBUG)
        self.tracer = spans.Tracer(self._sink(otlp_endpoint, agent), ratio)

    def _sink(self, url: str, agent: str) -> spans.SpanSink | None:
        if not url:
            return None
        # The SDK and protobuf cost 4 MB that nobody without a collector should pay.
        from meshd.telemetry.otlp import OtlpSink

        return OtlpSink(url, self.tally, version=self.version, agent=agent)

    # The hot path.

    def started(self, call: Call) -> None:
        """A call's head is there: sets `call.span`, whose `traceparent` may be forwarded."""
        if call.direction is _INBOUND:
            self.tally.calls_inbound += 1
        else:
            self.tally.calls_outbound += 1
        call.span = self.tracer.begin(call)

    def attempted(self, call: Call, outcome: Outcome) -> None:
        """An attempt ended, the last one of the call too."""
        self.provenance.attempted(call, outcome)
        series = self.series.of_call(call)
        held: Held | None = outcome.held
        if held is not None and held.charged:
            series.bound += held.bound
            series.charged += held.charged
        verdict, first_byte_s = outcome.verdict, outcome.first_byte_s
        if call.attempt > 1 and (call.substitution is None or call.attempt - call.substitution.attempts_before > 1):
            series.retries += 1
        if outcome.fault is not _FAULT_NONE:
            series.faults[outcome.fault] = series.faults.get(outcome.fault, 0) + 1
        if first_byte_s is not None:
            series.first_byte.observe(first_byte_s)
        ask = call.ask
        if verdict is not _SUCCESS:
            series.verdicts[1 if verdict is _FAILURE else 2 if verdict is _BACKPRESSURE else 3] += 1
            if ask is not None:
                self._attempt_failed(ask, series, outcome)
            return
        series.verdicts[0] += 1
        if ask is None:
            if call.earlier is not None and outcome.usage is not None:
                # It says what work has cost that an earlier call began: that one had nothing to count yet.
                begun = call.earlier
                _used(series, self.series.of_model(begun.operation, series.provider, begun.model_sent), outcome.usage)
            elif outcome.usage is not None:
                series.used_input += outcome.usage.input_tokens
                series.used_output += outcome.usage.output_tokens
            return
        sent = ask.model_granted
        model = self.series.of_model(ask.operation, series.provider, ask.model if sent is None else sent)
        model.duration.observe(outcome.duration_s)
        if ask.is_stream and first_byte_s is not None:
            first_token_s = outcome.first_token_s
            model.first_chunk.observe(first_byte_s if first_token_s is None else first_token_s)
        usage = outcome.usage
        if usage is not None:
            _used(series, model, usage)
            if usage.input_tokens and not usage.is_estimated:
                self.series.of_bound(ask).observe(ask.input_bound, usage.input_tokens)
        if outcome.microdollars:
            series.microdollars += outcome.microdollars
            model.microdollars += outcome.microdollars

    def _attempt_failed(self, ask: Ask, series: TargetSeries, outcome: Outcome) -> None:
        error = span_attributes.error_type(outcome.status, outcome, None) or outcome.verdict.value
        self.series.of_error(ask.operation, series.provider, ask.model_sent, error).observe(outcome.duration_s)
        usage, known, sent = outcome.usage, self.series.model_names, ask.model_sent
        if usage is not None and (usage.input_tokens or usage.output_tokens):
            # A stream that was cut or abandoned has cost what it has cost; the model may be new or unknown.
            shown = sent if sent in known or not usage.is_estimated else metrics.OTHER
            _used(series, self.series.of_model(ask.operation, series.provider, shown), usage)
        if outcome.microdollars:
            series.microdollars += outcome.microdollars
            shown = sent if sent in known else metrics.OTHER
            self.series.of_model(ask.operation, series.provider, shown).microdollars += outcome.microdollars

    def ended(
        self,
        call: Call,
        status: int,
        outcome: Outcome | None,
        refused: Refused | None,
        *,
        meter: Meter | None = None,
    ) -> None:
        """The call is over. `status` is what the caller got (0 for nothing), `outcome` that of the last attempt."""
        if call.direction is _INBOUND:
            self.tally.calls_inbound -= 1
        else:
            self.tally.calls_outbound -= 1
        series = self.series.of_call(call)
        attempts = call.attempt if call.substitution is None else self.series.fell_back(call, refused is None)
        if refused is None and outcome is not None and outcome.fault is _FAULT_NONE and attempts:
            verdict = outcome.verdict
            if verdict is _SUCCESS:
                result = _OK
            elif verdict is _FAILURE:
                result = _FAILED
            else:
                result = names.BACKPRESSURE if verdict is _BACKPRESSURE else names.REJECTED
        else:
            result = _result(attempts, outcome, refused)
            self.provenance.answered(call, status, result)
        series.results[result] += 1
        if call.context is not None:
            self.series.tie(call)
        code = outcome.grpc_status if outcome is not None else -1
        if refused is not None:
            self.provenance.denied(call, refused)
            if code < 0 and call.dialect is not None and call.dialect.name == "grpc":
                code = refused.grpc
        if code >= 0:
            series.grpc[code] = series.grpc.get(code, 0) + 1
        duration_s = (outcome.now_s if outcome is not None else self._clock()) - call.now_s
        series.duration.observe(duration_s)
        span = call.span
        if span is not None and (span.is_sampled or result >= _FAILED or span.is_shadowed):
            self.tracer.end(call, status, outcome, refused, meter, result, duration_s)
        if result in (_REFUSED, _FAILED):
            if refused is not None and result == _REFUSED:
                series.refusals[refused.reason] = series.refusals.get(refused.reason, 0) + 1
            self._say(call, status, outcome, refused, result)
        elif self._is_debug:
            _log.debug("call ended", extra={"fields": _fields(call, status, outcome, refused, duration_s)})

    def shadowed(self, call: Call, refused: Refused) -> None:
        """A rule in shadow would have refused the call."""
        self.series.shadow(refused.rule, refused.reason.value)
        self.provenance.denied(call, refused, is_shadow=True)
        if call.span is not None:
            call.span.is_shadowed = True
        if self._gate.is_open(("shadow", refused.rule, refused.reason.value), self._clock()):
            _log.info(
                "a rule in shadow would have refused: %s",
                refused.message,
                extra={"fields": _fields(call, 0, None, refused, None)},
            )

    def connection_opened(self, direction: Direction) -> None:
        """A peer connected (inbound: another sidecar; outbound: the agent)."""
        tally = self.tally
        if direction is _INBOUND:
            tally.connections_inbound += 1
            tally.opened_inbound += 1
        else:
            tally.connections_outbound += 1
            tally.opened_outbound += 1

    def connection_closed(self, direction: Direction) -> None:
        """That connection ended."""
        if direction is _INBOUND:
            self.tally.connections_inbound -= 1
        else:
            self.tally.connections_outbound -= 1

    # The rest is rare.

    def malformed(self, direction: Direction, refused: Refused, call_id: str = "") -> None:
        """Bytes came that never became a call: they count as a refusal of no known target.

        `call_id` is what the peer was told that they are called, where it was told anything.
        """
        if call_id:
            never = Call(call_id, direction, "", "", "", [], self._clock(), self._wall_clock())
            self.provenance.denied(never, refused)
        series = self.series.unknown[direction.value]
        series.results[names.REFUSED] += 1
        series.refusals[refused.reason] = series.refusals.get(refused.reason, 0) + 1
        if self._gate.is_open(("refused", refused.reason.value, direction.value), self._clock()):
            _log.warning("connection refused: %s", refused.message, extra={"fields": {"direction": direction.value}})

    def usage_malformed(self, call: Call, value: bytes) -> None:
        """An upstream reports what is no number of tokens: nothing is charged by that."""
        self.tally.usage_malformed += 1
        if self._gate.is_open(("usage", call.target.name), self._clock()):
            shown = value.decode("ascii", "backslashreplace")
            _log.warning("reported usage is no number: %s", shown, extra={"fields": _fields(call, 0, None, None, None)})

    def policy_taken(self) -> None:
        """A document was put in force: the first one, or a reload that worked."""
        tally = self.tally
        if tally.policy_taken_s:
            tally.reloads_ok += 1
        tally.policy_taken_s = self._wall_clock()
        tally.is_policy_stale = False

    def policy_refused(self) -> None:
        """A reload did not work; the older document stays."""
        self.tally.reloads_failed += 1
        self.tally.is_policy_stale = True

    def _say(self, call: Call, status: int, outcome: Outcome | None, refused: Refused | None, result: int) -> None:
        is_refused = result == names.REFUSED and refused is not None
        what = "refused" if is_refused else "failed"
        why = span_attributes.error_type(status, outcome, refused) or (outcome.verdict.value if outcome else "")
        target = call.target.name if call.upstream is not None else metrics.UNKNOWN
        if not self._gate.is_open((what, why, target), self._clock()):
            return
        message = refused.message if refused is not None else why
        _log.warning("call %s: %s", what, message, extra={"fields": _fields(call, status, outcome, refused, None)})

    def tick(self) -> None:
        """Write what the flood gate held back. The daemon calls it every ten seconds; `close` does at the end."""
        for key, count in self._gate.summaries(self._clock()):
            _log.warning(
                "and %d more calls %s", count, " ".join(key), extra={"fields": {"suppressed": count, "kind": list(key)}}
            )
        self.tally.lines_suppressed = self._gate.suppressed
        self.provenance.tick()

    def read_sources(self) -> None:
        """Ask the other rooms for their totals, on the loop's thread; `render` shows them from any thread."""
        self.tally.lines_suppressed = self._gate.suppressed
        self._exposed().reading = sources.read(self.sources)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the metrics and their content type. From any thread, after `read_sources`."""
        return self._exposed().render(accept)

    def _exposed(self) -> Exposition:
        if self._exposition is None:
            from meshd.telemetry.exposition import Exposition

            self._exposition = Exposition(self.series, self.tally, version=self.version, started_s=self._started_s)
        return self._exposition

    def totals(self) -> Totals:
        """Return what happened since the start, per target and reason."""
        found = Totals()
        for series in self.series.targets():
            target = found.targets.setdefault(series.target, TargetTotals(series.kind))
            calls = sum(series.results)
            target.calls += calls
            target.retries += series.retries
            target.input_tokens += series.used_input
            target.output_tokens += series.used_output
            for result, count in zip(names.RESULTS, series.results, strict=True):
                if count:
                    target.by_result[result] = target.by_result.get(result, 0) + count
            for reason, count in series.refusals.items():
                target.refused_by_reason[reason.value] = target.refused_by_reason.get(reason.value, 0) + count
            found.calls += calls
            found.input_tokens += series.used_input
            found.output_tokens += series.used_output
            found.refused += series.results[names.REFUSED]
            found.failed += series.results[names.FAILED]
        return found

    def close(self, timeout_s: float = 5.0) -> None:
        """Write the last summaries and send the last spans. Blocks for at most `timeout_s`: call it in a thread."""
        self.tick()
        self.tracer.close(timeout_s)
        self.provenance.close()


def _used(series: TargetSeries, model: ModelSeries, usage: Usage) -> None:
    given, made = usage.input_tokens, usage.output_tokens
    model.observe_tokens(given, made)
    series.used_input += given
    series.used_output += made
    if usage.is_estimated:
        series.estimated_input += given
        series.estimated_output += made


def _result(attempts: int, outcome: Outcome | None, refused: Refused | None) -> int:
    """Say how a call ended that did not simply come back from its upstream. `attempts` is 0 where none served it."""
    if outcome is not None and outcome.fault is _CALLER_GONE:
        return names.CANCELLED
    if refused is not None:
        return names.FAILED if refused.reason in _THEIR_REASONS else names.REFUSED
    if outcome is None or (outcome.fault is _FAULT_NONE and not attempts):
        return names.ANSWERED
    return names.CUT if outcome.fault in _CUT_FAULTS else names.FAILED


def _fields(
    call: Call, status: int, outcome: Outcome | None, refused: Refused | None, duration_s: float | None
) -> dict[str, Any]:
    """Return a log line's fields: who, what for, how it ended. No header, no body, no query."""
    found: dict[str, Any] = {
        "call": call.id,
        "direction": call.direction.value,
        "agent": call.agent,
        "target": call.target.name,
        "method": span_attributes.method(call),
        "path": redact.path(call.path[: span_attributes.TEXT_LENGTH_MAX]),
    }
    if call.context is not None:
        found["hops"] = call.context.hops
        found["evidence"] = call.evidence.value
        if call.context.workflow:
            found["workflow"] = call.context.workflow
    if call.target.kind is _LLM and call.ask is not None:
        found["model"] = call.ask.model_sent[: span_attributes.TEXT_LENGTH_MAX]
    if status:
        found["status"] = status
    if refused is not None:
        found["reason"] = refused.reason.value
        if refused.rule:
            found["rule"] = refused.rule
    if outcome is not None:
        found["verdict"] = outcome.verdict.value
        if outcome.fault is not _FAULT_NONE:
            found["fault"] = outcome.fault.value
        if outcome.usage is not None:
            found["tokens"] = outcome.usage.total
    if call.attempt > 1:
        found["attempts"] = call.attempt
    if duration_s is not None:
        found["duration_ms"] = round(duration_s * 1000, 3)
    if call.span is not None and call.span.is_sampled:
        found["trace"] = f"{call.span.trace_id:032x}"
    return found
