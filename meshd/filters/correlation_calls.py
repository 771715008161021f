"""What correlation knows: the inbound calls that an agent works for, and the conversations that it has meanwhile.

Everything here is bounded and lives in memory: after a restart, evidence is gathered anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.filters.minting import moved
from meshd_sdk.context import Context

if TYPE_CHECKING:
    from meshd.call import Call
    from meshd.filters.correlation import Correlation
    from meshd.outcome import Outcome

HEARD_BYTES_MAX: Final = 16_384
"""Of an inbound call's body that are kept."""
KEPT_S: Final = 3600.0
"""For how long a call that has ended, and what was said for it, can still be found; at most to its deadline."""
KEYS_MAX: Final = 65_536
"""Ids and digests that are remembered, some 150 bytes each with what they lead to."""
POSSIBLE_MAX: Final = 64
ALIKE_MAX: Final = 256
OPENINGS_MAX: Final = 256
SHARED_MAX: Final = 8
"""Conversations that one id or digest may lead to; beyond them it says nothing."""


class Live:
    """An inbound call, while it is under way and for a while after. Also the ticket by which its end is learned."""

    __slots__ = (
        "_correlation", "_heard", "_heard_bytes", "_inferred", "began_s", "context", "ended_s", "is_live",
        "openings", "traceparent",
    )  # fmt: skip

    def __init__(self, context: Context, began_s: float, traceparent: str, correlation: Correlation | None) -> None:
        self.context = context
        self.began_s = began_s
        self.ended_s = 0.0
        self.is_live = True
        self.traceparent = traceparent
        """As the agent was told it; empty where it was not."""
        self.openings: set[int] = set()
        """Digests of the requests with which conversations for it began."""
        self._heard: list[bytes] = []
        self._heard_bytes = 0
        self._inferred: Context | None = None
        self._correlation = correlation

    def hear(self, data: bytes) -> None:
        """Take a piece of the call's body as it passes."""
        room = HEARD_BYTES_MAX - self._heard_bytes
        if room > 0 and data:
            piece = bytes(data[:room])
            self._heard.append(piece)
            self._heard_bytes += len(piece)
            if self._correlation is not None:
                self._correlation.unread[self] = None

    def heard(self) -> bytes:
        """Return what has passed of the body so far."""
        return b"".join(self._heard)

    def forget_heard(self) -> None:
        """Keep the body no longer: no more of it will come."""
        self._heard.clear()
        self._heard_bytes = HEARD_BYTES_MAX

    def settle(self, outcome: Outcome) -> None:
        """The call has ended."""
        if self.is_live and self._correlation is not None:
            self.is_live = False
            self.ended_s = outcome.now_s
            self._correlation.ended(self)

    def is_kept(self, call: Call) -> bool:
        """Say whether another call may still be tied to this one."""
        if self.is_live:
            return True
        deadline_s = self.context.deadline_s
        return call.now_s - self.ended_s < KEPT_S and (deadline_s is None or call.wall_s < deadline_s)

    @property
    def inferred(self) -> Context:
        """The context of what the agent does for this call: always the same one, so that tokens are minted once."""
        if self._inferred is None:
            context = self.context
            self._inferred = moved(context, context.agent, context.hops, context.path, self.traceparent or None)
        return self._inferred


NOBODY: Final = Live(Context("", ""), 0.0, "", None)
"""The owner of what the agent does of its own accord."""


class Conversation:
    """Calls to models that go on with one another."""

    __slots__ = ("first_s", "last_s", "opening", "owner", "possible")

    def __init__(self, owner: Live | None, possible: set[Live] | None, first_s: float, now_s: float) -> None:
        self.owner = owner
        """None where it is not known yet."""
        self.possible = possible if possible is None or len(possible) <= POSSIBLE_MAX else None
        """Where it is not: the calls that evidence has left; None where none has ever spoken for anybody."""
        self.first_s = first_s
        self.last_s = now_s
        self.opening = 0
        """Digest of the request with which it began; 0 where that did not pass here."""

    def begin(self, opening: int) -> None:
        """Note with which request it begins."""
        self.opening = opening
        if self.owner is not None:
            self.own(self.owner)

    def own(self, owner: Live) -> None:
        """Settle whose it is."""
        self.owner = owner
        if self.opening and len(owner.openings) < OPENINGS_MAX:
            owner.openings.add(self.opening)


class Unowned:
    """Conversations that began alike and whose owners are not known: together they may use up their candidates."""

    __slots__ = ("_by_opening",)

    def __init__(self) -> None:
        self._by_opening: dict[int, list[Conversation]] = {}

    def add(self, conversation: Conversation) -> None:
        """Note a conversation that just began."""
        by_opening = self._by_opening
        alike = self._current(by_opening.pop(conversation.opening, []))
        if len(by_opening) >= ALIKE_MAX:
            del by_opening[next(iter(by_opening))]
        by_opening[conversation.opening] = [*alike, conversation][-ALIKE_MAX:]

    def used(self, opening: int) -> set[Live]:
        """Return the calls of which each has begun just so, though not which conversation is whose: as many
        conversations as there are calls that they may be for."""
        used: set[Live] = set()
        possible: set[Live] = set()
        # The oldest first: those that began since may be for calls that came since.
        for count, one in enumerate(self._current(self._by_opening.get(opening, [])), 1):
            possible.update([live for live in one.possible or () if opening not in live.openings])
            if len(possible) <= count:
                used = set(possible)
        return used

    def _current(self, alike: list[Conversation]) -> list[Conversation]:
        unowned = [one for one in alike if one.owner is None and one.possible]
        return [one for one in unowned if True in [live.is_live for live in one.possible or ()]]


class Memory:
    """Which conversation an id or digest belongs to: the last `KEYS_MAX` of them."""

    __slots__ = ("_by_key",)

    def __init__(self) -> None:
        self._by_key: dict[int, tuple[Conversation, ...]] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def add(self, key: int, conversation: Conversation) -> None:
        """Remember that `key` was said in a conversation. A key of too many conversations leads to none."""
        by_key = self._by_key
        known = by_key.pop(key, None)
        if known is None:
            if len(by_key) >= KEYS_MAX:
                del by_key[next(iter(by_key))]
            by_key[key] = (conversation,)
        elif not known or conversation in known:
            by_key[key] = known
        else:
            oldest_s = conversation.last_s - KEPT_S
            current = tuple([one for one in known if one.last_s > oldest_s])
            by_key[key] = (*current, conversation) if len(current) < SHARED_MAX else ()

    def get(self, key: int) -> tuple[Conversation, ...] | None:
        """Return the conversations in which `key` was said; empty for too many, None where it is not known."""
        return self._by_key.get(key)
