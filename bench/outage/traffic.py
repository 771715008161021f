"""What an outage adds to the traffic at the provider, and how soon one that is dead is left alone."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from bench.outage.callers import Caller
from bench.outage.stage import Row

if TYPE_CHECKING:
    from bench.outage.stage import Stage

CALLERS: Final = 8
AT_ONCE: Final = 64
TRAFFIC_MAX: Final = 1.2
CALLS_MAX: Final = 5
_NO_BREAKER: Final = {"breaker": {"consecutive": 1000, "volume": 100_000}}


async def _call(stage: Stage, seconds: float) -> int:
    """Let callers that do not try again by themselves call for so long; return how many calls they made."""
    made = 0
    ends_s = time.monotonic() + seconds

    async def work() -> None:
        nonlocal made
        one = Caller(stage.port)
        while time.monotonic() < ends_s:
            await one.once()
            made += 1
            await asyncio.sleep(0.02)
        one.close()

    await asyncio.gather(*[work() for _ in range(CALLERS)])
    return made


async def _outage(stage: Stage, rule: dict[str, object] | None) -> tuple[int, int]:
    """Let the provider fail under load that went well before: (calls during the outage, attempts that reached it)."""
    stage.provide(service_s=0.005)
    stage.sidecar(rule)
    await _call(stage, 1.0)
    before = stage.counts()["arrived"]
    stage.tell(status=503)
    calls = await _call(stage, stage.seconds)
    return calls, stage.counts()["arrived"] - before


async def traffic(stage: Stage) -> list[Row]:
    """Measure the traffic of an outage with the default policy, and with the retry budget alone."""
    calls, arrived = await _outage(stage, None)
    ratio = arrived / calls
    rows = [
        Row(
            "traffic at the provider in an outage (503), by call",
            f"{ratio:.2f} ({arrived:,} attempts of {calls:,} calls)",
            f"<= {TRAFFIC_MAX}",
            ratio <= TRAFFIC_MAX,
        )
    ]
    calls, arrived = await _outage(stage, dict(_NO_BREAKER))
    # What calls that went well have saved is spent first: at most 20 retries, whatever the outage's length.
    saved = 20
    ratio = (arrived - saved) / calls
    rows.append(
        Row(
            "the same with the retry budget alone, no breaker, less the 20 retries saved before",
            f"{ratio:.2f} ({arrived:,} attempts of {calls:,} calls)",
            f"<= {TRAFFIC_MAX}",
            ratio <= TRAFFIC_MAX,
        )
    )
    return rows


async def _until_out(stage: Stage) -> tuple[int, int]:
    """Call one after another until one makes no attempt any more: (calls that made any, attempts)."""
    before = attempts = stage.metric("meshd_attempts_total")
    one = Caller(stage.port)
    calls = 0
    while calls < 100:
        await one.once()
        now = stage.metric("meshd_attempts_total")
        if now == attempts:
            break
        attempts = now
        calls += 1
    one.close()
    return calls, int(attempts - before)


async def dead(stage: Stage) -> list[Row]:
    """Measure how soon a provider that is gone, or silent, is out."""
    rows = []
    stage.provide()
    stage.sidecar()
    await _call(stage, 0.5)
    stage.kill_provider()
    through, attempts = await _until_out(stage)
    figure = f"after {through} calls ({attempts} attempts)"
    rows.append(Row("a dead provider is out, one call after another", figure, f"<= {CALLS_MAX}", through <= CALLS_MAX))

    stage.provide()
    stage.sidecar(timeouts={"first_byte": "1s"})
    await _call(stage, 0.5)
    stage.stop_provider()
    through, attempts = await _until_out(stage)
    figure = f"after {through} calls ({attempts} attempts)"
    rows.append(Row("a silent one (first_byte: 1s)", figure, f"<= {CALLS_MAX}", through <= CALLS_MAX))

    stage.provide()
    stage.sidecar()
    await _call(stage, 0.5)
    stage.kill_provider()
    before = stage.metric("meshd_attempts_total")
    callers = [Caller(stage.port) for _ in range(AT_ONCE)]
    told = Counter(status for status, _, _ in await asyncio.gather(*[one.once() for one in callers]))
    attempts = int(stage.metric("meshd_attempts_total") - before)
    after = Counter(status for status, _, _ in await asyncio.gather(*[one.once() for one in callers]))
    late = int(stage.metric("meshd_attempts_total") - before) - attempts
    for one in callers:
        one.close()
    rows.append(
        Row(
            f"{AT_ONCE} calls at once at a dead one: those in flight are not called back",
            f"{attempts} attempts, {told[502]} told 502, {told[503]} told 503",
        )
    )
    figure = f"{late} attempts, {after[503]} told 503"
    rows.append(Row(f"the {AT_ONCE} that come next", figure, "0 attempts", late == 0))
    stage.end_sidecar()
    return rows
