"""All rows, in the order in which they are measured and printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench import growth, latency, loads, memory, overspent, proof
from bench.figures import Bound, Goal, ratio
from bench.peers import ONLY_WHERE_NAMED
from bench.results import Row

if TYPE_CHECKING:
    from bench.peers.contract import Peer
    from bench.stage import Stage

LITELLM = "litellm"


def over_litellm(http: Row | None) -> Row:
    """The row of calls a second over LiteLLM, from the figures of the HTTP row."""
    row = Row(LITELLM, "calls/s over LiteLLM, one worker", unit="x LiteLLM", goal=Goal(Bound.AT_LEAST, 150.0))
    if http is None or LITELLM not in http.absolute or "meshd" not in http.absolute:
        row.notes.append("measured with PEERS=litellm")
        return row
    theirs, ours = http.absolute[LITELLM], http.absolute["meshd"]
    row.figure = ratio(ours["per_s"], theirs["per_s"])
    row.is_valid = not ours["errors"] and not theirs["errors"]
    row.absolute = {name: {"per_s": http.absolute[name]["per_s"]} for name in ("meshd", LITELLM)}
    return row


def measure(stage: Stage) -> tuple[list[Row], str]:
    """Measure what is asked for; return the rows and the evidence that meshd's policy was on."""
    peers = stage.wanted()
    rows = _compared(stage, peers)
    evidence = proof.gather(stage, stage.running["meshd"]) if "meshd" in stage.running else ""
    rows += growth.measure(stage, peers)
    stage.end_peers()
    if any(stage.options.wants_row(name) for name in memory.NAMES):
        rows += memory.measure(stage, peers)
    if stage.options.wants_row(overspent.NAME) and "meshd" not in stage.absent:
        rows.append(overspent.measure(stage))
    return rows, evidence


def _compared(stage: Stage, peers: list[Peer]) -> list[Row]:
    rows: list[Row] = []
    light = [peer for peer in peers if peer.name not in ONLY_WHERE_NAMED]
    wanted = [row for row in loads.LOAD_ROWS if stage.options.wants_row(row.name)]
    rows += [loads.measure(stage, row, peers if row.name == "http" else light) for row in wanted]
    if stage.options.wants_row(latency.NAME):
        rows.append(latency.measure(stage, peers))
    if stage.options.wants_row(LITELLM) or any(peer.name == LITELLM for peer in peers):
        rows.append(over_litellm(next((row for row in rows if row.name == "http"), None)))
    return rows
