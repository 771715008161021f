"""What all groups on Kafka have done: commands, in the order in which the journal has them, and what each one means.

The journal is one partition of a topic. A sidecar writes a command and does not act on it before the journal says at
which offset it stands; then it, and every other sidecar, carries it out behind all that stands before it. So all have
the same rows, whoever wrote what at the same time, and an event is handed out by the command that comes first. What a
command means must never change: another meaning is another FORMAT, and who does not know it goes no further.

A snapshot is the whole of it at one offset. Whoever starts reads the newest whole one, and the commands behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from meshd.engines.bus_kafka_rows import Kept, Letter, Rows
from meshd.engines.bus_port import Verdict  # noqa: TC001 - msgspec reads it
from meshd.engines.bus_rows import Row  # noqa: TC001 - msgspec reads it
from meshd.engines.bus_shelf import Attempt, Settled
from meshd.engines.port import StoreCorrupt, StoreFull, StoreNewer, StoreUnable

if TYPE_CHECKING:
    from meshd.engines.bus_terms import Terms

FORMAT: Final = 3


class Command(msgspec.Struct, array_like=True, tag_field="kind", frozen=True):
    sender: str
    serial: int
    now_ms: int
    attempts_max: int


class Join(Command, tag="join", frozen=True):
    """Make a group, where there is none."""

    group: str
    topic: str
    upto: dict[int, int]
    groups_max: int


class Begin(Command, tag="begin", frozen=True):
    """Begin up to as many attempts as there are times to handle them in."""

    group: int
    wait_ms: list[int]
    taken: list[tuple[int, bytes]]
    upto: dict[int, int]


class Settle(Command, tag="settle", frozen=True):
    group: int
    place: int
    attempt: int
    verdict: Verdict
    """From format 3 on, DEFER too."""
    wait_ms: int
    reason: str


class GiveBack(Command, tag="back", frozen=True):
    group: int
    attempts: list[tuple[int, int]]
    is_unseen: bool


class Leave(Command, tag="leave", frozen=True):
    """The sidecar ends: what it was at goes to others."""


class Redrive(Command, tag="redrive", frozen=True):
    """As format 1 had it: attempts have the numbers of those before."""

    group: str
    ids: list[int]


class Revive(Command, tag="revive", frozen=True):
    """Hand dead letters to their group again."""

    group: str
    ids: list[int]


class Moved(Command, tag="moved", frozen=True):
    """The body of a dead letter stands in its topic now."""

    group: int
    letter: int
    body_at: int


class Expire(Command, tag="expire", frozen=True):
    group: int
    places: list[int]
    floor: dict[int, int]
    gone_ms: int


class Forget(Command, tag="forget", frozen=True):
    """Let go of dead letters that are too old."""

    group: int
    ids: list[int]


class SetBack(Command, tag="set-back", frozen=True):
    """The clock was set back."""


AnyCommand = Join | Begin | Settle | GiveBack | Leave | Redrive | Revive | Moved | Expire | Forget | SetBack


class Begun(NamedTuple):
    """What `Begin` did."""

    rows: list[tuple[int, Row]]
    are_new: bool
    """No other sidecar had come to these events before."""


class Whole(msgspec.Struct, array_like=True):
    """A snapshot."""

    format: int
    as_of: int
    """Every command up to this offset is in it."""
    latest_ms: int
    letters: int
    stride: int
    groups: list[Kept]


class Journal:
    """See the module."""

    def __init__(self, terms: Terms, stride: int, where: str) -> None:
        self._terms = terms
        self._stride = stride
        self._where = where
        self.as_of = -1
        """The last command that was carried out."""
        self.latest_ms = 0
        self._letters = 0
        self.groups: list[Rows] = []
        self.named: dict[tuple[str, str], Rows] = {}
        self.died: list[tuple[Rows, int]] = []
        """Groups and dead letters that the last command made."""
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(tuple[int, AnyCommand]).decode
        self._decode_whole = msgspec.msgpack.Decoder(Whole).decode

    # What stands in Kafka.

    def encode(self, command: AnyCommand) -> bytes:
        return self._encode((FORMAT, command))

    def decode(self, data: bytes, offset: int) -> AnyCommand:
        """Raises StoreNewer, or StoreCorrupt for what is no command."""
        try:
            return self._decode(data)[1]
        except msgspec.MsgspecError:
            if _format_of(data) > FORMAT:
                raise StoreNewer(f"the groups in {self._where} are a newer meshd's (offset {offset})") from None
            text = f"what stands at offset {offset} of the groups in {self._where} is not what meshd put there"
            raise StoreCorrupt(text) from None

    def snapshot(self) -> bytes:
        groups = [group.kept() for group in self.groups]
        return self._encode(Whole(FORMAT, self.as_of, self.latest_ms, self._letters, self._stride, groups))

    def restore(self, data: bytes) -> None:
        """Begin with a snapshot. Raises StoreNewer, StoreCorrupt."""
        try:
            whole = self._decode_whole(data)
        except msgspec.MsgspecError:
            if _format_of(data) > FORMAT:
                raise StoreNewer(f"the groups in {self._where} are a newer meshd's") from None
            raise StoreCorrupt(f"a snapshot of the groups in {self._where} is not what meshd put there") from None
        if whole.format > FORMAT:
            raise StoreNewer(f"the groups in {self._where} are a newer meshd's")
        if whole.stride != self._stride:
            raise StoreUnable(
                f"the events in {self._where} had {whole.stride} partitions and have {self._stride}: what groups have "
                "settled could no longer be told; name another prefix="
            )
        self.as_of, self.latest_ms, self._letters = whole.as_of, whole.latest_ms, whole.letters
        self.groups = [Rows.of(kept, self._stride) for kept in whole.groups]
        self.named = {(group.name, group.topic): group for group in self.groups}

    # What a command means.

    def carry_out(self, offset: int, command: AnyCommand) -> Any:
        """Do what a command says; return what came of it, which may be an error to raise."""
        self.as_of = offset
        self.died = []
        if isinstance(command, SetBack):
            return self._set_back(command.now_ms)
        # Clocks of sidecars differ, and time never runs backwards.
        now_ms = self.latest_ms = max(self.latest_ms, command.now_ms)
        if isinstance(command, Join):
            return self._join(command, now_ms)
        if isinstance(command, Leave):
            for group in self.groups:
                group.attempts_max = command.attempts_max
                group.lose_all(command.sender)
                self._lay(group, now_ms)
            return None
        if isinstance(command, Redrive | Revive):
            return self._redrive(command, now_ms, goes_on=isinstance(command, Revive))
        if not 0 <= command.group < len(self.groups):
            return StoreCorrupt(f"a group of {self._where} is not known: its journal was cut off")
        group = self.groups[command.group]
        done = self._do(group, command, now_ms)
        self._lay(group, now_ms)
        return done

    def _do(self, group: Rows, command: AnyCommand, now_ms: int) -> Any:
        group.attempts_max = command.attempts_max
        if isinstance(command, Begin):
            group.fall_due(now_ms)
            are_new = group.take_all_in(command.taken, command.upto)
            return Begun(group.begin_all(command.wait_ms, now_ms, command.sender), are_new)
        if isinstance(command, Settle):
            attempt = Attempt(command.place, command.attempt)
            return group.settle(attempt, command.verdict, command.wait_ms, command.reason, now_ms)
        if isinstance(command, GiveBack):
            group.give_back(command.attempts, is_unseen=command.is_unseen)
        elif isinstance(command, Moved):
            letter = group.letters.get(command.letter)
            if letter is not None and not letter.body_at:
                group.put_letter(command.letter, letter._replace(body_at=command.body_at))
        elif isinstance(command, Expire):
            group.expire(command.places, command.floor, command.gone_ms)
        elif isinstance(command, Forget):
            for id in command.ids:
                group.put_letter(id, None)
        return None

    def _join(self, command: Join, now_ms: int) -> Any:
        group = self.named.get((command.group, command.topic))
        if group is None:
            if len(self.groups) >= command.groups_max:
                return StoreFull(f"the bus remembers {command.groups_max} groups, and takes no more")
            group = Rows(len(self.groups), command.group, command.topic, command.upto, self._stride, now_ms)
            self.groups.append(group)
            self.named[command.group, command.topic] = group
        return group.number

    def _redrive(self, command: Redrive | Revive, now_ms: int, *, goes_on: bool) -> list[int]:
        groups = [group for group in self.groups if group.name == command.group]
        return [group.number for id in command.ids for group in groups if group.revive(id, now_ms, goes_on=goes_on)]

    def _set_back(self, now_ms: int) -> None:
        if now_ms < self.latest_ms:
            self.latest_ms = now_ms
            for group in self.groups:
                group.set_back(now_ms)

    def _lay(self, group: Rows, now_ms: int) -> None:
        for place, row, reason in group.burials:
            self._letters += 1
            letter = Letter(place, row.key, row.is_marked, now_ms, row.attempt, reason, row.letter)
            group.put_letter(self._letters, letter)
            self.died.append((group, self._letters))
        group.burials.clear()


def is_freed(done: object) -> bool:
    """Say whether what came of a command lets something be handed out."""
    return isinstance(done, Settled) and done.is_freed


def _format_of(data: bytes) -> int:
    try:
        found = msgspec.msgpack.decode(data)
    except msgspec.MsgspecError:
        return 0
    return found[0] if isinstance(found, list) and found and isinstance(found[0], int) else 0
