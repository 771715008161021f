"""Prints what telemetry costs a call: `python -m tests.telemetry.cost`. A measurement, not a test."""

from __future__ import annotations

import time
import timeit
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as ClientHistogram

from meshd.call import Usage
from meshd.telemetry import metrics
from meshd.telemetry.otlp import encode
from meshd.telemetry.series import Histogram
from meshd.telemetry.spans import FinishedSpan, Tracer
from meshd.telemetry.telemetry import Telemetry
from tests.telemetry.calls import Facts, call, outcome, upstream

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS = 20_000
ROUNDS = 5


class Kept:
    """A sink that keeps the last span."""

    last: FinishedSpan

    def put(self, span: FinishedSpan) -> None:
        self.last = span

    def close(self, timeout_s: float) -> None:
        pass


def cost_us(work: Callable[[], object], times: int = CALLS) -> float:
    """Return the best of a few rounds, in microseconds for each time."""
    return min(timeit.repeat(work, number=times, repeat=ROUNDS)) / times * 1e6


def whole_call(telemetry: Telemetry) -> Callable[[], None]:
    """Return a function that tells telemetry of one LLM call with eleven header fields."""
    made = call(upstream(), headers=[(b"x-header-%d" % number, b"value") for number in range(11)])
    ended, facts = outcome(usage=Usage(12, 34), first_byte_s=0.02), Facts()

    def tell() -> None:
        telemetry.started(made)
        telemetry.attempted(made, ended)
        telemetry.ended(made, 200, ended, None, meter=facts)

    return tell


def main() -> None:
    """Print the table."""
    for label, ratio in [("no span kept", 0.0), ("one in ten kept", 0.1), ("every span kept", 1.0)]:
        telemetry = Telemetry()
        telemetry.tracer = Tracer(Kept(), ratio)
        print(f"started + attempted + ended, {label:17} {cost_us(whole_call(telemetry)):7.2f} us")
    telemetry, sink = Telemetry(), Kept()
    telemetry.tracer = Tracer(sink, 1.0)
    whole_call(telemetry)()
    batch = [sink.last] * 64
    print(
        f"encoding a span, in the exporter's thread      {cost_us(lambda: encode(batch, b'', b''), 100) / 64:7.2f} us"
    )
    ours, theirs = Histogram(metrics.SECONDS_BUCKETS), ClientHistogram("a", "a", ["b"], registry=CollectorRegistry())
    child = theirs.labels("c")
    print(f"an observation, ours                           {cost_us(lambda: ours.observe(0.3)):7.2f} us")
    print(f"an observation, prometheus_client's            {cost_us(lambda: child.observe(0.3)):7.2f} us")
    telemetry = Telemetry()
    for number in range(200):
        made = call(upstream(f"u{number % 50}"), model=f"m{number}")
        telemetry.started(made)
        telemetry.attempted(made, outcome(usage=Usage(1, 2), first_byte_s=0.1))
        telemetry.ended(made, 200, outcome(), None)
    telemetry.read_sources()
    started_s = time.perf_counter()
    lines = telemetry.render()[0].count(b"\n")
    print(f"a scrape of {lines} lines, in a thread {(time.perf_counter() - started_s) * 1e3:16.1f} ms")


if __name__ == "__main__":
    main()
