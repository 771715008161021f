"""Written by sdk/derive.py from agent.py, ctx.py and state.py: not to be edited."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, ParamSpec, TypeVar, overload

from meshd_sdk import ctx as _async
from meshd_sdk.approvals import Approval
from meshd_sdk.current import Current
from meshd_sdk.link import Balance, Charged, Event, Published
from meshd_sdk.state_values import State
from meshd_sdk.step import Step

P = ParamSpec("P")
R = TypeVar("R")

__all__ = ["Agent", "CheckedOut", "Ctx", "SharedState", "State", "Step", "face"]

def face(ctx: _async.Ctx) -> Ctx: ...

class Agent:
    def __init__(
        self,
        name: str = ...,
        *,
        intents: Iterable[str] = ...,
        version: str = ...,
        description: str = ...,
        api: str = ...,
        without: str = ...,
        credit: int = ...,
        grace: float = ...,
        environ: Mapping[str, str] | None = ...,
    ) -> None:
        """Raise SettingInvalid for what means nothing. What is empty is read from the environment, see `settings`.

        `credit` is how many calls and events may be under way at once, `grace` in seconds how long they may go on when
        the agent ends.
        """
    @property
    def name(self) -> str:
        """The agent's name."""
    @overload
    def tool(self, function: Callable[P, R], /) -> Callable[P, R]: ...
    @overload
    def tool(
        self,
        *,
        name: str = ...,
        version: str = ...,
        read_only: bool = ...,
        idempotent: bool = ...,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
    def serve(self, function: Callable[P, R]) -> Callable[P, R]:
        """Make a function the agent's own entrance: for calls that name no tool of it. `ctx.operation` is what they
        name."""
    def on(
        self,
        topic: str,
        *,
        group: str = ...,
        from_oldest: bool = ...,
        starts_at: datetime | float | None = ...,
        starts_after: str = ...,
        handling_time: float | None = ...,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Hand the events of a topic to a function; `*` stands for one word, a `>` at the end for one or more.

        It returns: handled. It raises: to be retried, with the reason; or `Drop`, or `Retry(after=seconds)`. Of
        subscribers in one group each event goes to one; the agent's name is the group where none is given. A new group
        begins with what is published from now on, or replays what is still kept: all (`from_oldest`), what was
        published at a moment or later (`starts_at`, a datetime with a time zone or Unix seconds), or what came behind
        an event (`starts_after`, its `sequence`). Raises ValueError for what is none; connecting raises Refused where
        the bus cannot begin there. A group that is known goes on where it was. After `handling_time` seconds (5 min)
        the event is handed over again.
        """
    def __enter__(self) -> Agent:
        """Connect, and serve. Raises NoSidecar (but with MESHD_WITHOUT=run), and Refused where the sidecar says no."""
    def __exit__(self, *exc: object) -> None:
        """Finish what runs, say goodbye, and let go."""
    def run_forever(self) -> None:
        """Serve until SIGINT or SIGTERM, as a program's main.

        What meshd says no to ends it in words, without a traceback.
        """
    @property
    def is_governed(self) -> bool:
        """Whether it is connected to a sidecar, or was and will be again."""
    @property
    def ctx(self) -> Ctx:
        """The context that the program was started in (MESHD_CONTEXT); without one its calls are in no workflow, and
        are charged to the agent's shared account. Raises RuntimeError before the agent is connected."""
    def workflow(
        self,
        name: str = ...,
        *,
        tokens: int | None = ...,
        dollars: float | None = ...,
        timeout: float | None = ...,
        traceparent: str = ...,
    ) -> AbstractContextManager[Ctx]:
        """Open a workflow, or go on with one by its name; within the block it is the current context.

        Where the program was started in a context (`meshd exec`, MESHD_CONTEXT) that is the root: it is narrowed to
        the limits given here, and the name is not read. `tokens` and `dollars` are ceilings, `timeout` in seconds.
        """

class Ctx:
    @property
    def agent(self) -> str:
        """The agent whose work this is."""
    @property
    def operation(self) -> str:
        """What was asked: a tool, a path, or an event's topic; empty for the agent's own entrance."""
    @property
    def idempotency_key(self) -> str:
        """The key under which the caller makes the call once; empty for none."""
    @property
    def event(self) -> Event | None:
        """The event that is handled; None in a call."""
    @property
    def current(self) -> Current:
        """What goes on with calls that are made from here, by whatever client."""
    @property
    def token(self) -> str:
        """The signed token; empty where there is none: calls are then charged to the agent's shared account."""
    @property
    def workflow(self) -> str:
        """The workflow's id; empty for what belongs to none."""
    @property
    def deadline(self) -> float | None:
        """Unix seconds by which the workflow must be done; None for never."""
    @property
    def traceparent(self) -> str:
        """The span that this was handed out in; empty where nothing is traced."""
    @property
    def hops(self) -> int:
        """Agent-to-agent edges behind this point."""
    @property
    def path(self) -> tuple[str, ...]:
        """The agents that were passed, oldest first."""
    @property
    def account(self) -> str:
        """The account that pays."""
    @property
    def ceiling_tokens(self) -> int | None:
        """Most tokens that may be spent under this context; None where the account's own limit is the only one."""
    @property
    def memory(self) -> tuple[str, ...]:
        """References to shared state that were handed on with this: `ctx.state.get` reads them."""
    @property
    def state(self) -> SharedState:
        """What agents share: versioned objects, see `meshd_sdk.state`."""
    @property
    def is_governed(self) -> bool:
        """Whether a sidecar is there."""
    def headers(self) -> dict[str, str]:
        """Return the header fields for a call that is made by other means, through the sidecar's port."""
    def call(
        self,
        target: str,
        payload: Any = ...,
        *,
        operation: str = ...,
        timeout: float | None = ...,
        delegate: int | None = ...,
        idempotency_key: str = ...,
        content_type: str = ...,
    ) -> Any:
        """Call an agent, its tool (`researcher/search`) or an upstream of the policy; return the decoded JSON.

        `mesh://intent/analyse the market` calls the agent that serves this best, as the sidecar finds.

        A payload of another type is returned as a `Reply`. `payload` is whatever JSON has a word for, bytes, or a
        `Reply`; `timeout` is in seconds; at most `delegate` tokens may be spent by what is called.
        """
    def stream(
        self,
        target: str,
        payload: Any = ...,
        *,
        operation: str = ...,
        timeout: float | None = ...,
        delegate: int | None = ...,
        idempotency_key: str = ...,
        content_type: str = ...,
    ) -> Iterator[Any]:
        """Call as `call` does, and yield what comes as it comes: values of JSON in lines, else bytes.

        A reply that is one JSON document is yielded whole. The call ends where the iterator is closed.
        """
    def delegate(self, tokens: int) -> AbstractContextManager[Ctx]:
        """Set a part of the budget aside: what is called within the block is charged to it, and no more than it.

        What is left when the block ends flows back.
        """
    def remembering(self, *references: str) -> AbstractContextManager[Ctx]:
        """Hand references to shared state on with what is called and published within the block. A callee gets those
        that are within its scope, as `ctx.memory`."""
    def balance(self) -> list[Balance]:
        """Return the accounts that limit what is called from here; none where the policy limits nothing."""
    def report_usage(
        self,
        model: str,
        input_tokens: int = ...,
        output_tokens: int = ...,
        *,
        cached_tokens: int = ...,
        is_estimated: bool = ...,
        report_id: str = ...,
    ) -> Charged:
        """Charge tokens that no intercepted call has shown: a model in this process, a tool that is billed apart.

        A report with one `report_id` is charged once; without one, each call is a report of its own.
        """
    def ask_approval(
        self,
        operation: str,
        arguments: Any = ...,
        *,
        summary: str = ...,
        timeout: float | None = ...,
        expires: float | None = ...,
        quorum: int = ...,
    ) -> Approval:
        """Ask people about something that this agent is about to do by itself; return once they have allowed it.

        What was allowed holds for this operation with these arguments, once: do it now. `summary` is shown to people
        and binds nothing; after `expires` seconds no answer is a no. Raises ApprovalDenied, ApprovalExpired, and
        ApprovalPending after `timeout` seconds: asked again for the same, it attaches to the same approval.
        """
    def approvals(self, state: str = ...) -> list[Approval]:
        """Return the approvals of this workflow, oldest first; with a `state` (`pending`, say) only those."""
    def publish(
        self,
        topic: str,
        data: Any = ...,
        *,
        key: str = ...,
        id: str = ...,
        type: str = ...,
        subject: str = ...,
        content_type: str = ...,
        extensions: dict[str, str] | None = ...,
        data_ref: str = ...,
    ) -> Published:
        """Publish an event; return when the sidecar has it: then it is not lost.

        `data_ref` says where the data is, in its place or beside it: a reference to shared state, say.
        Events with one `key` are handed over in order. The same `id`, published again, changes nothing.
        """
    def step(self, name: str, **attributes: Any) -> AbstractContextManager[Step]:
        """Record a step of reasoning, from here to the end of the block; an exception that leaves it is named."""
    def note(self, text: str, **attributes: Any) -> None:
        """Record something worth keeping. Prompts, answers and secrets do not belong here."""
    def decision(self, question: str, choice: str, *, options: Sequence[str] = ..., rationale: str = ...) -> None:
        """Record a choice that was made, and what else could have been."""

class SharedState:
    def get(
        self,
        key: str,
        version: State | int | None = ...,
        *,
        scope: str = ...,
        shadow: bool = ...,
    ) -> State | None:
        """Return the newest version, or a given one; None where there is none, or it is not kept.

        `key` may be a reference. With `shadow` a tentative version of this workflow goes before the newest one.
        """
    def put(
        self,
        key: str,
        value: Any = ...,
        *,
        scope: str = ...,
        content_type: str = ...,
        commit_id: str = ...,
    ) -> State:
        """Write the first version. Raises StateConflict where the object is there."""
    def commit(
        self,
        key: str,
        value: Any,
        base: State | int | None,
        *,
        scope: str = ...,
        content_type: str = ...,
        commit_id: str = ...,
    ) -> State:
        """Write the next version, made from `base`. Raises StateConflict where another one is the newest by now."""
    def delete(self, key: str, base: State | int, *, scope: str = ..., commit_id: str = ...) -> State:
        """Delete the object and its history, where `base` is still the newest version."""
    def checkout(
        self,
        key: str,
        *,
        scope: str = ...,
        lease: float = ...,
        lease_id: str = ...,
    ) -> AbstractContextManager[CheckedOut]:
        """Take the object for this block: for `lease` seconds nobody else commits it. Raises LeaseHeld where another
        one has it. A block that ends without a commit gives it back.

        Asked for again with the same `lease_id`, it is the same lease, from now on.
        """
    def history(self, key: str, *, scope: str = ...) -> list[State]:
        """Return the versions that are kept, newest first, without their values."""
    def watch(self, key: str, known: State | int | None = ..., *, scope: str = ...) -> Iterator[State]:
        """Yield the newest version, and again whenever it changes; with `known` only newer ones. Close it to end.

        Where it changes faster than it is read, versions between are left out. A deletion is yielded too.
        """
    def shadow(
        self,
        key: str,
        value: Any,
        base: State | int | None = ...,
        after: State | int | None = ...,
        *,
        scope: str = ...,
        content_type: str = ...,
        commit_id: str = ...,
    ) -> State:
        """Write a tentative version that this workflow alone sees, made from the object's version `base`.

        It follows the tentative version `after`, None for the first. Raises StateConflict where it does not.
        """
    def promote(
        self,
        key: str,
        version: State | int | None = ...,
        *,
        scope: str = ...,
        commit_id: str = ...,
    ) -> State:
        """Make a tentative version, the newest one or a given one, the object's next. Raises StateConflict where the
        object is not at the version any more that it was made from: the tentative one stays."""
    def drop(self, key: str, *, scope: str = ...) -> bool:
        """Drop the tentative versions of an object; return whether there were any."""

class CheckedOut:
    @property
    def state(self) -> State | None:
        """The version that was checked out; None where the object is yet to be made."""
    @property
    def value(self) -> Any:
        """Its value; None where the object is yet to be made."""
    @property
    def is_committed(self) -> bool:
        """Whether it was committed: the lease has ended with that."""
    def commit(self, value: Any, *, content_type: str = ...) -> State:
        """Write the next version, and end the lease. Raises LeaseLost where it has run out: nothing is written.

        Where that was not answered, the same value may be committed again: it is written once.
        """
    def renew(self, lease: float = ...) -> None:
        """Have the lease run for another `lease` seconds from now. Raises LeaseLost where another one has it."""
