"""Resident memory, idle and with 1,000 streams open, and the time from start to ready. Each on fresh processes."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from bench import calls, proc
from bench.figures import Bound, Goal, median, ratio
from bench.peers.contract import AbsentError, Peer, Running, Wire
from bench.processes import NotReadyError, end_process, start, wait_until
from bench.results import Row
from bench.stage import brief

if TYPE_CHECKING:
    from bench.stage import Stage

STREAMS = 1000
STARTS = 3
_HELD_MS = 600_000
IDLE, OPEN, OPEN_TLS, READY = "rss-idle", "rss-stream", "rss-stream-tls", "start"
NAMES = (IDLE, OPEN, OPEN_TLS, READY)


def measure(stage: Stage, peers: list[Peer]) -> list[Row]:
    """Start each peer afresh, use each of its wires once, and weigh it."""
    idle = Row(IDLE, "idle RSS, everything configured and used once", unit="MB", goal=Goal(Bound.AT_MOST, 64.0))
    opened = Row(OPEN, f"RSS for each open plain stream, {STREAMS:,} open", unit="kB", goal=Goal(Bound.BELOW, 20.0))
    tls = Row(OPEN_TLS, f"RSS for each open stream over a TLS upstream, {STREAMS:,} open", unit="kB")
    ready = Row(READY, "start to ready", unit="s", goal=Goal(Bound.BELOW, 1.0))
    for peer in peers:
        if peer.name == "litellm":
            continue  # it would take minutes, and no goal is set against it here
        if any(stage.options.wants_row(row.name) for row in (idle, opened, tls)):
            _weigh(stage, peer, idle, opened, tls)
        if stage.options.wants_row(READY):
            _time_starts(stage, peer, ready)
    rows = [row for row in (idle, opened, tls, ready) if stage.options.wants_row(row.name)]
    for row in rows:
        ours = row.absolute.get("meshd", {}).get(row.unit)
        row.figure = ours
        for name, values in row.absolute.items():
            over = ratio(ours, values.get(row.unit))
            if name != "meshd" and over is not None:
                row.ratios[name] = over
    return rows


def _time_starts(stage: Stage, peer: Peer, row: Row) -> None:
    times: list[float] = []
    for _ in range(STARTS):
        try:
            running = peer.start(stage.place(f"{peer.name}-start"))
        except (AbsentError, NotReadyError, OSError) as error:
            row.notes.append(f"{peer.name}: {brief(error)}")
            return
        times.append(running.ready_s)
        running.end()
    row.absolute[peer.name] = {"s": median(times)}
    stage.say(f"{READY} {peer.name}: {median(times):.3f} s")


def _weigh(stage: Stage, peer: Peer, idle: Row, opened: Row, tls: Row) -> None:
    for wire, row in ((Wire.HTTP, opened), (Wire.TLS, tls)):
        try:
            running = peer.start(stage.place(f"{peer.name}-rss"))
        except (AbsentError, NotReadyError, OSError) as error:
            row.notes.append(f"{peer.name}: {brief(error)}")
            continue
        try:
            _use_once(stage, running)
            settled = _settled_bytes(running)
            if wire is Wire.HTTP:
                idle.absolute[peer.name] = {"MB": settled / 1e6}
                stage.say(f"{IDLE} {peer.name}: {settled / 1e6:.1f} MB")
            if wire in running.addresses and stage.options.wants_row(row.name):
                grown = _with_streams(stage, running, wire) - settled
                row.absolute[peer.name] = {"kB": grown / 1000 / STREAMS}
                stage.say(f"{row.name} {peer.name}: {grown / 1000 / STREAMS:.1f} kB a stream")
        except NotReadyError as error:
            row.notes.append(f"{peer.name}: {brief(error)}")
            row.is_valid = row.is_valid and peer.name != "meshd"
            stage.say(f"{row.name}: {peer.name} failed: {error}")
        finally:
            running.end()


def _use_once(stage: Stage, running: Running) -> None:
    for wire in running.addresses:
        if wire is Wire.H2:
            calls.probe_unary(stage, running, calls.unary(running))
        else:
            calls.probe(running, calls.chat(running, wire))


def _settled_bytes(running: Running) -> int:
    """The largest of a few readings a moment apart: what it holds when nothing happens."""
    readings = []
    for _ in range(5):
        readings.append(proc.rss_bytes(running.pids()))
        time.sleep(0.1)
    return max(readings)


def _with_streams(stage: Stage, running: Running, wire: Wire) -> int:
    request = calls.stream(running, wire, chunks=3, gap_ms=_HELD_MS)
    file = request.save(stage.folder / "held.json")
    command = [sys.executable, "-m", "bench.load.held", str(file), str(STREAMS)]
    log = stage.folder / "held.log"
    child = start(command, core=stage.cores.load, log=log)
    try:
        wait_until(lambda: b"OPEN" in log.read_bytes(), child, what="the streams", timeout_s=60.0)
        words = log.read_text().split()
        good = int(words[words.index("OPEN") + 1])
        if good != STREAMS:
            raise NotReadyError(f"{running.name}: only {good} of {STREAMS} streams began")
        return _settled_bytes(running)
    finally:
        end_process(child.process, now=True)
