"""Events on `mesh.intent` that cannot be led do not keep others from being led."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from meshd.engines.bus_memory import MemoryBus
from meshd.engines.bus_port import Event
from meshd.intent import leading
from tests.proxy.harness import until

POLICY = """
agent: manager
intents: {events: {}}
"""


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    words_of = leading.words_of

    def fail(event: Event) -> str:
        if event.id == "bad":
            raise ArithmeticError
        return words_of(event)

    monkeypatch.setattr(leading, "words_of", fail)


@pytest.mark.usefixtures("failing")
async def test_an_event_at_which_the_sidecar_fails_is_tried_again_and_the_next_is_led(door: Any) -> None:
    one = await door(POLICY, MemoryBus())
    lead = leading.Leading(one.mesh)
    lead.take(one.mesh.policy)
    await one.mesh.bus.publish([Event("mesh.intent", "manager", "bad"), Event("mesh.intent", "manager", "dumb")])
    settled = one.mesh.event_counts.settled
    await until(lambda: settled["mesh.intent", "retry"])
    async with asyncio.timeout(20):
        while not (letters := await one.mesh.bus.dead_letters(leading.GROUP)):
            await asyncio.sleep(0)
    assert [letter.event.id for letter in letters] == ["dumb"]
    await lead.end(0)
