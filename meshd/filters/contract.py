"""The contract that every filter and ticket keeps.

Deciding is pure: clock, ids and randomness are handed in (`call.now_s`, `call.wall_s`, `outcome.now_s`, the
constructor). A filter imports no socket, no driver and no other filter. A filter reads its settings for a call from
`call.plan`, where the rules of the policy have put them; a filter without settings there does nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final, Protocol, Self

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from meshd.call import Call, NeedBody, Reply, ReplyHead, Wait
    from meshd.dialects.event import Event
    from meshd.outcome import Outcome


SECTION: Final = ConfigDict(frozen=True, extra="forbid", defer_build=True)
"""Of every part of a document. A part is validated within the document that it stands in; a validator of its own is
made where it is first needed. What the texts below the fields say is read by `meshd.policy.schema` alone."""


class Settings(BaseModel):
    """What a rule of the policy sets for one filter. Frozen; unknown keys are errors."""

    model_config = SECTION

    # Not fields, and not private attributes of pydantic's either: those cost 2.5 us to read.
    rule: ClassVar[str] = ""
    """Name of the rule that set this, for messages and counters: see `named`."""
    is_shadow: ClassVar[bool] = False
    """Decide, count and trace, but let the call pass."""

    def named(self, rule: str, *, is_shadow: bool = False) -> Self:
        """Return the same settings, marked with the rule that set them."""
        marked = self.model_copy()
        marked.__dict__.update(rule=rule, is_shadow=is_shadow)
        return marked


class Cut:
    """Returned by `on_event`: end the answer here, well-formed. `message` says why, for logs and error events."""

    __slots__ = ("is_error", "message")

    def __init__(self, message: str, *, is_error: bool = False) -> None:
        self.message = message
        self.is_error = is_error
        """End with the dialect's error event in place of its well-formed length cut."""


class Ticket(Protocol):
    """What an admitted call owes.

    Optional methods, looked up once per call: `on_head(head)` sees the reply's head; `on_event(event)` sees each
    event, message or chunk that the meter understood and returns it or a `Cut`. A ticket with a true attribute
    `judges_whole` must see a plain (unstreamed) answer before its first byte may leave.
    """

    def settle(self, outcome: Outcome) -> None:
        """Pay back: called exactly once, whatever happened. Must not raise."""
        ...


class Watcher(Ticket, Protocol):
    """A ticket that sees the answer as it passes."""

    judges_whole: bool

    def on_head(self, head: ReplyHead) -> None: ...

    def on_event(self, event: Event) -> Event | Cut: ...


class Filter(Protocol):
    """The code that enforces one rule."""

    name: str
    """In metrics, `meshd explain` and documents."""

    def admit(self, call: Call) -> Ticket | Reply | Wait | NeedBody | None:
        """Admit, answer, wait, ask for the body (where `call.body` is None), or raise Refused."""
        ...

    def explain(self, call: Call) -> str:
        """Say in one line what was decided for this call and why, after `admit` let it pass."""
        ...
