"""What a sidecar could not say to a Redis that is a bus, and says once the server is back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.engines.bus_port import Verdict
    from meshd.engines.bus_shelf import Attempt, Settled

OWED_MAX: Final = 10_000
"""Verdicts that are said again once the server is back."""
SAID_MAX: Final = 256
"""Of those, in one script."""
EVERYBODY: Final = b"-"
"""Who asks, where this sidecar is to hear of it as others do: those who wait here, too, have not been told."""


class Owed(NamedTuple):
    """A verdict."""

    group: int
    attempt: Attempt
    verdict: Verdict
    wait_ms: int
    reason: str


class Unreturned(NamedTuple):
    """An attempt to be given back."""

    group: int
    how: str
    """`lost` or `unseen`."""
    attempt: Attempt
    taker: bytes


class Desk(Protocol):
    """Where it is said (`meshd.engines.bus_redis_shelf.RedisShelf`)."""

    taker: bytes

    def held(self, group: int) -> dict[Attempt, bytes]:
        """Return what subscribers of this sidecar have, and as which taker."""
        ...

    async def settle_all(
        self, group: int, verdicts: list[tuple[Attempt, str, int, str]], *, taker: bytes
    ) -> list[Settled]:
        """Say verdicts. Raises StoreError."""
        ...

    async def ask_back(self, group: int, how: str, several: Sequence[tuple[Attempt, bytes]], *, taker: bytes) -> None:
        """Give attempts back. Raises StoreError."""
        ...


class Untold:
    """See the module. What is said twice, as the answer to the first time was lost, does nothing the second time."""

    def __init__(self) -> None:
        self._owed: list[Owed] = []
        self._unreturned: list[Unreturned] = []
        """Each was held: there is no more of it than there was of that."""
        self.doubtful: list[tuple[int, bytes]] = []
        """Of which groups, and as which taker, something may be out of which the reply was lost."""

    @property
    def is_any(self) -> bool:
        """There is something that need not wait for another connection."""
        return bool(self._owed or self._unreturned)

    def owe(self, one: Owed) -> bool:
        """Remember a verdict; return False where there are too many."""
        is_room = len(self._owed) < OWED_MAX
        if is_room:
            self._owed.append(one)
        return is_room

    def keep(self, group: int, how: str, several: Sequence[tuple[Attempt, bytes]]) -> None:
        """Remember what is to be given back."""
        self._unreturned += [Unreturned(group, how, *one) for one in several]

    def clear(self) -> None:
        """Forget all of it: what it is about is gone."""
        self._owed.clear()
        self._unreturned.clear()
        self.doubtful.clear()

    async def say(self, desk: Desk) -> None:
        """Say all of it, and take back what nobody got, with connections that were lost. Raises StoreError."""
        while self._owed:
            group = self._owed[0].group
            owed = [one for one in self._owed if one.group == group][:SAID_MAX]
            verdicts = [(one.attempt, one.verdict.value, one.wait_ms, one.reason) for one in owed]
            await desk.settle_all(group, verdicts, taker=EVERYBODY)
            said = set(owed)
            self._owed = [one for one in self._owed if one not in said]
        while self._unreturned:
            group, how, *_ = self._unreturned[0]
            some = [one for one in self._unreturned if one[:2] == (group, how)][:SAID_MAX]
            await desk.ask_back(group, how, [(one.attempt, one.taker) for one in some], taker=EVERYBODY)
            given = set(some)
            self._unreturned = [one for one in self._unreturned if one not in given]
        # All else that is out as a taker of an older connection was handed to nobody. As the one of this, it may be on
        # its way here.
        doubtful = list({one for one in self.doubtful if one[1] != desk.taker})
        self.doubtful = [one for one in self.doubtful if one[1] == desk.taker]
        try:
            while doubtful:
                group, taker = doubtful[-1]
                await desk.ask_back(group, "others", list(desk.held(group).items()), taker=taker)
                doubtful.pop()
        finally:
            self.doubtful += doubtful
