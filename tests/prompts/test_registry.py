"""Prompts over every store: versions that never change, labels that move, and what workflows keep to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from meshd.engines.memory import MemoryStore
from meshd.engines.port import Change, Store, StoreClosed
from meshd.prompts.choosing import Unresolved
from meshd.prompts.record import HEADS, PINS, TEXTS, Damaged, Head, Pin, Prompt, made
from meshd.prompts.reference import Reference, read_reference
from meshd.prompts.registry import Registry, Resolved, Where
from meshd.prompts.shelf import PIN_S, Conflict, UnknownPrompt
from meshd.prompts.terms import PromptTerms
from tests.engines.places import PLACES, place_of

NOW_S = 1_790_000_000.0
HERE = Where(PromptTerms(), "acme", "wf-1", "ann")


def prompt(version: str, text: str = "Summarise {{topic}}.", name: str = "summarise") -> Prompt:
    return made(name, version, text, added_s=NOW_S)


def said(text: str) -> Reference:
    found = read_reference(text)
    assert found is not None
    return found


async def until(is_so: Callable[[], Awaitable[Any]]) -> Any:
    """Return the first true answer."""
    async with asyncio.timeout(30):
        while not (found := await is_so()):
            await asyncio.sleep(0.01)
        return found


@pytest.fixture(params=PLACES)
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Store, Store]]:
    """Two sidecars' views of one store."""
    async with place_of(request.param, tmp_path) as place:
        one = await place.open()
        other = one if request.param in ("memory", "sqlite") else await place.open()
        yield one, other
        await one.close()
        if other is not one:
            await other.close()


@pytest.fixture
async def two(stores: tuple[Store, Store]) -> AsyncIterator[tuple[Registry, Registry]]:
    one, other = (Registry(lambda store=store: store, lambda: NOW_S) for store in stores)  # type: ignore[misc]
    yield one, other
    await one.close()
    await other.close()


async def promote(registry: Registry, weights: dict[str, int], label: str = "production", **more: Any) -> Head:
    return await registry.shelf.promote(
        "acme", "summarise", label, lambda _: weights, more.get("expected"), more.get("now_s", NOW_S)
    )


async def resolved(registry: Registry, text: str, where: Where = HERE) -> str:
    return (await registry.resolve(where, said(text))).prompt.version


async def test_what_is_added_is_there_and_never_changes(two: tuple[Registry, Registry]) -> None:
    one, other = two
    kept, is_new = await one.shelf.add("acme", prompt("1.2.0"))
    assert is_new
    assert await other.shelf.prompt("acme", "summarise", "1.2.0") == kept == prompt("1.2.0")
    assert (await other.shelf.add("acme", made("summarise", "1.2.0", "Summarise {{topic}}.", added_s=NOW_S + 9)))[
        1
    ] is False
    with pytest.raises(Conflict, match="never change"):
        await other.shelf.add("acme", prompt("1.2.0", "Something else"))
    with pytest.raises(Conflict, match="never change"):
        await other.shelf.add("acme", made("summarise", "1.2.0", "Summarise {{topic}}.", notes="new"))
    assert await one.shelf.prompt("acme", "summarise", "1.2.0") == kept


async def test_an_addition_that_a_crash_cut_short_is_made_again(two: tuple[Registry, Registry]) -> None:
    one, _ = two
    await one.shelf.add("acme", prompt("1.2.0"))
    # As if the head had never been written.
    assert await one.shelf.store.write([Change(HEADS, "acme/summarise", None)]) == [True]
    kept, is_new = await one.shelf.add("acme", prompt("1.2.0"))
    assert (kept.version, is_new) == ("1.2.0", True)
    head, _ = await one.shelf.head("acme", "summarise")
    assert head is not None
    assert head.versions == {"1.2.0": kept.digest}


async def test_many_add_at_once_and_none_is_lost(two: tuple[Registry, Registry]) -> None:
    await asyncio.gather(*[two[at % 2].shelf.add("acme", prompt(f"1.{at}.0")) for at in range(8)])
    head, _ = await two[0].shelf.head("acme", "summarise")
    assert head is not None
    assert len(head.versions) == 8


async def test_a_label_moves_back_and_forth_with_its_history(two: tuple[Registry, Registry]) -> None:
    one, other = two
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        await one.shelf.add("acme", prompt(version))
    await promote(one, {"1.0.0": 1}, expected={})
    await promote(other, {"1.1.0": 1}, expected={"1.0.0": 1})
    with pytest.raises(Conflict, match=r"stands at 1\.1\.0, not at 1\.0\.0"):
        await promote(one, {"1.2.0": 1}, expected={"1.0.0": 1})
    await promote(one, {"1.2.0": 1})
    assert (await promote(one, {"1.2.0": 1})).history == (await promote(one, {"1.2.0": 1})).history
    back = await other.shelf.roll_back("acme", "summarise", "production", None, NOW_S + 1)
    assert back.labels == {"production": {"1.1.0": 1}}
    back = await one.shelf.roll_back("acme", "summarise", "production", {"1.1.0": 1}, NOW_S + 2)
    assert back.labels == {"production": {"1.0.0": 1}}
    back = await one.shelf.roll_back("acme", "summarise", "production", None, NOW_S + 3)
    assert back.labels == {}
    with pytest.raises(Conflict, match="nowhere before"):
        await one.shelf.roll_back("acme", "summarise", "production", None, NOW_S + 4)
    assert [(move.to, move.is_rollback) for move in back.history] == [
        ({"1.0.0": 1}, False), ({"1.1.0": 1}, False), ({"1.2.0": 1}, False),
        ({"1.1.0": 1}, True), ({"1.0.0": 1}, True), ({}, True),
    ]  # fmt: skip


async def test_of_two_who_move_a_label_at_once_one_is_told(two: tuple[Registry, Registry]) -> None:
    one, other = two
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        await one.shelf.add("acme", prompt(version))
    await promote(one, {"1.0.0": 1})
    ended = await asyncio.gather(
        promote(one, {"1.1.0": 1}, expected={"1.0.0": 1}),
        promote(other, {"1.2.0": 1}, expected={"1.0.0": 1}),
        return_exceptions=True,
    )
    assert sorted(type(one).__name__ for one in ended) == ["Conflict", "Head"]


async def test_what_nobody_added_cannot_be_promoted(two: tuple[Registry, Registry]) -> None:
    one, _ = two
    with pytest.raises(UnknownPrompt):
        await promote(one, {"1.0.0": 1})
    await one.shelf.add("acme", prompt("1.0.0"))
    for weights in ({"9.9.9": 1}, {}, {"1.0.0": 0}, {"1.0.0": 10**6}):
        with pytest.raises(ValueError, match=r"version|share"):
            await promote(one, weights)
    head, _ = await one.shelf.head("acme", "summarise")
    assert head is not None
    assert head.labels == {}


async def test_a_workflow_keeps_what_its_first_call_got(two: tuple[Registry, Registry]) -> None:
    one, other = two
    await one.shelf.add("acme", prompt("1.2.0"))
    await promote(one, {"1.2.0": 1})
    assert await resolved(one, "prompt://summarise@^1.2") == "1.2.0"
    assert await resolved(one, "prompt://summarise") == "1.2.0"
    await one.shelf.add("acme", prompt("1.3.0", "New {{topic}}."))
    await promote(one, {"1.3.0": 1})
    for registry in (one, other):
        assert await resolved(registry, "prompt://summarise@^1.2") == "1.2.0"
        assert await resolved(registry, "prompt://summarise") == "1.2.0"
        fresh = HERE._replace(workflow="wf-2")
        assert await until(lambda registry=registry, fresh=fresh: _is(registry, fresh, "1.3.0"))
    found = one.known(HERE, said("prompt://summarise"))
    assert found is not None
    assert (found.is_pinned, found.prompt.version) == (True, "1.2.0")


async def _is(registry: Registry, where: Where, version: str) -> bool:
    """Say whether a workflow that begins now gets a version; each that is asked for is a new one."""
    _is.count += 1  # type: ignore[attr-defined]
    where = where._replace(workflow=f"{where.workflow}-{_is.count}")  # type: ignore[attr-defined]
    return await resolved(registry, "prompt://summarise", where) == version


_is.count = 0  # type: ignore[attr-defined]


async def test_two_sidecars_of_one_workflow_agree_on_its_first_use(two: tuple[Registry, Registry]) -> None:
    one, other = two
    for at in range(6):
        await one.shelf.add("acme", prompt(f"1.{at}.0"))
    await promote(one, {"1.0.0": 1})
    await resolved(other, "prompt://summarise", HERE._replace(workflow="warm"))
    moves = [promote(one, {f"1.{at}.0": 1}) for at in range(1, 6)]
    found = await asyncio.gather(
        *[resolved(two[at % 2], "prompt://summarise", HERE._replace(workflow="shared")) for at in range(10)],
        *moves,
        return_exceptions=True,
    )
    assert len(set(found[:10])) == 1
    assert isinstance(found[0], str)


async def test_once_it_is_known_nothing_is_waited_for(two: tuple[Registry, Registry]) -> None:
    one, _ = two
    await one.shelf.add("acme", prompt("1.2.0"))
    await promote(one, {"1.2.0": 1})
    texts = ["prompt://summarise@1.2.0", "prompt://summarise", "prompt://summarise@^1"]
    for text in texts:
        assert one.known(HERE, said(text)) is None
        await one.resolve(HERE, said(text))
        assert isinstance(one.known(HERE, said(text)), Resolved)
    nobody = HERE._replace(workflow="")
    assert isinstance(one.known(nobody, said("prompt://summarise")), Resolved)
    assert isinstance(one.known(HERE._replace(workflow="new"), said("prompt://summarise@1.2.0")), Resolved)
    assert one.known(HERE._replace(workflow="new"), said("prompt://summarise")) is None, "what it gets must be kept"


async def test_a_move_elsewhere_is_heard_of(two: tuple[Registry, Registry]) -> None:
    one, other = two
    for version in ("1.0.0", "1.1.0"):
        await one.shelf.add("acme", prompt(version))
    await promote(one, {"1.0.0": 1})
    nobody = HERE._replace(workflow="")
    assert await resolved(other, "prompt://summarise", nobody) == "1.0.0"
    await promote(one, {"1.1.0": 1})

    async def is_new() -> bool:
        return await resolved(other, "prompt://summarise", nobody) == "1.1.0"

    assert await until(is_new)


async def test_what_a_workflow_kept_to_and_is_gone_is_said_so(two: tuple[Registry, Registry]) -> None:
    one, other = two
    await one.shelf.add("acme", prompt("1.2.0"))
    assert await resolved(one, "prompt://summarise@^1") == "1.2.0"
    await one.shelf.store.write([Change(TEXTS, "acme/summarise@1.2.0", None), Change(HEADS, "acme/summarise", None)])
    with pytest.raises(Unresolved, match="there no more") as caught:
        await resolved(other, "prompt://summarise@^1")
    assert caught.value.is_gone


async def test_another_tenant_sees_nothing_of_it(two: tuple[Registry, Registry]) -> None:
    one, other = two
    await one.shelf.add("acme", prompt("1.2.0"))
    await one.shelf.add("acme-2", prompt("7.0.0"))
    for tenant in ("", "umbrella", "acm", "acme/summarise"):
        with pytest.raises(Unresolved, match="There is no prompt summarise"):
            await resolved(other, "prompt://summarise@*", HERE._replace(tenant=tenant))
        assert await other.shelf.heads(tenant, "", 10) == ([], [])
    assert [head.versions.keys() for head in (await other.shelf.heads("acme", "", 10))[0]] == [{"1.2.0": 0}.keys()]


async def test_names_come_page_by_page(two: tuple[Registry, Registry]) -> None:
    one, _ = two
    for name in ("a", "b-1", "b.2", "c"):
        await one.shelf.add("acme", prompt("1.0.0", name=name))
    first, _ = await one.shelf.heads("acme", "", 3)
    assert [head.name for head in first] == ["a", "b-1", "b.2"]
    assert [head.name for head in (await one.shelf.heads("acme", first[-1].name, 3))[0]] == ["c"]


async def test_pins_are_forgotten_when_their_time_is_over(two: tuple[Registry, Registry]) -> None:
    one, _ = two
    await one.shelf.add("acme", prompt("1.2.0"))
    await resolved(one, "prompt://summarise@^1")
    later = NOW_S + PIN_S * 0.6
    pin = await one.shelf.pinned("acme", "wf-1", "summarise", "^1", later)
    assert pin is not None
    assert [count async for count in one.shelf.expired(NOW_S + PIN_S + 1)] == [0], "its use made it last longer"
    await one.shelf.store.write([Change(PINS, "damaged", b"{")])
    assert [count async for count in one.shelf.expired(later + PIN_S + 1)] == [1]
    assert await one.shelf.pinned("acme", "wf-1", "summarise", "^1", later) is None


async def test_a_workflow_that_goes_on_at_one_sidecar_keeps_it_for_the_others() -> None:
    store, now_s = MemoryStore(), NOW_S
    one, other = (Registry(lambda: store, lambda: now_s) for _ in range(2))
    for version in ("1.0.0", "1.1.0"):
        await one.shelf.add("acme", prompt(version))
    await promote(one, {"1.0.0": 1})
    assert await resolved(one, "prompt://summarise") == "1.0.0"
    await promote(one, {"1.1.0": 1})
    [key] = await store.keys(PINS)
    for _day in range(40):
        now_s += 86_400
        found = one.known(HERE, said("prompt://summarise"))
        assert found is not None, "nothing is waited for"
        assert found.prompt.version == "1.0.0"
        await asyncio.gather(*(task for name, task in one._tasks.items() if name == "pins"))
        assert [count async for count in one.shelf.expired(now_s)] in ([0], [])
    assert await store.keys(PINS) == [key]
    assert await resolved(other, "prompt://summarise") == "1.0.0"
    # What nobody has used for so long is decided anew, also where it was known.
    now_s += PIN_S + 1
    assert [count async for count in one.shelf.expired(now_s)] == [1]
    assert await resolved(one, "prompt://summarise") == "1.1.0"
    await one.close()
    await other.close()


async def test_what_is_not_there(two: tuple[Registry, Registry]) -> None:
    one, _ = two
    with pytest.raises(Unresolved, match="There is no prompt summarise"):
        await resolved(one, "prompt://summarise")
    await one.shelf.add("acme", prompt("1.2.0"))
    for text, word in (
        ("prompt://summarise", "no label production; it has: none"),
        ("prompt://summarise@^2", r"no version that fits \^2; it has: 1\.2\.0"),
        ("prompt://summarise@9.9.9", r"no version 9\.9\.9"),
        ("prompt://other@1.0.0", "There is no prompt other"),
    ):
        with pytest.raises(Unresolved, match=word) as caught:
            await resolved(one, text)
        assert not caught.value.is_gone


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", b"[" * 5000, b'{"name":1}', b"null"])
async def test_damaged_records_are_said_to_be_so(damage: bytes) -> None:
    store = MemoryStore()
    one = Registry(lambda: store, lambda: NOW_S)
    await one.shelf.add("acme", prompt("1.2.0"))
    await resolved(one, "prompt://summarise@^1")
    for space in (PINS, TEXTS, HEADS):
        key = (await store.keys(space))[0]
        was = (await store.read(space, [key]))[key].value
        await store.write([Change(space, key, damage)])
        other = Registry(lambda: store, lambda: NOW_S)
        where = HERE if space == PINS else HERE._replace(workflow=f"of {space}")
        with pytest.raises(Damaged):
            await resolved(other, "prompt://summarise@^1", where)
        await store.write([Change(space, key, was)])
        await other.close()
    await one.close()


async def test_without_a_store_it_says_so() -> None:
    one = Registry(lambda: None)
    with pytest.raises(StoreClosed):
        await resolved(one, "prompt://summarise")
    await one.close()


async def test_a_store_that_comes_in_the_place_of_another_is_asked_anew() -> None:
    first, second = MemoryStore(), MemoryStore()
    one = Registry(lambda: first)
    await one.shelf.add("acme", prompt("1.0.0"))
    await promote(one, {"1.0.0": 1})
    assert await resolved(one, "prompt://summarise", HERE._replace(workflow="")) == "1.0.0"
    one.store_of = lambda: second
    await one.shelf.add("acme", prompt("2.0.0"))
    await promote(one, {"2.0.0": 1})
    assert await resolved(one, "prompt://summarise", HERE._replace(workflow="")) == "2.0.0"
    await one.close()


async def test_a_pin_of_another_is_taken() -> None:
    store = MemoryStore()
    one = Registry(lambda: store, lambda: NOW_S)
    pin = Pin("wf", "summarise", "^1", "1.0.0", "d", NOW_S + 9)
    assert await one.shelf.pin("acme", pin) == pin
    assert await one.shelf.pin("acme", Pin("wf", "summarise", "^1", "1.5.0", "e", NOW_S + 9)) == pin
