"""Who publish and handle while a server, a line or a sidecar breaks."""

from __future__ import annotations

import asyncio
from collections import Counter

from meshd.engines.bus_port import Bus, Subscription, Verdict
from meshd.engines.port import StoreError
from tests.engines.buses import event


class Crew:
    """Who publish and handle, whatever breaks, and note what was acknowledged."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.published: list[str] = []
        self.begun: Counter[str] = Counter()
        self.done: set[str] = set()
        self.again: list[str] = []
        """What was begun after its handler had been acknowledged."""
        self.progress = asyncio.Event()

    async def publish(self, bus: Bus, name: str) -> None:
        for number in range(self.wanted):
            while True:
                try:
                    await bus.publish([event(id=f"{name}/{number}", partition_key=str(number % 5))])
                    break
                except StoreError:
                    await asyncio.sleep(0.01)
            self.published.append(f"{name}/{number}")
            self.progress.set()

    async def handle(self, one: Subscription) -> None:
        while True:
            try:
                delivery = await one.next()
                self.begun[delivery.event.id] += 1
                if delivery.event.id in self.done:
                    self.again.append(delivery.event.id)
                if await one.settle(delivery, Verdict.SUCCESS):
                    self.done.add(delivery.event.id)
            except StoreError:
                await asyncio.sleep(0.01)
            self.progress.set()

    async def have_published(self, events: int) -> None:
        while len(self.published) < events:
            self.progress.clear()
            await self.progress.wait()
