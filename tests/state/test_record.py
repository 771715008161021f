"""What the store keeps stays readable: heads that earlier versions wrote, and those of later ones."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from meshd.engines.memory import MemoryStore
from meshd.engines.port import Change, StoreCorrupt, StoreNewer
from meshd.state.record import DRAFTS, DUE, FORMAT, OBJECTS, PIECES, Head, Lease, Version, decode, encode
from meshd.state.sweeping import DRAFT_S, Sweeping
from tests.state.world import LONG, World

GOLDEN = Path(__file__).with_name("head-1.msgpack")
"""A head of format 1, as the version that brought it in wrote it. Not to be written anew: a new format has its own."""
GOLDEN_PROMOTING = Path(__file__).with_name("head-1-promoting.msgpack")
"""Likewise, with the field that was added to format 1: whoever knows less of it passes over it."""


class Earlier(msgspec.Struct, array_like=True):
    """A version as an earlier meshd knows it."""

    number: int
    size: int


class EarlierHead(msgspec.Struct, array_like=True):
    """A head, likewise."""

    last: int
    versions: tuple[Earlier, ...]


FIELDS = 14
"""Of a version, as that one wrote it."""
HEAD = Head(
    7,
    (
        Version(7, 5, "ann", "w", 1e9, "text/plain", b"\x01clock", "c7", b"seven", checksum=0x1234),
        Version(6, 600_000, "bob", "", 9e8, nonce="n6", pieces=3, checksum=1, base=2),
        Version(5, 0, "ann", "w", 8e8, is_deleted=True),
    ),
    Lease("l", "ann", "w", 1e9 + 60),
    (("n4", 2),),
    2e9,
)


def test_a_head_that_an_earlier_version_wrote() -> None:
    assert decode(GOLDEN.read_bytes(), "k") == HEAD
    kept = msgspec.msgpack.decode(encode(replace(HEAD, promoting=("c8",))))
    # A field more at a version's end is no new format: whoever does not know it passes it over.
    kept[1] = [one[:FIELDS] for one in kept[1]]
    same = msgspec.msgpack.encode(kept) == GOLDEN_PROMOTING.read_bytes()
    assert same, "what is kept has changed: it needs a new format, and an upgrade"


def test_one_that_a_version_reads_that_does_not_know_its_last_field() -> None:
    told = replace(HEAD.versions[0], told=b"signed")
    head = replace(HEAD, versions=(told, *HEAD.versions[1:]))
    assert decode(encode(head), "k") == head

    found = msgspec.msgpack.decode(encode(head), type=EarlierHead)
    assert [(one.number, one.size) for one in found.versions] == [(7, 5), (6, 600_000), (5, 0)]


def test_one_that_was_written_before_a_field_was_added() -> None:
    values = msgspec.msgpack.decode(encode(HEAD))
    values[1] = [one[:5] for one in values[1]]
    found = decode(msgspec.msgpack.encode(values[:2]), "k")
    assert [one.number for one in found.versions] == [7, 6, 5]
    assert (found.lease, found.format) == (None, FORMAT)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (msgspec.msgpack.encode([7, [], None, [], 0.0, FORMAT + 1]), StoreNewer),
        (msgspec.msgpack.encode([7, [], None, [], 0.0, FORMAT + 1, [], "more"]), StoreNewer),
        (b"", StoreCorrupt),
        (b"\xc1", StoreCorrupt),
        (encode(HEAD)[:-3], StoreCorrupt),
        (encode(HEAD) + b"\x00", StoreCorrupt),
        (msgspec.msgpack.encode({"last": 7}), StoreCorrupt),
        (msgspec.msgpack.encode([7, [[7]]]), StoreCorrupt),
    ],
)
def test_what_is_no_head_of_ours(value: bytes, error: type[Exception]) -> None:
    with pytest.raises(error, match="the object k in the store"):
        decode(value, "k")


@pytest.mark.parametrize(
    "bad", [b"\xc1", msgspec.msgpack.encode([7, [], None, [], 0.0, FORMAT + 1])], ids=["damaged", "newer"]
)
async def test_a_sweep_goes_on_behind_what_it_cannot_read(bad: bytes) -> None:
    world = World(MemoryStore())
    note = msgspec.msgpack.encode([OBJECTS, "mesh/bad", "nonce", 1])
    await world.store.write(
        [
            Change(OBJECTS, "mesh/bad", bad),
            Change(DUE, f"{1:012d}/{OBJECTS}/mesh/bad", b""),
            Change(DRAFTS, f"{1:012d}/a", note),
            Change(DRAFTS, f"{2:012d}/b", b"\xc1"),
            Change(DRAFTS, f"{3:012d}/left", msgspec.msgpack.encode([OBJECTS, "mesh/good", "left", 1])),
            Change(PIECES, "left/0000", b"x" * LONG),
        ]
    )
    world.now_s += DRAFT_S
    await Sweeping(world.objects).sweep()
    assert await world.kept(PIECES) == []
    assert len(await world.kept(DRAFTS)) == (1 if bad != b"\xc1" else 0), "a newer version's note is its own"
    assert (await world.store.read(OBJECTS, ("mesh/bad",)))["mesh/bad"].value == bad
