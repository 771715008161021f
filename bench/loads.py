"""The rows that compare CPU and calls a second: one table of them, and the interleaved rounds that fill it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bench import calls
from bench.figures import Bound, Goal, ratio, rotated
from bench.peers.contract import Peer, Running, Wire
from bench.processes import NotReadyError
from bench.results import Cell, Row
from bench.stage import brief
from bench.upstream.bodies import (
    FLOOD_MESSAGES,
    FLOOD_PATH,
    STREAM_PATH,
    UNARY_PATH,
    chat_request,
    stream_events,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.load.request import Load, Request
    from bench.stage import Stage

_CHUNKS = 200
_MESSAGES = 1000
"""Of one gRPC stream, each way: so many that its head and its end do not count."""
_EVENTS = len(stream_events(_CHUNKS))


@dataclass(frozen=True, slots=True)
class LoadRow:
    """A row whose figure is meshd's CPU for each call or chunk over Envoy's."""

    name: str
    title: str
    goal: Goal
    wire: Wire
    request: Callable[[Running], Request]
    load: Callable[[Stage, Request, int], Load]
    probe: Callable[[Stage, Running, Request], None]
    rounds_max: int = 1000
    """Rows that vary another one have fewer rounds, so that the whole run stays short."""


def _probe_call(_stage: Stage, running: Running, request: Request) -> None:
    calls.probe(running, request)


def _probe_stream(_stage: Stage, running: Running, request: Request) -> None:
    calls.probe_stream(running, request, _EVENTS)


def _http(name: str, title: str, goal: float, connections: int, *, wire: Wire = Wire.HTTP, kb: float = 1.3) -> LoadRow:
    body = chat_request(body_bytes=int(kb * 1000))
    return LoadRow(
        name,
        title,
        Goal(Bound.AT_MOST, goal),
        wire,
        lambda running: calls.chat(running, wire, body=body),
        lambda stage, request, seconds: stage.calls(request, connections, seconds),
        _probe_call,
    )


def _unary(name: str, connections: int, streams: int) -> LoadRow:
    return LoadRow(
        name,
        f"CPU per HTTP/2 unary call, 1 kB, {connections} x {streams} streams",
        Goal(Bound.AT_MOST, 1.0),
        Wire.H2,
        calls.unary,
        lambda stage, request, seconds: stage.unary(request, connections, streams, seconds),
        calls.probe_unary,
    )


def _grpc(name: str, title: str, path: str, connections: int, streams: int, sent: int, got: int) -> LoadRow:
    def load(stage: Stage, request: Request, seconds: int) -> Load:
        return stage.own("messages", request, connections, streams, seconds, sent, got, seconds=seconds)

    def probe(stage: Stage, running: Running, request: Request) -> None:
        calls.probe_messages(stage, running, request, sent, got)

    goal = Goal(Bound.AT_MOST, 1.0)
    return LoadRow(name, title, goal, Wire.H2, lambda running: calls.grpc(running, path), load, probe)


def _sse(name: str, gap_ms: int) -> LoadRow:
    return LoadRow(
        name,
        f"CPU per SSE chunk, {gap_ms} ms between chunks, 32 streams",
        Goal(Bound.AT_MOST, 1.0),
        Wire.HTTP,
        lambda running: calls.stream(running, chunks=_CHUNKS, gap_ms=gap_ms),
        lambda stage, request, seconds: stage.own("streams", request, 32, seconds, _EVENTS, seconds=seconds),
        _probe_stream,
    )


LOAD_ROWS: tuple[LoadRow, ...] = (
    _http("http", "CPU per HTTP LLM call, 32 connections", 1.0, 32),
    replace(_http("http-256", "the same, 256 connections", 1.0, 256), rounds_max=3),
    _http("http-100kb", "CPU per call with a 100 kB body, 32 connections", 1.2, 32, kb=100),
    _http("http-tls", "CPU per HTTP LLM call over a TLS upstream", 1.2, 32, wire=Wire.TLS),
    _unary("h2", 8, 4),
    replace(_unary("h2-32x1", 32, 1), rounds_max=3),
    _grpc("grpc", "CPU per gRPC unary call, 1 kB, 8 x 4 streams", UNARY_PATH, 8, 4, 1, 1),
    _grpc("grpc-32x1", "CPU per gRPC unary call, 1 kB, 32 x 1 streams", UNARY_PATH, 32, 1, 1, 1),
    _grpc("grpc-stream", "CPU per gRPC message there and back, 8 x 4 streams", STREAM_PATH, 8, 4, _MESSAGES, _MESSAGES),
    _grpc("grpc-flood", "CPU per gRPC message of a flood, 8 x 4 streams", FLOOD_PATH, 8, 4, 1, FLOOD_MESSAGES),
    replace(_sse("sse-0ms", 0), rounds_max=3),
    _sse("sse-5ms", 5),
)


def measure(stage: Stage, row: LoadRow, peers: list[Peer]) -> Row:
    """Fill one row: a probe and a warm-up for each peer, then rounds in which the peers take turns at being first."""
    cells = {peer.name: Cell() for peer in peers if row.wire in peer.wires}
    by_name = {peer.name: peer for peer in peers}
    for turn in range(min(stage.options.rounds, row.rounds_max)):
        for name in rotated(list(cells), turn):
            cell = cells[name]
            running = stage.get(by_name[name])
            if running is None or row.wire not in running.addresses or cell.failures:
                continue
            try:
                _round(stage, row, running, cell, turn)
            except NotReadyError as error:
                cell.failures.append(brief(error))
                stage.say(f"{row.name}: {name} failed: {error}")
    return finished(row, cells)


def _round(stage: Stage, row: LoadRow, running: Running, cell: Cell, turn: int) -> None:
    request = row.request(running)
    if turn == 0:
        row.probe(stage, running, request)
        row.load(stage, request, 1)
    sample = stage.measured(running, lambda: row.load(stage, request, stage.options.seconds))
    cell.samples.append(sample)
    stage.say(
        f"{row.name} round {turn + 1} {running.name}: {sample.cpu_us:.1f} us, {sample.per_s:,.0f}/s, "
        f"{sample.busy:.0%} of its core" + (f", {sample.errors} ERRORS" if sample.errors else "")
    )


def finished(row: LoadRow, cells: dict[str, Cell]) -> Row:
    """Turn the samples of a row into its figures. A row is invalid where a call of meshd or Envoy went wrong."""
    done = Row(row.name, row.title, goal=row.goal)
    for name, cell in cells.items():
        figures = {key: cell.middle(key) for key in ("cpu_us", "per_s", "busy", "foreign")}
        if figures["cpu_us"] is not None:
            done.absolute[name] = {key: value for key, value in figures.items() if value is not None}
            done.absolute[name]["errors"] = float(cell.errors)
        if cell.samples and not all(sample.count for sample in cell.samples):
            done.notes.append(f"{name}: a round without a single answered call, its figures do not count")
        if cell.errors:
            done.notes.append(f"{name}: {cell.errors} calls failed, its figures do not count")
        done.notes += [f"{name}: {failure}" for failure in cell.failures]
    ours = cells.get("meshd", Cell())
    for name, cell in cells.items():
        over = ratio(ours.middle("cpu_us"), cell.middle("cpu_us"))
        if name != "meshd" and over is not None and cell.is_valid:
            done.ratios[name] = over
    done.figure = done.ratios.get("envoy")
    envoy = cells.get("envoy", Cell())
    if envoy.samples and not envoy.is_valid:
        done.figure = ratio(ours.middle("cpu_us"), envoy.middle("cpu_us"))
    done.is_valid = all(cell.is_valid for cell in (ours, envoy) if cell.samples)
    generators = {s.generator for cell in cells.values() for s in cell.samples}
    if generators:
        rounds = max(len(cell.samples) for cell in cells.values())
        done.notes.append(f"load by {' and '.join(sorted(generators))}, {rounds} rounds")
    return done
