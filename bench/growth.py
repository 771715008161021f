"""Whether a call costs the same however many connections, workflows and rules there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from bench import calls
from bench.figures import Bound, Goal, rise, rotated
from bench.load.request import Load, Request
from bench.peers import PEERS
from bench.peers import meshd as ours
from bench.peers.contract import AbsentError, Peer, Running
from bench.processes import NotReadyError
from bench.results import Cell, Row
from bench.stage import brief

if TYPE_CHECKING:
    from bench.stage import Stage

CONNECTIONS = (1, 32, 256, 1000)
WORKFLOWS = (1, 100, 10_000)
RULES = (1, 100, 1000)
FLAT = Goal(Bound.AT_MOST, 1.25)
"""The most that a later point may cost over the cheapest before it, and still be called flat: runs on two cores
scatter by ten per cent, and more connections mean colder caches for everybody."""
BY_CONNECTIONS, BY_WORKFLOWS, BY_RULES = "growth-connections", "growth-workflows", "growth-rules"
NAMES = (BY_CONNECTIONS, BY_WORKFLOWS, BY_RULES)
_CALLERS = 32

Point = tuple[Running, Callable[[], Load]]


def _meshd() -> ours.Meshd:
    return next(peer for peer in PEERS if isinstance(peer, ours.Meshd))


def measure(stage: Stage, peers: list[Peer]) -> list[Row]:
    """The three rows. Connections are measured for Envoy too, since they cost everybody something."""
    rows: list[Row] = []
    for name, title, make in (
        (BY_CONNECTIONS, f"growth over {_list(CONNECTIONS)} connections", _connections),
        (BY_WORKFLOWS, f"growth over {_list(WORKFLOWS)} workflows", _workflows),
        (BY_RULES, f"growth over {_list(RULES)} rules", _rules),
    ):
        if not stage.options.wants_row(name):
            continue
        row = Row(name, title, unit="x at most", goal=FLAT)
        for peer in peers:
            if peer.name == "meshd" or (peer.name == "envoy" and make is _connections):
                _fill(stage, row, peer, make)
        rows.append(row)
    return rows


def _list(points: tuple[int, ...]) -> str:
    return ", ".join(f"{point:,}" for point in points)


def _fill(stage: Stage, row: Row, peer: Peer, make: Callable[[Stage, Peer, int], dict[int, Point]]) -> None:
    started: list[Running] = []
    try:
        points = make(stage, peer, stage.options.seconds)
        started = [running for running, _ in points.values() if running not in stage.running.values()]
        cells = _rounds(stage, row.name, peer.name, points)
    except (AbsentError, NotReadyError, OSError) as error:
        row.notes.append(f"{peer.name}: {brief(error)}")
        row.is_valid = row.is_valid and peer.name != "meshd"
        return
    finally:
        for running in started:
            running.end()
    costs = {point: cell.middle("cpu_us") or 0.0 for point, cell in cells.items()}
    row.absolute[peer.name] = {f"at_{point}": cost for point, cost in costs.items()}
    worst = rise(list(costs.values()))
    row.absolute[peer.name]["rise"] = worst
    if peer.name == "meshd":
        row.figure = worst
        row.is_valid = all(cell.is_valid for cell in cells.values())
    row.notes += [f"{peer.name}: {cell.errors} calls failed at {p}" for p, cell in cells.items() if cell.errors]


def _rounds(stage: Stage, row: str, name: str, points: dict[int, Point]) -> dict[int, Cell]:
    cells = {point: Cell() for point in points}
    for turn in range(min(stage.options.rounds, 3)):
        for point in (int(text) for text in rotated([str(point) for point in points], turn)):
            running, load = points[point]
            if turn == 0:
                _warm(load, point if row == BY_WORKFLOWS else 1)
            sample = stage.measured(running, load)
            cells[point].samples.append(sample)
            stage.say(f"{row} {name} round {turn + 1} at {point:,}: {sample.cpu_us:.1f} us, {sample.per_s:,.0f}/s")
    return cells


def _warm(load: Callable[[], Load], calls_needed: int) -> None:
    """Run until each of the workflows was seen, since a first call opens an account."""
    done = 0
    for _ in range(20):
        done += load().count
        if done >= calls_needed:
            return


def _connections(stage: Stage, peer: Peer, seconds: int) -> dict[int, Point]:
    running = stage.get(peer)
    if running is None:
        raise AbsentError(stage.absent[peer.name])
    request = calls.chat(running)
    return {n: (running, lambda n=n: stage.calls(request, n, seconds)) for n in CONNECTIONS}  # type: ignore[misc]


def _workflows(stage: Stage, peer: Peer, seconds: int) -> dict[int, Point]:
    running = stage.get(peer)
    if running is None or running.key_file is None:
        raise AbsentError(stage.absent.get(peer.name, "no key file"))
    request = calls.chat(running)
    others = {name: value for name, value in request.headers.items() if name != ours.CONTEXT_HEADER}
    points: dict[int, Point] = {}
    for number in WORKFLOWS:
        signed = tuple(ours.tokens(running.key_file, number))
        turned = replace(request, headers=others, turn_header=ours.CONTEXT_HEADER, turns=signed)
        points[number] = (running, _load(stage, turned, seconds))
    return points


def _rules(stage: Stage, _peer: Peer, seconds: int) -> dict[int, Point]:
    points: dict[int, Point] = {}
    for number in RULES:
        place = stage.place(f"meshd-{number}-rules")
        running = _meshd().start_with(place, ours.policy(place, rules=number), place.folder / "home")
        points[number] = (running, _load(stage, calls.chat(running), seconds))
    return points


def _load(stage: Stage, request: Request, seconds: int) -> Callable[[], Load]:
    return lambda: stage.calls(request, _CALLERS, seconds)
