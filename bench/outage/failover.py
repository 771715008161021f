"""How long a call takes that another upstream answers, while the breaker of its own target is open."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Final

from bench.outage.callers import Caller
from bench.outage.stage import Row
from bench.processes import free_port

if TYPE_CHECKING:
    from bench.outage.stage import Stage

CALLS: Final = 300
BREAKS: Final = 6
"""Calls that fail until the breaker is open, and one more."""
FAILOVER_MS_MAX: Final = 50.0


async def _took_ms(one: Caller, served_by: str | None) -> float:
    status, fields, seconds = await one.once()
    if (status, fields.get("x-meshd-served-by")) != (200, served_by):
        raise AssertionError(f"{status}, served by {fields.get('x-meshd-served-by')}")
    return seconds * 1000


async def failover(stage: Stage) -> list[Row]:
    """Measure calls to a target that is well, and calls to a dead one with that in its place, in turn."""
    stage.provide(service_s=0.0)
    gone = {"url": f"http://127.0.0.1:{free_port()}", "kind": "llm", "dialect": "openai"}
    chain = {"retry": {"attempts": 0}, "fallback": {"to": [{"upstream": "llm"}]}}
    stage.sidecar(others={"gone": gone}, rules=[{"name": "gone", "match": {"target": "gone"}, **chain}])
    direct, diverted = Caller(stage.port), Caller(stage.port, "gone")
    for _ in range(BREAKS):
        await _took_ms(direct, None)
        await _took_ms(diverted, "llm/m")
    took: dict[str, list[float]] = {"direct": [], "diverted": []}
    for _ in range(CALLS):
        took["direct"].append(await _took_ms(direct, None))
        took["diverted"].append(await _took_ms(diverted, "llm/m"))
    direct.close()
    diverted.close()
    stage.end_sidecar()
    p99 = _p99(took["diverted"])
    figure = f"p50 {statistics.median(took['diverted']):.2f} ms, p99 {p99:.2f} ms"
    beside = f"p50 {statistics.median(took['direct']):.2f} ms, p99 {_p99(took['direct']):.2f} ms"
    return [
        Row("failover, breaker open: a call that another upstream answers", figure, "< 50 ms", p99 < FAILOVER_MS_MAX),
        Row("the same upstream called by its own name", beside),
    ]


def _p99(took: list[float]) -> float:
    return sorted(took)[int(len(took) * 0.99) - 1]
