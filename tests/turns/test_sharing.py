"""Turns that outlive a restart and span sidecars, on one store."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from meshd.engines.memory import MemoryStore
from meshd.engines.port import Ability, Change, StoreError
from meshd.turns.book import Book
from meshd.turns.sharing import SPACE, Sharing
from meshd.turns.turn import LOOP, MAX_TURNS, PASS, Limits
from tests.proxy.harness import until
from tests.turns.talk import Talk

WALL_S = 1_790_000_000.0


class Sidecar:
    """A book and its share in a store."""

    def __init__(self, store: MemoryStore | None, number: int, span_s: float = 86_400.0) -> None:
        self.book = Book()
        self.wall_s = WALL_S
        self.span_s = span_s
        self.sharing = Sharing(
            self.book, lambda: store, number, lambda: self.wall_s, lambda: self.wall_s, lambda: self.span_s
        )

    def talk(self, key: str = "wf", limits: Limits | None = None) -> Talk:
        workflow = self.book.of(key)
        if not workflow.is_read:
            self.sharing.want(key, workflow)
        return Talk(limits or Limits(), workflow)


def shared() -> MemoryStore:
    store = MemoryStore()
    store.abilities = frozenset({Ability.SHARED})
    return store


async def test_what_was_asked_before_a_restart_is_known_after_it() -> None:
    store = shared()
    one = Sidecar(store, 1)
    talk = one.talk()
    for _ in range(3):
        assert talk.ask("Review the draft", "It needs work").verdict == PASS
    await one.sharing.flush()
    two = Sidecar(store, 2)
    late = two.talk()
    await two.sharing.flush()
    assert late.ask("Review the draft", "It needs work").verdict == LOOP


async def test_two_sidecars_count_together() -> None:
    store = shared()
    sidecars = [Sidecar(store, 1), Sidecar(store, 2)]
    talks = [sidecar.talk() for sidecar in sidecars]
    passed = 0
    for n in range(800):
        at = n % 2
        if talks[at].ask(f"Describe item {n}", f"It weighs {n} kilos").verdict == MAX_TURNS:
            break
        passed += 1
        for sidecar in sidecars:
            await sidecar.sharing.flush()
    assert 594 <= passed <= 602, "twenty turns, of which a thirtieth each, whoever makes them"


async def test_concurrent_writers_lose_nothing() -> None:
    store = shared()
    sidecars = [Sidecar(store, number) for number in range(1, 6)]
    for number, sidecar in enumerate(sidecars):
        talk = sidecar.talk()
        for n in range(10):
            talk.ask(f"Describe item {number * 100 + n}", f"It weighs {n} kilos")
    # All of them read nothing before they write: each but the first finds the record changed.
    for sidecar in sidecars:
        await sidecar.sharing.flush()
    reader = Sidecar(store, 99)
    workflow = reader.talk().workflow
    await reader.sharing.flush()
    assert workflow.edges["lead", "writer"].tenths == 20, "four of ten, by five of them"


async def test_one_learns_of_the_others_without_asking() -> None:
    store = shared()
    one, two = Sidecar(store, 1), Sidecar(store, 2)
    first, second = one.talk(), two.talk()
    await two.sharing.flush()
    first.ask("a question of the first", "an answer")
    await one.sharing.flush()
    await asyncio.sleep(0)  # the store tells those who watch it
    await two.sharing.flush()
    assert second.workflow.edges["lead", "writer"].tenths == 1


async def test_a_store_that_fails_is_said_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    store = shared()
    one = Sidecar(store, 1)
    talk = one.talk()
    talk.ask("a question", "an answer")
    store.fault = StoreError("the disk is on fire")
    await one.sharing.flush()
    await one.sharing.flush()
    assert str(one.sharing.fault) == "the disk is on fire"
    assert caplog.text.count("cannot be shared") == 1
    store.fault = None
    await one.sharing.flush()
    assert one.sharing.fault is None
    assert await store.keys(SPACE) == ["wf"]


async def test_without_a_store_nothing_is_shared_and_nothing_breaks() -> None:
    one = Sidecar(None, 1)
    talk = one.talk()
    for _ in range(3):
        talk.ask("Review the draft", "It needs work")
        await one.sharing.flush()
    assert talk.ask("Review the draft", "It needs work").verdict == LOOP


async def test_a_broken_record_is_written_anew(caplog: pytest.LogCaptureFixture) -> None:
    store = shared()
    await store.write([Change(SPACE, "wf", b"rubbish")])
    one = Sidecar(store, 1)
    talk = one.talk()
    talk.ask("a question", "an answer")
    await one.sharing.flush()
    assert "cannot be read" in caplog.text
    two = Sidecar(store, 2)
    workflow = two.talk().workflow
    await two.sharing.flush()
    assert workflow.edges["lead", "writer"].tenths == 1


async def test_records_that_nobody_needs_are_swept() -> None:
    store = shared()
    one = Sidecar(store, 1)
    for key in ("old", "new"):
        if key == "new":
            one.wall_s += 90_000
        one.talk(key).ask("a question", "an answer")
        await one.sharing.flush()
    sweeper = Sidecar(store, 2)
    sweeper.wall_s = one.wall_s
    await sweeper.sharing.sweep()
    assert await store.keys(SPACE) == ["new"]


@pytest.mark.parametrize(("span_s", "kept"), [(3600.0, []), (90_001.0, ["wf"])])
async def test_the_span_of_the_policy_is_how_long_a_workflow_is_remembered(span_s: float, kept: list[str]) -> None:
    """Of its own book too, and from its start on: no call need have come before."""
    store = shared()
    one, two = Sidecar(store, 1, span_s), Sidecar(store, 2, span_s)
    talk = one.talk()
    talk.now_s = one.wall_s
    for _ in range(3):
        talk.ask("Review the draft", "It needs work")
    await one.sharing.flush()
    one.wall_s = two.wall_s = WALL_S + 90_000
    await two.sharing.sweep()
    assert await store.keys(SPACE) == kept
    await one.sharing.sweep()
    assert list(one.book.workflows) == kept
    await one.sharing.flush()
    assert await store.keys(SPACE) == kept, "and it is not written again"
    again = one.talk()
    await one.sharing.flush()
    assert again.ask("Review the draft", "It needs work").verdict == (LOOP if kept else PASS)


@pytest.mark.parametrize(("span_s", "every_s"), [(1.0, 60.0), (120.0, 120.0)])
async def test_it_is_looked_for_as_often_as_the_span_is_over(span_s: float, every_s: float) -> None:
    store = shared()
    old = Sidecar(store, 1)
    old.talk("old").ask("a question", "an answer")
    await old.sharing.flush()
    one = Sidecar(store, 2, span_s)
    task = asyncio.create_task(one.sharing.run())
    try:
        # Twice each: what is looked for comes behind the writing.
        for age_s, kept in ((0.0, ["old"]), (every_s - 1, ["old"]), (every_s + 2, [])):
            one.wall_s = WALL_S + age_s
            for _ in range(2):
                before = one.sharing.flushes
                one.talk(f"at {age_s} {before}")
                await until(lambda before=before: one.sharing.flushes > before)
            assert await store.keys(SPACE) == kept
    finally:
        task.cancel()


async def test_what_is_not_written_yet_is_not_lost_with_its_workflow() -> None:
    store = shared()
    one = Sidecar(store, 1, 60.0)
    talk = one.talk()
    talk.now_s = one.wall_s
    talk.ask("a question", "an answer")
    store.fault = StoreError("away")
    one.wall_s += 3600
    await one.sharing.flush()
    await one.sharing.sweep()
    store.fault = None
    await one.sharing.flush()
    assert await store.keys(SPACE) == ["wf"]


async def test_a_workflow_that_only_asks_models_is_never_written() -> None:
    store = shared()
    one = Sidecar(store, 1)
    workflow: Any = one.book.of("llm-only")
    assert not workflow.is_changed
    await one.sharing.flush()
    assert await store.keys(SPACE) == []
