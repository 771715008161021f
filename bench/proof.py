"""Evidence that the policy was at work while it was timed: meshd's own counters, beside what the upstream saw."""

from __future__ import annotations

import urllib.request
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.peers.contract import Running
    from bench.stage import Stage

_SHOWN = {
    "meshd_calls_total": "calls counted",
    "meshd_rule_hits_total": "rule hits",
    "meshd_budget_spent_tokens_total": "tokens charged",
    "meshd_refusals_total": "refusals",
    "meshd_spans_exported_total": "spans exported",
    "meshd_spans_dropped_total": "spans dropped",
}


def sums(exposition: str) -> dict[str, float]:
    """Return the sum over all labels of each metric in a Prometheus text, passing over lines that are none."""
    totals: dict[str, float] = {}
    for line in exposition.splitlines():
        name, _, value = line.rpartition(" ")
        name = name.partition("{")[0]
        if not name or line.startswith("#"):
            continue
        try:
            totals[name] = totals.get(name, 0.0) + float(value)
        except ValueError:
            continue
    return totals


def gather(stage: Stage, running: Running) -> str:
    """One line of counters, or why there is none."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{running.metrics_port}/metrics", timeout=10) as reply:
            totals = sums(reply.read().decode(errors="replace"))
    except OSError as error:
        return f"meshd's counters could not be read: {error}"
    shown = [f"{totals[name]:,.0f} {words}" for name, words in _SHOWN.items() if name in totals]
    spans_kb = stage.counters()["spans_bytes"] / 1000
    return ", ".join([*shown, f"{spans_kb:,.0f} kB of spans received by the collector"])
