"""The approval as the store keeps it: JSON, so that whoever has to look into a store can read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from meshd.approvals.state import Event, State, step

if TYPE_CHECKING:
    from collections.abc import Callable

SPACE: Final = "approval"
"""Of the records, by id."""
INDEX: Final = "approval-call"
"""Of the id that is in force for a call, by its digest."""
OWN: Final = "own"
"""Kind of what an agent does by itself: meshd neither sends it nor sees it. No call is of this kind, so that what was
allowed of the one never holds for the other."""
ARGUMENTS_BYTES_MAX: Final = 128 * 1024
"""Of the arguments as they are shown; every engine can carry a record of that size."""
SENDING_S: Final = 20.0
"""A call that was let go is written down as under way by then, or its sidecar has ended."""
_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32: no letter that is read as another."""
ID_LETTERS: Final = 12
_READ_AS: Final = str.maketrans({"i": "1", "l": "1", "o": "0", "-": None, " ": None})


class Damaged(Exception):
    """A record is not what was written."""


class Decision(msgspec.Struct, frozen=True):
    """What one person decided."""

    approver: str
    is_allowed: bool
    reason: str
    at_s: float
    """Unix seconds."""


class Approval(msgspec.Struct, frozen=True, omit_defaults=True):
    """A question to a person, and what became of it. Times are unix seconds; texts hold no secrets."""

    id: str
    digest: str
    """SHA-256 over what it holds for, in hex: see `meshd.approvals.question`."""
    asked_s: float
    expires_s: float
    """When silence becomes no; once allowed, until when it must be used."""
    lasts_s: float
    """Of each of the two."""
    workflow: str
    agent: str
    kind: str
    target: str
    operation: str
    state: State = State.PENDING
    quorum: int = 1
    approvers: tuple[str, ...] = ()
    """Who may decide."""
    owner: str = ""
    """Whose agent it is: may not decide."""
    model: str = ""
    tool: str = ""
    definition: str = ""
    """Digest of the tool's definition, where it is known."""
    fields: dict[str, str] = {}
    """Header fields that may change what the call does."""
    arguments: str = ""
    """As people read them."""
    arguments_bytes: int = 0
    """Of the arguments as they are sent."""
    is_cut: bool = False
    """More of the arguments is sent than is shown."""
    is_emptied: bool = False
    """Its arguments are not kept any more: nobody decided, and nobody will."""
    hidden: int = 0
    """How many places of the arguments are not shown, since they look like secrets."""
    also: tuple[str, ...] = ()
    """What may serve the call in the target's place: it holds for these too."""
    said: str = ""
    """What an agent says of what it would do by itself, in its own words."""
    why: str = ""
    """Why this call asks."""
    rule: str = ""
    evidence: str = ""
    is_inferred: bool = False
    """That the call belongs to the workflow is the sidecar's conclusion, and nobody's word."""
    cost_tokens: int | None = None
    """The most that it may cost; None where nobody knows."""
    cost_microdollars: int | None = None
    left_tokens: int | None = None
    """Of the budget that it counts on, when it was asked."""
    left_microdollars: int | None = None
    sidecar: str = ""
    """Which one asked."""
    call: str = ""
    """The call that asked."""
    decisions: tuple[Decision, ...] = ()
    ended_s: float = 0.0
    """When it was decided, used, cancelled or expired; 0 while it is pending."""
    used_by: str = ""
    """The call that went out with it; of what an agent does by itself, the id that the agent gave the deed."""
    used_key: str = ""
    """By what that call is known again: its claim; empty where it has none."""
    outcome: str = ""
    """How that call ended. Empty while it runs; for good, where the sidecar ended with it."""
    cancelled_for: str = ""
    told: tuple[str, ...] = ()
    """Of what people have been told."""
    version: int = 1

    def after(self, event: Event, now_s: float) -> Approval:
        """Return it as it stands after an event. Raises Impossible."""
        state = step(self.state, event)
        ended_s = self.ended_s if state is State.PENDING else now_s
        expires_s = now_s + self.lasts_s if event is Event.GRANT else self.expires_s
        return msgspec.structs.replace(self, state=state, ended_s=ended_s, expires_s=expires_s)

    def emptied(self) -> Approval:
        """Return it without what was to be shown of the call, which will never go out; the digest says what it was.
        What somebody has decided on is kept whole, for whoever asks what that was."""
        if self.decisions:
            return self
        return msgspec.structs.replace(self, arguments="", fields={}, said="", is_emptied=bool(self.arguments_bytes))

    def state_at(self, now_s: float) -> State:
        """Return where it stands, whether or not anybody has noted that its time is over."""
        if self.state in (State.PENDING, State.APPROVED) and now_s >= self.expires_s:
            return State.EXPIRED
        return self.state

    def is_sending(self, key: str, now_s: float) -> bool:
        """Say whether the very call that has `key` has used it a moment ago, perhaps at another sidecar, and it is not
        noted that this failed: where it went well, its answer is there for whoever made the same call."""
        is_its = bool(key) and self.state is State.USED and self.used_key == key
        return is_its and self.outcome[:1] in ("", "2", "3") and now_s < self.ended_s + SENDING_S

    @property
    def allowed_by(self) -> tuple[str, ...]:
        """Who has allowed it so far."""
        return tuple(one.approver for one in self.decisions if one.is_allowed)

    @property
    def denied_by(self) -> Decision | None:
        """The decision that says no."""
        return next((one for one in self.decisions if not one.is_allowed), None)

    @property
    def summary(self) -> str:
        """One line for people: no argument stands in it, and no query."""
        if self.kind == OWN:
            return f"{self.agent} asks whether it may do this by itself: {self.operation}"
        what = self.tool or self.model or self.operation.partition("?")[0]
        return f"{self.agent} asks for {what} at the {self.kind} {self.target}"


def encode(approval: Approval) -> bytes:
    """Return the record of an approval."""
    return msgspec.json.encode(approval)


def decode(value: bytes, id: str) -> Approval:
    """Return the approval of a record that stands under `id`. Raises Damaged."""
    try:
        approval = msgspec.json.decode(value, type=Approval)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Damaged(f"the approval {id} in the store is damaged: {error}") from None
    if approval.id != id or approval.version != 1 or not approval.quorum >= 1 or not approval.lasts_s > 0:
        raise Damaged(f"the approval {id} in the store is damaged")
    return approval


def new_id(random: Callable[[int], bytes]) -> str:
    """Return an id: 60 random bits, in three groups of four letters."""
    bits = int.from_bytes(random(8), "big")
    letters = "".join(_ALPHABET[bits >> 5 * at & 31] for at in range(ID_LETTERS))
    return "-".join(letters[at : at + 4] for at in range(0, ID_LETTERS, 4))


def read_id(typed: str) -> str:
    """Return the id that somebody typed, in any case and with or without dashes; empty for what is none."""
    letters = typed[:64].strip().lower().translate(_READ_AS)
    if len(letters) != ID_LETTERS or not set(letters) <= set(_ALPHABET):
        return ""
    return "-".join(letters[at : at + 4] for at in range(0, ID_LETTERS, 4))
