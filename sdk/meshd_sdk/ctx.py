"""What a handler works in: its workflow, and all that it may ask of the mesh. Stdlib only.

`Ctx` is handed to handlers, and opened by `Agent.workflow`. While one is worked in, the ContextVar of
`meshd_sdk.current` holds it as a `Doing`: so a part (`delegate`) and a step are those of whatever runs within them, in
tasks and threads too.
"""

from __future__ import annotations

import dataclasses
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from meshd_sdk.approvals import Approval, Wish, granted
from meshd_sdk.asking import asked, tokens_of
from meshd_sdk.bodies import JSON, Lines, encode, is_lines
from meshd_sdk.current import Current, current, using
from meshd_sdk.errors import MeshError
from meshd_sdk.link import Balance, Charged, Entry, Event, Given, Link, Published, Usage, new_id
from meshd_sdk.log import log
from meshd_sdk.replies import decoded, fed
from meshd_sdk.state import SharedState
from meshd_sdk.step import Step, decision_entry, note_entry

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Doing(Current):
    """What is current while a `Ctx` is worked in."""

    ctx: Ctx | None = dataclasses.field(default=None, repr=False, compare=False)
    step: str = ""
    """The id of the step within which this is; empty outside of any."""


class Ctx:
    """See the module. Its methods raise `Refused`, `CallFailed` and `NoSidecar`, see `meshd_sdk.errors`."""

    def __init__(
        self,
        link: Link,
        given: Given,
        *,
        agent: str = "",
        operation: str = "",
        idempotency_key: str = "",
        event: Event | None = None,
        parent: Ctx | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._link, self._given, self._parent, self.loop = link, given, parent, loop
        self._agent = agent or given.current.agent
        self._operation, self._idempotency_key, self._event = operation, idempotency_key, event
        self._current = Doing(
            **{field.name: getattr(given.current, field.name) for field in dataclasses.fields(Current)}, ctx=self
        )

    # What it is: properties, so that the sync face has them too

    @property
    def agent(self) -> str:
        """The agent whose work this is."""
        return self._agent

    @property
    def operation(self) -> str:
        """What was asked: a tool, a path, or an event's topic; empty for the agent's own entrance."""
        return self._operation

    @property
    def idempotency_key(self) -> str:
        """The key under which the caller makes the call once; empty for none."""
        return self._idempotency_key

    @property
    def event(self) -> Event | None:
        """The event that is handled; None in a call."""
        return self._event

    @property
    def current(self) -> Current:
        """What goes on with calls that are made from here, by whatever client."""
        return self._current

    @property
    def token(self) -> str:
        """The signed token; empty where there is none: calls are then charged to the agent's shared account."""
        return self._given.current.token

    @property
    def workflow(self) -> str:
        """The workflow's id; empty for what belongs to none."""
        return self._given.current.workflow

    @property
    def deadline(self) -> float | None:
        """Unix seconds by which the workflow must be done; None for never."""
        return self._given.current.deadline_s

    @property
    def traceparent(self) -> str:
        """The span that this was handed out in; empty where nothing is traced."""
        return self._given.current.traceparent

    @property
    def hops(self) -> int:
        """Agent-to-agent edges behind this point."""
        return self._given.hops

    @property
    def path(self) -> tuple[str, ...]:
        """The agents that were passed, oldest first."""
        return self._given.path

    @property
    def account(self) -> str:
        """The account that pays."""
        return self._given.account

    @property
    def ceiling_tokens(self) -> int | None:
        """Most tokens that may be spent under this context; None where the account's own limit is the only one."""
        return self._given.ceiling_tokens

    @property
    def memory(self) -> tuple[str, ...]:
        """References to shared state that were handed on with this: `ctx.state.get` reads them."""
        return self._given.memory

    @property
    def state(self) -> SharedState:
        """What agents share: versioned objects, see `meshd_sdk.state`."""
        return SharedState(self._link, lambda: self._acting().token)

    @property
    def is_governed(self) -> bool:
        """Whether a sidecar is there."""
        return self._link.is_governed

    def headers(self) -> dict[str, str]:
        """Return the header fields for a call that is made by other means, through the sidecar's port."""
        return self._acting()._current.headers()

    # Calls

    async def call(
        self,
        target: str,
        payload: Any = None,
        *,
        operation: str = "",
        timeout: float | None = None,  # noqa: ASYNC109 - it goes to the callee too
        delegate: int | None = None,
        idempotency_key: str = "",
        content_type: str = "",
    ) -> Any:
        """Call an agent, its tool (`researcher/search`) or an upstream of the policy; return the decoded JSON.

        `mesh://intent/analyse the market` calls the agent that serves this best, as the sidecar finds.

        A payload of another type is returned as a `Reply`. `payload` is whatever JSON has a word for, bytes, or a
        `Reply`; `timeout` is in seconds; at most `delegate` tokens may be spent by what is called.
        """
        ask = asked(self._acting().token, target, payload, operation, timeout, delegate, idempotency_key, content_type)
        piece = await self._link.call(ask)
        return decoded(piece.payload, piece.content_type, piece.call_id, target)

    async def stream(
        self,
        target: str,
        payload: Any = None,
        *,
        operation: str = "",
        timeout: float | None = None,  # noqa: ASYNC109 - as above
        delegate: int | None = None,
        idempotency_key: str = "",
        content_type: str = "",
    ) -> AsyncIterator[Any]:
        """Call as `call` does, and yield what comes as it comes: values of JSON in lines, else bytes.

        A reply that is one JSON document is yielded whole. The call ends where the iterator is closed.
        """
        ask = asked(self._acting().token, target, payload, operation, timeout, delegate, idempotency_key, content_type)
        lines: Lines | None = None
        whole: list[bytes] = []
        kind = call_id = ""
        async for piece in self._link.stream(ask):
            kind, call_id = kind or piece.content_type or JSON, piece.call_id
            if is_lines(kind):
                lines = lines or Lines()
                for value in fed(lines, piece.payload, target):
                    yield value
            elif kind.split(";", 1)[0].strip().lower() == JSON:
                whole.append(piece.payload)
            elif piece.payload:
                yield piece.payload
        if lines is not None:
            for value in fed(lines, None, target):
                yield value
        if whole:
            yield decoded(b"".join(whole), kind, call_id, target)

    # Budgets

    @asynccontextmanager
    async def delegate(self, tokens: int) -> AsyncIterator[Ctx]:
        """Set a part of the budget aside: what is called within the block is charged to it, and no more than it.

        What is left when the block ends flows back.
        """
        acting, id = self._acting(), new_id()
        given = await self._link.delegate(acting.token, id, tokens_of(tokens))
        part = self._part(acting, given)
        try:
            with using(dataclasses.replace(part._current, step=_step())):
                yield part
        finally:
            try:
                await self._link.reclaim(acting.token, id)
            except MeshError as error:
                log().warning("a part of %d tokens was not given back: %s", tokens, error)

    def _part(self, acting: Ctx, given: Given) -> Ctx:
        return Ctx(
            self._link,
            given,
            agent=self.agent,
            operation=self.operation,
            idempotency_key=self.idempotency_key,
            event=self.event,
            parent=acting,
            loop=self.loop,
        )

    @asynccontextmanager
    async def remembering(self, *references: str) -> AsyncIterator[Ctx]:
        """Hand references to shared state on with what is called and published within the block. A callee gets those
        that are within its scope, as `ctx.memory`."""
        acting = self._acting()
        part = self._part(acting, await self._link.remember(acting.token, list(references)))
        with using(dataclasses.replace(part._current, step=_step())):
            yield part

    async def balance(self) -> list[Balance]:
        """Return the accounts that limit what is called from here; none where the policy limits nothing."""
        return await self._link.balance(self._acting().token)

    async def report_usage(
        self,
        model: str,
        input_tokens: int = 0,
        output_tokens: int = 0,
        *,
        cached_tokens: int = 0,
        is_estimated: bool = False,
        report_id: str = "",
    ) -> Charged:
        """Charge tokens that no intercepted call has shown: a model in this process, a tool that is billed apart.

        A report with one `report_id` is charged once; without one, each call is a report of its own.
        """
        usage = Usage(model, input_tokens, output_tokens, cached_tokens, is_estimated)
        return await self._link.report_usage(self._acting().token, report_id or new_id(), usage)

    # People

    async def ask_approval(
        self,
        operation: str,
        arguments: Any = None,
        *,
        summary: str = "",
        timeout: float | None = None,  # noqa: ASYNC109 - what was asked for stays
        expires: float | None = None,
        quorum: int = 0,
    ) -> Approval:
        """Ask people about something that this agent is about to do by itself; return once they have allowed it.

        What was allowed holds for this operation with these arguments, once: do it now. `summary` is shown to people
        and binds nothing; after `expires` seconds no answer is a no. Raises ApprovalDenied, ApprovalExpired, and
        ApprovalPending after `timeout` seconds: asked again for the same, it attaches to the same approval.
        """
        payload = b"" if arguments is None else encode(arguments)[0]
        wish = Wish(operation, payload, summary, expires, quorum)
        return await granted(self._link, self._acting().token, wish, timeout)

    async def approvals(self, state: str = "") -> list[Approval]:
        """Return the approvals of this workflow, oldest first; with a `state` (`pending`, say) only those."""
        return await self._link.approvals(self._acting().token, state)

    # Events

    async def publish(
        self,
        topic: str,
        data: Any = None,
        *,
        key: str = "",
        id: str = "",
        type: str = "",
        subject: str = "",
        content_type: str = "",
        extensions: dict[str, str] | None = None,
        data_ref: str = "",
    ) -> Published:
        """Publish an event; return when the sidecar has it: then it is not lost.

        `data_ref` says where the data is, in its place or beside it: a reference to shared state, say.
        Events with one `key` are handed over in order. The same `id`, published again, changes nothing.
        """
        _check_texts(topic=topic, key=key, id=id, type=type, subject=subject, data_ref=data_ref)
        _check_texts(**(extensions or {}))
        payload, kind = (b"", content_type) if data is None else encode(data, content_type)
        event = Event(
            topic,
            payload,
            kind,
            id or new_id(),
            type=type,
            subject=subject,
            key=key,
            extensions=extensions or {},
            data_ref=data_ref,
        )
        return await self._link.publish(self._acting().token, event)

    # The trace

    @asynccontextmanager
    async def step(self, name: str, **attributes: Any) -> AsyncIterator[Step]:
        """Record a step of reasoning, from here to the end of the block; an exception that leaves it is named."""
        made = Step(name, _step(), attributes)
        acting = self._acting()
        error: BaseException | None = None
        try:
            with using(dataclasses.replace(acting._current, step=made.id)):
                yield made
        except BaseException as raised:
            error = raised
            raise
        finally:
            await acting.record(made.end(error))

    async def note(self, text: str, **attributes: Any) -> None:
        """Record something worth keeping. Prompts, answers and secrets do not belong here."""
        await self._acting().record([note_entry(_step(), text, attributes)])

    async def decision(self, question: str, choice: str, *, options: Sequence[str] = (), rationale: str = "") -> None:
        """Record a choice that was made, and what else could have been."""
        await self._acting().record([decision_entry(_step(), question, choice, options, rationale)])

    async def record(self, entries: list[Entry]) -> None:
        """Take entries for the trace. What cannot be taken is logged: a trace ends nobody's work."""
        try:
            await self._link.record(self.token, entries)
        except MeshError as error:
            log().warning("%d entries were not recorded: %s", len(entries), error)

    def record_later(self, entries: list[Entry]) -> None:
        """The same from whichever thread, without waiting."""
        if self.loop is not None and not self.loop.is_closed():
            import asyncio

            asyncio.run_coroutine_threadsafe(self.record(entries), self.loop)

    # Which context is meant

    def _acting(self) -> Ctx:
        """Return the part of this context within which the caller is; itself outside of any."""
        now = current()
        found = now.ctx if isinstance(now, Doing) else None
        one = found
        while one is not None:
            if one is self:
                return found or self
            one = one._parent
        return self


def _check_texts(**given: Any) -> None:
    """Raise TypeError, by its name, for what is no text: protobuf does not say which it was."""
    for name, value in given.items():
        if not isinstance(value, str | None):
            raise TypeError(f"{name} is a text, not {value!r}")


def _step() -> str:
    now = current()
    return now.step if isinstance(now, Doing) else ""
