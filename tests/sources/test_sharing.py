"""Sidecars share what they have by a store: local first, by leases, and whatever a stranger writes there."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any

import pytest

from meshd.discovery.catalogue import Catalogue
from meshd.discovery.entry import Entry, Origin, Sort
from meshd.discovery.shared import (
    DESCRIPTION_CHARACTERS_MAX,
    FORMAT,
    SPACE,
    Head,
    SharedDamaged,
    decode_head,
    decode_part,
    encode_head,
    encode_parts,
    hash_of,
    slim,
)
from meshd.engines.memory import MemoryStore
from meshd.engines.port import Ability, Change, StoreError
from meshd.sources.sharing import ShareTerms, Sharing
from tests.engines.places import SHARED, place_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class Common(MemoryStore):
    """The model, which several sidecars of one process use here."""

    def __init__(self) -> None:
        super().__init__()
        self.abilities = frozenset({Ability.SHARED})
        self.is_away = False

    async def read(self, space: str, keys: Any) -> Any:
        if self.is_away:
            raise StoreError("away")
        return await super().read(space, keys)

    async def write(self, changes: Any) -> Any:
        if self.is_away:
            raise StoreError("away")
        return await super().write(changes)


def tool(owner: str, name: str, description: str = "") -> Entry:
    return Entry(Sort.TOOL, owner, name, description, origin=Origin.MCP, input_schema=b"{}")


class Sidecar:
    def __init__(self, store: Any, id: str = "") -> None:
        self.local, self.wide = Catalogue(), Catalogue()
        self.now_s = 0.0
        self.unhealthy: list[str] = []
        self.sharing = Sharing(
            lambda: store,
            self.local,
            self.wide,
            sidecar=id or secrets.token_hex(8),
            agent=lambda: "ann",
            unhealthy=lambda: self.unhealthy,
            clock=lambda: self.now_s,
            wall_clock=lambda: 1e9 + self.now_s,
            terms=ShareTerms(beat_s=20.0, lease_s=60.0, gather_s=0.0),
        )

    def have(self, owner: str, *names: str, description: str = "") -> None:
        self.local.replace(owner, Origin.MCP, [tool(owner, name, description) for name in names])

    async def turn(self) -> None:
        assert await self.sharing._open()
        await self.sharing.turn()

    def knows(self) -> dict[str, list[str]]:
        return {owner: [entry.name for entry in self.wide.of(owner)] for owner in sorted(self.wide.owners())}


@pytest.fixture(params=["memory", *SHARED])
async def stores(request: Any, tmp_path: Path) -> AsyncIterator[Any]:
    """Return a function that opens the same store once more."""
    if request.param == "memory":
        one = Common()

        async def same() -> Any:
            return one

        yield same
        return
    async with place_of(request.param, tmp_path) as place:
        opened = []

        async def again() -> Any:
            opened.append(await place.open())
            return opened[-1]

        yield again
        for store in opened:
            await store.close()


async def heard(*sidecars: Sidecar, is_so: Any) -> None:
    """Let sidecars take turns until it is so; the suite's timeout guards against never."""
    while not is_so():
        for one in sidecars:
            await one.turn()
        await asyncio.sleep(0)


async def test_what_one_has_the_other_knows(stores: Any) -> None:
    a, b = Sidecar(await stores()), Sidecar(await stores())
    a.have("files", "read", "write")
    await a.turn()
    await heard(b, is_so=lambda: b.knows() == {"files": ["read", "write"]})
    assert b.local.owners() == []
    assert b.wide.get(Sort.TOOL, "files", "read").input_schema == b""  # type: ignore[union-attr]
    a.have("files", "read")
    await heard(a, b, is_so=lambda: b.knows() == {"files": ["read"]})
    b.have("web", "search")
    await heard(a, b, is_so=lambda: "web" in a.knows())
    await a.sharing.close()
    await heard(b, is_so=lambda: b.knows() == {"web": ["search"]})
    await b.sharing.close()


async def test_local_comes_first() -> None:
    store = Common()
    a, b = Sidecar(store), Sidecar(store)
    a.have("files", "read", description="theirs")
    await a.turn()
    b.have("files", "read", description="ours")
    await b.turn()
    await b.turn()
    assert [entry.description for entry in b.wide] == ["ours"]
    b.local.drop("files", Origin.MCP)
    assert [entry.description for entry in b.wide] == ["theirs"]
    b.have("files", "list")
    assert b.knows() == {"files": ["list"]}


async def test_of_several_the_healthy_one_counts() -> None:
    store = Common()
    a, b, c = Sidecar(store, "aa"), Sidecar(store, "bb"), Sidecar(store, "cc")
    a.have("files", "read", description="of a")
    b.have("files", "read", description="of b")
    for one in (a, b, c):
        await one.turn()
    assert [entry.description for entry in c.wide] == ["of a"]
    a.unhealthy = ["files"]
    a.now_s += 21.0
    await a.turn()
    await heard(c, is_so=lambda: [entry.description for entry in c.wide] == ["of b"])
    await b.sharing.close()
    await heard(c, is_so=lambda: [entry.description for entry in c.wide] == ["of a"])


async def test_whoever_stops_beating_falls_out() -> None:
    store = Common()
    a, b = Sidecar(store), Sidecar(store)
    a.have("files", "read")
    await a.turn()
    await b.turn()
    for _ in range(5):
        a.now_s += 21.0
        b.now_s += 21.0
        await a.turn()
        await heard(b, is_so=lambda: b.sharing.peers[a.sharing.sidecar].seen_s == b.now_s)
        b.sharing.forget()
        assert "files" in b.knows()
    b.now_s += 61.0
    b.sharing.forget()
    assert b.knows() == {}
    a.now_s += 21.0
    await a.turn()
    await heard(b, is_so=lambda: "files" in b.knows())


async def test_nobody_is_forgotten_while_the_store_is_away() -> None:
    store = Common()
    a, b = Sidecar(store), Sidecar(store)
    a.have("files", "read")
    await a.turn()
    await b.turn()
    store.is_away = True
    b.now_s += 1000.0
    with pytest.raises(StoreError):
        await b.turn()
    b.sharing.fault = "away"
    b.sharing.forget()
    assert "files" in b.knows()
    store.is_away, b.sharing.fault = False, ""
    await b.turn()
    b.sharing.forget()
    assert "files" in b.knows()


async def test_what_nobody_renews_is_removed() -> None:
    store = Common()
    a, b = Sidecar(store, "aa"), Sidecar(store, "bb")
    a.have("files", "read")
    await a.turn()
    await store.write([Change(SPACE, "cc.0", b"[]")])
    b.now_s += 4000.0
    await b.turn()
    assert await store.keys(SPACE) == ["bb"]
    assert b.knows() == {}


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{}",
        b"nonsense",
        b"[" * 100_000,
        encode_head(Head(FORMAT + 1, "x", 1, 2e9)),
        encode_head(Head(FORMAT, "x", 1, 2e9, tuple(map(str, range(1000))))),
        encode_head(Head(FORMAT, "x", 1, 2e9, ("not there",))),
    ],
)
async def test_whatever_a_stranger_writes_the_rest_is_unharmed(value: bytes) -> None:
    store = Common()
    a, b = Sidecar(store), Sidecar(store)
    a.have("files", "read")
    await store.write([Change(SPACE, "stranger", value)])
    await a.turn()
    await b.turn()
    assert b.knows() == {"files": ["read"]}


async def test_a_part_that_is_no_part_is_left_out() -> None:
    store = Common()
    bad = b'[["tool","","x","","","mcp","",[],"","","",false,""],7]'
    await store.write([Change(SPACE, "evil.0", bad)])
    await store.write([Change(SPACE, "evil", encode_head(Head(FORMAT, "x", 1, 2e9, (hash_of(bad),))))])
    b = Sidecar(store)
    await b.turn()
    assert b.knows() == {}


async def test_what_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshd.sources.sharing.BYTES_MAX", 1000)
    store = Common()
    a, b = Sidecar(store), Sidecar(store)
    a.have("files", *(f"tool-{number}" for number in range(100)))
    await a.turn()
    await b.turn()
    assert (b.knows(), b.sharing.size, b.sharing.left_out) == ({}, 0, 1)


async def test_a_store_of_one_sidecar_is_not_shared_by() -> None:
    one = Sidecar(MemoryStore())
    one.have("files", "read")
    assert not await one.sharing._open()
    assert one.knows() == {"files": ["read"]}


def test_parts_are_bounded_and_the_same_for_the_same() -> None:
    entries = [tool("files", f"t{number}", "x" * 5000) for number in range(1000)]
    parts = encode_parts(entries)
    assert len(parts) > 1
    assert all(len(part) < 140_000 for part in parts)
    assert encode_parts(entries) == parts
    found = [entry for part in parts for entry in decode_part(part)]
    assert found == [slim(entry) for entry in entries]
    assert len(found[0].description) == DESCRIPTION_CHARACTERS_MAX


def test_a_part_of_another_writer_is_cut() -> None:
    import msgspec

    (found,) = decode_part(msgspec.json.encode([tool("files", "x", "y" * 100_000)]))
    assert found == slim(tool("files", "x", "y" * 100_000))
    with pytest.raises(SharedDamaged):
        decode_part(b"{}")
    with pytest.raises(SharedDamaged):
        decode_head(b"\xff")
