"""What a context asks of whoever carries it out: the session with a sidecar, or this process alone.

The messages are plain values, so that neither protobuf nor gRPC is imported before there is a sidecar to speak with.
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from meshd_sdk.bodies import decode
from meshd_sdk.current import Current

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from meshd_sdk import state_values
    from meshd_sdk.approvals import Approval, Wish


@dataclasses.dataclass(frozen=True, slots=True)
class Given:
    """A context as it was handed out. `current` is what is sent on; the rest is for reading."""

    current: Current = dataclasses.field(default_factory=Current)
    hops: int = 0
    """Agent-to-agent edges behind this point."""
    path: tuple[str, ...] = ()
    """The agents that were passed, oldest first."""
    account: str = ""
    """The account that pays."""
    ceiling_tokens: int | None = None
    """Most tokens that may be spent under this context; None where the account's own limit is the only one."""
    memory: tuple[str, ...] = ()
    """References to shared state that may be read."""
    ceiling_microdollars: int | None = None
    """The ceiling in millionths of a dollar; only beside one in tokens."""


class Ask(NamedTuple):
    """A call to be made."""

    target: str
    operation: str
    payload: bytes
    content_type: str
    token: str = ""
    timeout_s: float | None = None
    delegate_tokens: int = 0
    idempotency_key: str = ""


class Piece(NamedTuple):
    """A reply, or a piece of one."""

    payload: bytes
    content_type: str
    call_id: str = ""
    is_of_stream: bool = False
    """More may come, and not at once: it is not to wait for the next."""


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """An event, with the attributes of CloudEvents 1.0."""

    topic: str
    payload: bytes = b""
    content_type: str = ""
    id: str = ""
    """Unique for its source: the same (source, id) is published once."""
    source: str = ""
    type: str = ""
    subject: str = ""
    key: str = ""
    """`partitionkey`: events with one key are handed over in order."""
    workflow: str = ""
    cause: str = ""
    """`causationid`: the event or call that it follows from."""
    sequence: str = ""
    time_s: float | None = None
    """Unix seconds at which it happened."""
    extensions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    attempt: int = 1
    """Which attempt at handling it this is."""
    may_have_been_handled: bool = False
    """An earlier attempt may have been carried out, although nothing was heard of it."""
    data_ref: str = ""
    """Where the data lies where it is not here, such as a reference to shared state."""

    @property
    def data(self) -> Any:
        """The data: decoded JSON, or a `Reply` with bytes of another type. Raises ArgumentsInvalid."""
        return decode(self.payload, self.content_type)

    def __getitem__(self, name: str) -> Any:
        """Return a member of the data where that is a JSON object."""
        return self.data[name]


class Published(NamedTuple):
    """The sidecar has an event: it is not lost."""

    id: str
    sequence: str
    """Its place in its topic, in 20 digits."""
    is_duplicate: bool
    """It had been published before."""


class Amounts(NamedTuple):
    """An account in one unit. total = available + reserved + spent + delegated."""

    total: int
    available: int
    reserved: int
    spent: int
    delegated: int


class Balance(NamedTuple):
    """One account that limits a context's calls; None for a unit that is not limited."""

    account: str
    rule: str
    """The rule of the policy that sets the limit; empty for the workflow's own."""
    tokens: Amounts | None
    microdollars: Amounts | None
    window_ends_s: float | None
    """Unix seconds; None where it has no window."""


class Charged(NamedTuple):
    """What became of a report of usage."""

    tokens: int
    """Tokens that were charged by it; 0 where it had been charged before."""
    is_exhausted: bool
    """An account was left with less than nothing: its next call is refused."""


class Usage(NamedTuple):
    """Tokens that no intercepted call has shown."""

    model: str
    input_tokens: int = 0
    """Cached ones included."""
    output_tokens: int = 0
    """Reasoning included."""
    cached_tokens: int = 0
    is_estimated: bool = False


@dataclasses.dataclass(slots=True)
class Entry:
    """One thing that an agent says of itself. `kind` is a member of TraceEntry: step, tool_call, decision, note."""

    id: str
    kind: str
    fields: dict[str, Any]
    began_s: float
    """Unix seconds."""
    parent_id: str = ""
    ended_s: float | None = None
    error: str = ""
    attributes: dict[str, str] = dataclasses.field(default_factory=dict)


class Opening(NamedTuple):
    """A workflow to be opened; None for what the policy says."""

    agent: str
    workflow: str
    timeout_s: float | None = None
    tokens: int | None = None
    microdollars: int | None = None
    traceparent: str = ""


def new_id() -> str:
    """Return an id that nobody else has: 32 hex digits, at random. `uuid` would bring `platform` along."""
    return os.urandom(16).hex()


class Link(Protocol):
    """See the module. Each raises what `meshd_sdk.errors` has for a call that did not succeed."""

    @property
    def is_governed(self) -> bool:
        """Whether a sidecar is there."""
        ...

    async def call(self, ask: Ask) -> Piece:
        """Make a call and return its whole reply."""
        ...

    def stream(self, ask: Ask) -> AsyncIterator[Piece]:
        """Make a call and return the pieces of its reply; the call is cancelled where it is closed early."""
        ...

    async def publish(self, token: str, event: Event) -> Published:
        """Publish an event; return when it is acknowledged."""
        ...

    async def record(self, token: str, entries: list[Entry]) -> None:
        """Take entries for the trace; return when there is room for them, not when they have arrived."""
        ...

    async def open(self, opening: Opening) -> Given:
        """Open a workflow."""
        ...

    async def read(self, token: str) -> Given:
        """Say what a token says."""
        ...

    async def narrow(self, token: str, limits: Opening) -> Given:
        """Return a context that allows less than the token's: of `limits`, the time and the ceilings are read."""
        ...

    async def delegate(self, token: str, id: str, tokens: int) -> Given:
        """Set a part aside; return the context that is charged to it."""
        ...

    async def reclaim(self, token: str, id: str) -> tuple[int, int]:
        """End a part; return the tokens of it that were spent, and that flowed back."""
        ...

    async def balance(self, token: str) -> list[Balance]:
        """Say what is left."""
        ...

    async def report_usage(self, token: str, id: str, usage: Usage) -> Charged:
        """Charge what was used."""
        ...

    async def ask_approval(self, token: str, wish: Wish) -> Approval:
        """Ask people; return the approval that is in force for it."""
        ...

    async def wait_for_approval(
        self, token: str, id: str, use_id: str, timeout_s: float | None
    ) -> tuple[Approval, bool]:
        """Wait for the decision, over restarts of the sidecar; return the approval as it stands when it is there, or
        after `timeout_s` seconds, and whether it is used under `use_id` now."""
        ...

    async def approvals(self, token: str, state: str) -> list[Approval]:
        """List those of the workflow, in a state; in any where that is empty."""
        ...

    async def remember(self, token: str, references: list[str]) -> Given:
        """Return a context that holds these references too."""
        ...

    async def state_get(self, token: str, key: str, version: int, reads_shadow: bool) -> state_values.State:
        """Read an object; version 0 where there is none."""
        ...

    async def state_write(self, token: str, wish: state_values.Wish) -> state_values.Written:
        """Make a change, once for its id."""
        ...

    async def state_check_out(
        self, token: str, key: str, id: str, lease_s: float
    ) -> tuple[state_values.State, state_values.Lease | None]:
        """Check an object out, or renew that; return it, and the lease of another one who has it."""
        ...

    async def state_release(self, token: str, key: str, id: str) -> bool:
        """Give it back; return whether it was still checked out under this id."""
        ...

    async def state_history(self, token: str, key: str) -> list[state_values.State]:
        """List the versions that are kept, newest first."""
        ...

    async def state_drop(self, token: str, key: str) -> bool:
        """Drop tentative versions; return whether there were any."""
        ...

    def state_watch(self, token: str, key: str, known: int) -> AsyncIterator[state_values.State]:
        """Return an object and its changes, as they come."""
        ...
