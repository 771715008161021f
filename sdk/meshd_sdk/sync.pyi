"""Written by sdk/derive.py from agent.py and ctx.py: not to be edited."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar, overload

from meshd_sdk import ctx as _async
from meshd_sdk.approvals import Approval
from meshd_sdk.current import Current
from meshd_sdk.link import Balance, Charged, Event, Published
from meshd_sdk.step import Step

P = ParamSpec("P")
R = TypeVar("R")

__all__ = ["Agent", "Ctx", "Step", "face"]

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
        handling_time: float | None = ...,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Hand the events of a topic to a function; `*` stands for one word, a `>` at the end for one or more.

        It returns: handled. It raises: to be retried, with the reason; or `Drop`, or `Retry(after=seconds)`. Of
        subscribers in one group each event goes to one; the agent's name is the group where none is given. A new group
        begins with what is published from now on, or with what is still kept (`from_oldest`). After `handling_time`
        seconds (5 min) the event is handed over again.
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
    ) -> Published:
        """Publish an event; return when the sidecar has it: then it is not lost.

        Events with one `key` are handed over in order. The same `id`, published again, changes nothing.
        """
    def step(self, name: str, **attributes: Any) -> AbstractContextManager[Step]:
        """Record a step of reasoning, from here to the end of the block; an exception that leaves it is named."""
    def note(self, text: str, **attributes: Any) -> None:
        """Record something worth keeping. Prompts, answers and secrets do not belong here."""
    def decision(self, question: str, choice: str, *, options: Sequence[str] = ..., rationale: str = ...) -> None:
        """Record a choice that was made, and what else could have been."""
