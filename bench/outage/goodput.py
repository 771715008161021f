"""What a provider that answers 429 is made use of: the adaptive limit beside every static one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bench.outage.callers import crowd
from bench.outage.stage import Row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.outage.stage import Stage

CALLERS: Final = 64
STATIC: Final = (1, 2, 4, 8, 16, 32, 64)
SHARE_MIN: Final = 0.9
SERVICE_S: Final = 0.05


class Scene(NamedTuple):
    """How the provider behaves, in equal parts of a run."""

    name: str
    parts: Sequence[dict[str, Any]]


SCENES: Final = {
    "steady": Scene("16 at once", ({"takes": 16},)),
    "changing": Scene("16, then 32, then 8 at once", ({"takes": 16}, {"takes": 32}, {"takes": 8})),
    "rate": Scene("200 a second", ({"rate": 200.0},)),
    "rates": Scene("200, then 400, then 100 a second", ({"rate": 200.0}, {"rate": 400.0}, {"rate": 100.0})),
}


class Run(NamedTuple):
    """What came of one run, by second."""

    done: float
    """Calls that the provider answered in full."""
    refused: float
    """Attempts that it refused."""
    failed: float
    """Calls whose callers gave up."""


async def _run(stage: Stage, scene: Scene, concurrency: dict[str, Any]) -> Run:
    stage.provide(service_s=SERVICE_S, **scene.parts[0])
    stage.sidecar({"concurrency": concurrency})

    async def change() -> None:
        for part in scene.parts[1:]:
            await asyncio.sleep(stage.seconds / len(scene.parts))
            await asyncio.to_thread(lambda part=part: stage.tell(**part))

    seen = await crowd(stage.port, CALLERS, stage.seconds, change)
    counts = stage.counts()
    return Run(counts["answered"] / stage.seconds, counts["refused"] / stage.seconds, seen["failed"] / stage.seconds)


def _figure(run: Run) -> str:
    return f"{run.done:.0f} answered, {run.refused:.1f} refused, {run.failed:.1f} given up a second"


async def goodput(stage: Stage, scenes: Sequence[str] = tuple(SCENES)) -> list[Row]:
    """Measure every scene with every static limit, then with the adaptive one."""
    rows = []
    for name in scenes:
        scene = SCENES[name]
        static = {}
        for most in STATIC:
            static[most] = await _run(stage, scene, {"adaptive": False, "max": most})
            rows.append(Row(f"{scene.name}: static {most}", _figure(static[most])))
        best = max(static, key=lambda most: static[most].done)
        adaptive = await _run(stage, scene, {"max": CALLERS})
        share = adaptive.done / static[best].done
        rows.append(Row(f"{scene.name}: adaptive", _figure(adaptive)))
        rows.append(
            Row(
                f"{scene.name}: goodput of the best static limit ({best})",
                f"{share:.0%}",
                f">= {SHARE_MIN:.0%}",
                share >= SHARE_MIN,
            )
        )
    return rows
