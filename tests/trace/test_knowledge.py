"""Clocks of a workflow are in order exactly where one event can have followed from the other, through restarts too."""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

import pytest

from meshd.clocks import Clock, ClockMalformed, Order
from meshd.mesh_key import MeshKeys
from meshd.trace.knowledge import FIELD_BYTES_MAX, WORKFLOWS_MAX, Knowledge, Told, decode, encode
from meshd_sdk.context import Key, Keyring

RUNS = 10_000
SIDECARS = 5


class Event(NamedTuple):
    """One thing that happened, as a log has it."""

    sidecar: str
    sequence: int
    known: bytes
    before: frozenset[int]
    """Numbers of all events from which it can have followed."""

    @property
    def clock(self) -> Clock:
        return (Clock.decode(self.known) if self.known else Clock()).tick(self.sidecar, self.sequence)


class World:
    """Sidecars that write their logs, call one another, and are restarted. Other workflows move their sequences too."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.events: list[Event] = []
        self.names = [f"side{number}" for number in range(rng.randint(2, SIDECARS))]
        self.knowledge = {name: Knowledge(name) for name in self.names}
        self.sequences = dict.fromkeys(self.names, 0)
        self.pasts: dict[str, frozenset[int]] = dict.fromkeys(self.names, frozenset())
        self.flying: list[tuple[Clock, int]] = []

    def write(self, name: str) -> int:
        self.sequences[name] += self.rng.randint(1, 3)
        number = len(self.events)
        self.events.append(Event(name, self.sequences[name], self.knowledge[name].of("w"), self.pasts[name]))
        self.pasts[name] |= {number}
        return number

    def send(self, name: str) -> None:
        number = self.write(name)
        # Forks: what was sent may be taken by several, at once or late, or by none.
        self.flying += [(self.knowledge[name].at("w", self.sequences[name]), number)] * self.rng.randint(1, 2)

    def receive(self, name: str) -> None:
        if not self.flying:
            return
        clock, number = self.flying.pop(self.rng.randrange(len(self.flying)))
        self.knowledge[name].learn("w", clock)
        self.pasts[name] |= self.events[number].before | {number}
        self.write(name)

    def restart(self, name: str) -> None:
        """All that a process knew is gone but for its log."""
        self.knowledge[name] = Knowledge(name)
        for event in self.events:
            if event.sidecar == name and event.known:
                self.knowledge[name].recall("w", event.known)
        self.sequences[name] += 1

    def run(self, steps: int) -> None:
        acts = [self.write, self.send, self.send, self.receive, self.receive, self.receive, self.restart]
        for _ in range(steps):
            self.rng.choice(acts)(self.rng.choice(self.names))


def test_the_order_of_clocks_is_reachability_in_ten_thousand_runs() -> None:
    compared = 0
    for seed in range(RUNS):
        world = World(random.Random(seed))
        world.run(16)
        clocks = [event.clock for event in world.events]
        for later, event in enumerate(world.events):
            for earlier in range(later):
                follows = earlier in event.before
                order = clocks[earlier].order(clocks[later])
                assert order is (Order.BEFORE if follows else Order.CONCURRENT), (seed, earlier, later)
                compared += 1
    assert compared > 300_000


def test_a_clock_of_sixteen_sidecars_fits_into_256_bytes() -> None:
    rng = random.Random(7)
    knowledge = Knowledge("aaaaaaaa")
    others = ["".join(rng.choice("abcdefghijklmnop234567") for _ in range(8)) for _ in range(15)]
    knowledge.learn("w", Clock(dict.fromkeys(others, 2**42 - 1)))
    clock = knowledge.at("w", 2**41)
    assert len(clock) == 16
    assert len(clock.encode()) <= 256
    told = Told("aaaaaaaa", 2**31, 2**41, 2**60, b"h" * 32, clock)
    assert len(encode(told, "w", RING)) < 512


RING = Keyring([Key("k1", b"s" * 32)])
TOLD = Told("aaaaaaaa", 3, 77, 1_800_000_000_000_000, bytes(range(32)), Clock({"aaaaaaaa": 77, "bbbbbbbb": 5}))


def test_what_travels_is_what_arrives() -> None:
    assert decode(encode(TOLD, "w", RING), "w", RING) == TOLD
    assert TOLD.event == "aaaaaaaa-3-77"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"x",
        b"!!!!",
        b"AA",
        b"AQ",
        b"AQJrMQ",
        b"x" * (FIELD_BYTES_MAX + 1),
        b"\xff\xfe",
        encode(TOLD, "w", RING)[:-1],
    ],
)
def test_nonsense_is_no_clock(value: bytes) -> None:
    with pytest.raises(ClockMalformed):
        decode(value, "w", RING)


def test_a_clock_that_was_changed_moved_or_signed_by_others_is_none() -> None:
    value = encode(TOLD, "w", RING)
    with pytest.raises(ClockMalformed, match="another workflow"):
        decode(value, "w2", RING)
    with pytest.raises(ClockMalformed, match="key"):
        decode(value, "w", Keyring([Key("k2", b"s" * 32)]))
    with pytest.raises(ClockMalformed, match="signature"):
        decode(value, "w", Keyring([Key("k1", b"t" * 32)]))
    for at in range(len(value)):
        changed = value[:at] + (b"A" if value[at : at + 1] != b"A" else b"B") + value[at + 1 :]
        with pytest.raises(ClockMalformed):
            decode(changed, "w", RING)


def test_a_clock_must_count_its_own_event() -> None:
    for told in (TOLD._replace(sequence=78), TOLD._replace(clock=Clock({"bbbbbbbb": 5}))):
        with pytest.raises(ClockMalformed, match="own event"):
            decode(encode(told, "w", RING), "w", RING)


def test_a_token_is_no_clock(tmp_path: Path) -> None:
    from meshd_sdk.context import Audience, Context, mint

    ring = MeshKeys(tmp_path / "mesh.key").ring
    token = mint(Context("w", "a"), ring, audience=Audience.PEER, expires_s=2**31, nonce=bytes(8))
    with pytest.raises(ClockMalformed):
        decode(token, "w", ring)


def test_what_a_peer_knows_of_us_is_not_learnt_but_told() -> None:
    knowledge = Knowledge("aaaaaaaa")
    assert knowledge.learn("w", Clock({"aaaaaaaa": 9, "bbbbbbbb": 4})) == 9
    assert Clock.decode(knowledge.of("w")) == Clock({"bbbbbbbb": 4})
    assert knowledge.at("w", 3) == Clock({"aaaaaaaa": 3, "bbbbbbbb": 4})
    assert knowledge.at("other", 3) == Clock({"aaaaaaaa": 3})


def test_memory_is_bounded_and_the_quiet_one_is_forgotten() -> None:
    knowledge = Knowledge("aaaaaaaa")
    for number in range(WORKFLOWS_MAX + 5):
        knowledge.learn(f"w{number}", Clock({"bbbbbbbb": number + 1}))
        knowledge.learn("w0", Clock({"bbbbbbbb": 1}))
    assert knowledge.of("w0")
    assert not knowledge.of("w1")
    assert len(knowledge._clocks) == WORKFLOWS_MAX == len(knowledge._encoded)
