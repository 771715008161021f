"""Supervisors that are agents of the SDK, of either kind, for tests in which they are asked."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

from meshd_sdk import Agent, Ctx, Event
from tests.end_to_end.sidecar import Sidecar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

T = TypeVar("T", bound="Supervised")

CONTINUE = {"action": "continue", "turns": 2, "reason": "nearly done"}
STOP = {"action": "stop", "reason": "it will never end"}
WAYS = ("agent", "topic")


class Boss:
    """A supervisor of either kind, which answers what the test gives it."""

    def __init__(self, way: str, name: str = "boss") -> None:
        self.way, self.name = way, name
        self.answer: Any = CONTINUE
        """None for never."""
        self.stories: list[dict[str, Any]] = []
        self.ended = asyncio.Event()

    async def decide(self, story: dict[str, Any]) -> Any:
        self.stories.append(story)
        if self.answer is None:
            await self.ended.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def agent(self, api: str) -> Agent:
        made = Agent(self.name, api=api, environ={}, grace=0)
        if self.way == "agent":

            @made.tool
            async def supervise(ctx: Ctx, story: dict[str, Any]) -> Any:
                return await self.decide(story)

        else:

            @made.on("ops.loops")
            async def asked(ctx: Ctx, event: Event) -> None:
                await ctx.publish("ops.loops.answers", await self.decide(event.data["story"]))

        return made


class Supervised:
    """A sidecar and a supervisor; what is on the stack is left in its turn."""

    def __init__(self, sidecar: Sidecar, way: str) -> None:
        self.sidecar, self.way = sidecar, way
        self.stack = contextlib.AsyncExitStack()
        self.boss = Boss(way)

    @property
    def api(self) -> str:
        assert self.sidecar.running is not None
        return str(self.sidecar.running["api"])

    async def asked(self, result: str) -> float:
        return await asyncio.to_thread(self.sidecar.metric, "meshd_supervisor_asked_total", way=self.way, result=result)

    async def close(self) -> None:
        self.boss.ended.set()
        await self.stack.aclose()


@contextlib.asynccontextmanager
async def making(kind: Callable[[Sidecar, str], T], sidecar: Sidecar) -> AsyncIterator[Callable[[str], T]]:
    """Make worlds by the way in which they ask, and close them."""
    made: list[T] = []

    def make(way: str) -> T:
        made.append(kind(sidecar, way))
        return made[-1]

    yield make
    for one in made:
        await one.close()
