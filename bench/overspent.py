"""Tokens billed beyond a budget: 1,000 calls at once on one workflow, with and without `kill -9` in their midst.

The upstream stand-in plays the dearest provider there can be: it bills every output token that the forwarded request
allows, the moment the request arrives, whether or not anybody is left to hear the answer. What it billed in all is
set against the budget; what meshd believes is not asked.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import calls
from bench.figures import Bound, Goal
from bench.peers import meshd as ours
from bench.peers.contract import AbsentError, Running
from bench.processes import Child, NotReadyError, end_process, start, wait_until
from bench.results import Row
from bench.stage import brief
from bench.upstream.bodies import MODEL_BILLED_IN_FULL, chat_request

if TYPE_CHECKING:
    from pathlib import Path

    from bench.stage import Stage

NAME = "overspent"
CALLS = 1000
_KILL_AFTER = (150, 60, 20)
"""How many calls the upstream has answered when the sidecar is killed, once for each number."""
_EXPECTED = frozenset({0, 200, 402, 429})
_BURSTS_MAX = 8


@dataclass(frozen=True, slots=True)
class Trial:
    """One budget, one way of keeping it."""

    name: str
    tokens: int
    mode: str
    kills: tuple[int, ...] = ()


TRIALS = (
    Trial("fast", 150_000, "fast"),
    Trial("fast, killed thrice", 600_000, "fast", _KILL_AFTER),
    Trial("durable, killed thrice", 600_000, "durable", _KILL_AFTER),
)


def measure(stage: Stage) -> Row:
    """All trials; the figure is the worst of them."""
    row = Row(NAME, f"overspent tokens, {CALLS:,} concurrent calls on one budget, kills", unit="tokens")
    row.goal = Goal(Bound.AT_MOST, 0.0)
    worst = 0.0
    row.absolute["meshd"] = {}
    for trial in TRIALS:
        try:
            billed, statuses = _spend(stage, trial)
        except (AbsentError, NotReadyError, OSError) as error:
            row.notes.append(f"{trial.name}: {brief(error)}")
            stage.say(f"{NAME}: {trial.name} failed: {error}")
            row.is_valid = False
            continue
        worst = max(worst, float(billed - trial.tokens))
        row.figure = max(0.0, worst)
        row.absolute["meshd"][f"billed, {trial.name}"] = float(billed)
        text = f"{trial.name}: {billed:,} of {trial.tokens:,} tokens billed, statuses {_words(statuses)}"
        row.notes.append(text)
        stage.say(f"{NAME} {text}")
        # Nothing spent, nothing refused or another status: then the trial says nothing about the budget.
        if not statuses.get(200) or not statuses.get(402) or set(statuses) - _EXPECTED:
            row.is_valid = False
    return row


def _words(statuses: dict[int, int]) -> str:
    return ", ".join(f"{count} x {status or 'no answer'}" for status, count in sorted(statuses.items()))


def _spend(stage: Stage, trial: Trial) -> tuple[int, dict[int, int]]:
    """Send bursts until one is refused whole; return the tokens billed and the count of each status."""
    place = stage.place(f"meshd-{trial.mode}")
    home = place.folder / "home"
    document = ours.policy(place, tokens=trial.tokens, mode=trial.mode)
    billed_before = stage.counters()["tokens_billed"]
    statuses: dict[int, int] = {}
    kills = list(trial.kills)
    token = ""
    running: Running | None = None
    try:
        for _ in range(_BURSTS_MAX):
            if running is None:
                running = ours.Meshd().start_with(place, document, home)
                token = token or running.headers[ours.CONTEXT_HEADER]
                running.headers[ours.CONTEXT_HEADER] = token  # one workflow throughout
            seen, is_killed = _burst(stage, running, place.folder, kills.pop(0) if kills else None)
            for status, count in seen.items():
                statuses[status] = statuses.get(status, 0) + count
            if is_killed:
                running = None
            elif not kills and not seen.get(200):
                break
    finally:
        if running is not None:
            running.end()
    return stage.counters()["tokens_billed"] - billed_before, statuses


def _burst(stage: Stage, running: Running, folder: Path, kill_after: int | None) -> tuple[dict[int, int], bool]:
    body = chat_request(body_bytes=600, model=MODEL_BILLED_IN_FULL, cap=200)
    file = calls.chat(running, body=body).save(folder / "burst.json")
    log = folder / "burst.log"
    before = stage.counters()["calls"]
    child = start([sys.executable, "-m", "bench.load.burst", str(file), str(CALLS)], core=stage.cores.load, log=log)
    is_killed = False
    if kill_after is not None:
        is_killed = _kill_after(stage, running, child, before + kill_after)
    try:
        wait_until(lambda: child.process.poll() is not None, child, what="the burst", timeout_s=90.0)
    except NotReadyError:
        if child.process.returncode != 0:
            raise
    finally:
        end_process(child.process, now=True)
    if child.process.returncode != 0:
        raise NotReadyError(f"the burst failed: {child.tail()[-300:]}")
    return {int(status): count for status, count in json.loads(log.read_text()).items()}, is_killed


def _kill_after(stage: Stage, running: Running, burst: Child, calls_seen: int) -> bool:
    """End the sidecar without a warning once the upstream has seen so many calls; False if they never came."""
    while burst.process.poll() is None:
        if stage.counters()["calls"] >= calls_seen:
            end_process(running.child.process, now=True)
            return True
        time.sleep(0.001)
    return False
