"""Events that agents have in hand: how long each may yet take, and which decisions of people its handling waits for.

A call belongs to the event that was handed over with its token; one under another token (a part's, or that of the call
which an event is pushed by) to each that its agent has in hand in the same workflow, as nobody can tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakSet, WeakValueDictionary

if TYPE_CHECKING:
    from meshd.approvals.record import Approval
    from meshd_sdk.context import Context


class Whose(NamedTuple):
    """Whose calls may follow from an event."""

    agent: str
    place: str
    """A workflow; of those that belong to none, the account that pays."""

    @classmethod
    def of(cls, context: Context) -> Whose:
        """Return whose the calls in a context are."""
        return cls(context.agent, context.workflow or context.account)


class Hand:
    """One attempt at an event, for as long as somebody keeps this and has not said what became of it."""

    __slots__ = ("__weakref__", "_others", "ends_s", "token", "undecided")

    def __init__(self, token: bytes, ends_s: float, others: WeakSet[Hand]) -> None:
        self.token = token
        self.ends_s = ends_s
        """Unix seconds: until then a call that follows from it may be held."""
        self.undecided: dict[str, None] = {}
        """Approvals that a call of it has asked for, and was told no decision of."""
        self._others: WeakSet[Hand] | None = others

    def note(self, approval: Approval, *, is_decided: bool) -> None:
        """A call of it asks for an approval, or is told what was decided."""
        if is_decided:
            self.undecided.pop(approval.id, None)
        else:
            self.undecided[approval.id] = None


class Hands:
    """What agents beside this sidecar have in hand. It keeps none of it alive."""

    def __init__(self) -> None:
        self._by_token: WeakValueDictionary[bytes, Hand] = WeakValueDictionary()
        self._by_whose: WeakValueDictionary[Whose, WeakSet[Hand]] = WeakValueDictionary()

    def begin(self, token: bytes, whose: Whose, ends_s: float) -> Hand:
        """Say that somebody has an event in hand, under the token that came with it, until `ends_s`."""
        others = self._by_whose.get(whose)
        if others is None:
            others = self._by_whose[whose] = WeakSet()
        hand = Hand(token, ends_s, others)
        others.add(hand)
        if token:
            self._by_token[token] = hand
        return hand

    def end(self, hand: Hand) -> None:
        """What became of it is said: a call from now on follows from no event that is in hand."""
        if hand._others is not None:
            hand._others.discard(hand)
            hand._others = None
        if self._by_token.get(hand.token) is hand:
            del self._by_token[hand.token]

    def of(self, token: bytes, whose: Whose, now_s: float) -> tuple[Hand, ...]:
        """Return the events that a call may follow from."""
        own = self._by_token.get(token)
        if own is not None:
            return (own,)
        return tuple([one for one in self._by_whose.get(whose, ()) if now_s < one.ends_s])
