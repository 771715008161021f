"""What a proxy adds to a call at 100 calls/s, over the upstream called directly in the same round."""

from __future__ import annotations

from bench import calls
from bench.figures import Bound, Goal, median, percentile, ratio, rotated
from bench.peers.contract import Peer, Running, Wire
from bench.processes import NotReadyError
from bench.results import Cell, Row
from bench.stage import DIRECT, Stage, brief

NAME = "latency"
CALLS_PER_S = 100


def measure(stage: Stage, peers: list[Peer]) -> Row:
    """Open-loop calls through each peer and to the upstream itself, in turns."""
    by_name = {peer.name: peer for peer in peers if Wire.HTTP in peer.wires}
    cells = {name: Cell() for name in (DIRECT, *by_name)}
    seconds = max(stage.options.seconds, 1)
    for turn in range(stage.options.rounds):
        for name in rotated(list(cells), turn):
            running = stage.direct() if name == DIRECT else stage.get(by_name[name])
            if running is None or cells[name].failures:
                continue
            try:
                _round(stage, running, cells[name], turn, seconds)
            except NotReadyError as error:
                cells[name].failures.append(brief(error))
                stage.say(f"{NAME}: {name} failed: {error}")
    return finished(cells)


def _round(stage: Stage, running: Running, cell: Cell, turn: int, seconds: int) -> None:
    request = calls.chat(running)
    if turn == 0:
        calls.probe(running, request)
        stage.own("rate", request, CALLS_PER_S, 0.5, seconds=seconds)
    load = lambda: stage.own("rate", request, CALLS_PER_S, seconds, seconds=seconds)  # noqa: E731
    sample = stage.measured(running, load)
    cell.samples.append(sample)
    if sample.latencies_s:
        stage.say(f"{NAME} round {turn + 1} {running.name}: p50 {percentile(sample.latencies_s, 0.5) * 1e6:.0f} us")


def added_s(cell: Cell, direct: Cell, share: float) -> float | None:
    """The median over the rounds of a percentile through the proxy less the direct one of the same round."""
    pairs = zip(cell.samples, direct.samples, strict=False)
    values = [
        percentile(ours.latencies_s, share) - percentile(theirs.latencies_s, share)
        for ours, theirs in pairs
        if ours.latencies_s and theirs.latencies_s
    ]
    return median(values) if values else None


def finished(cells: dict[str, Cell]) -> Row:
    """The row, from the samples."""
    row = Row(NAME, f"added p50 at {CALLS_PER_S} calls/s", goal=Goal(Bound.AT_MOST, 1.0))
    added: dict[str, float | None] = {}
    for name, cell in cells.items():
        p50_s, p99_s = cell.latency_s(0.5), cell.latency_s(0.99)
        if p50_s is None or p99_s is None:
            row.notes += [f"{name}: {failure}" for failure in cell.failures]
            continue
        row.absolute[name] = {"p50_us": p50_s * 1e6, "p99_us": p99_s * 1e6, "errors": float(cell.errors)}
        added[name] = None if name == DIRECT else added_s(cell, cells[DIRECT], 0.5)
        value = added[name]
        if value is not None:
            row.absolute[name]["added_p50_us"] = value * 1e6
            row.absolute[name]["added_p99_us"] = (p99_s - (cells[DIRECT].latency_s(0.99) or 0.0)) * 1e6
        if cell.errors:
            row.notes.append(f"{name}: {cell.errors} calls failed")
    for name, value in added.items():
        over = ratio(added.get("meshd"), value)
        if name not in ("meshd", DIRECT) and over is not None and value is not None and value > 0:
            row.ratios[name] = over
    row.figure = row.ratios.get("envoy")
    judged = [cells[name] for name in (DIRECT, "meshd", "envoy") if name in cells and cells[name].samples]
    row.is_valid = all(cell.is_valid for cell in judged)
    return row
