"""An agent: what it offers, and the session in which it does. Stdlib only, until there is a sidecar to speak with.

agent = Agent("researcher", intents=["find sources"], version="1.2.0")

@agent.tool
async def search(query: str, limit: int = 10) -> list[str]: ...

agent.run_forever()
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, overload

from meshd_sdk.ctx import Ctx
from meshd_sdk.current import using
from meshd_sdk.errors import MeshError, NoSidecar, SettingInvalid
from meshd_sdk.handlers import Entrance, Subscription, Tool, start_of, topic_pattern
from meshd_sdk.link import Given, Opening
from meshd_sdk.log import log
from meshd_sdk.serving import Serving
from meshd_sdk.settings import RUN, agent_name, place, settings, what_without
from meshd_sdk.tools import recording

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping
    from datetime import datetime

    from meshd_sdk.deliveries import Delivering
    from meshd_sdk.link import Link
    from meshd_sdk.session import Session
    from meshd_sdk.ungoverned import Ungoverned

P = ParamSpec("P")
R = TypeVar("R")
CREDIT: Final = 64
"""Deliveries that may be under way at once, where an agent does not say."""
GRACE_S: Final = 30.0
"""How long what runs may go on when the agent ends."""
_said: set[str] = set()


class Agent:
    """See the module. A context manager: connected within its block; `run` and `run_forever` serve until a signal."""

    def __init__(
        self,
        name: str = "",
        *,
        intents: Iterable[str] = (),
        version: str = "",
        description: str = "",
        api: str = "",
        without: str = "",
        credit: int = CREDIT,
        grace: float = GRACE_S,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Raise SettingInvalid for what means nothing. What is empty is read from the environment, see `settings`.

        `credit` is how many calls and events may be under way at once, `grace` in seconds how long they may go on when
        the agent ends.
        """
        said = settings(os.environ if environ is None else environ)
        if not (name or said.agent):
            raise SettingInvalid("an agent has a name: Agent('researcher'), or MESHD_AGENT in the environment")
        if isinstance(intents, str):
            raise TypeError("intents are several texts, in a list")
        if credit < 1:
            raise SettingInvalid(f"credit is at least 1, not {credit}")
        self._name = agent_name(name or said.agent)
        self._version, self._description, self._intents = version, description, tuple(intents)
        self._place = place(api or said.api, source="api" if api else "MESHD_API")
        self._without = what_without(without or said.without)
        self._token = said.context
        self._credit, self._grace_s = credit, grace
        self._serving = Serving(self._name)
        self._session: Session | None = None
        self._delivering: Delivering | None = None
        self._ungoverned: Ungoverned | None = None
        self._root = Given()
        self._is_declared = False

    @property
    def name(self) -> str:
        """The agent's name."""
        return self._name

    # What it offers

    @overload
    def tool(self, function: Callable[P, R], /) -> Callable[P, R]: ...
    @overload
    def tool(
        self, *, name: str = "", version: str = "", read_only: bool = False, idempotent: bool = False
    ) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
    def tool(
        self,
        function: Any = None,
        *,
        name: str = "",
        version: str = "",
        read_only: bool = False,
        idempotent: bool = False,
    ) -> Any:
        """Offer a function to be called by its name, with arguments as its type hints and its docstring say.

        Raises TypeError for a type that JSON has no word for, ValueError for a name that is taken or none.
        """
        names = sys._getframe(1).f_locals

        def offer(function: Callable[P, R]) -> Callable[P, R]:
            self._declare()
            one = Tool(function, names, name=name, version=version, is_read_only=read_only, is_idempotent=idempotent)
            if one.name in self._serving.tools:
                raise ValueError(f"{self.name} has a tool {one.name!r} already")
            self._serving.tools[one.name] = one
            return recording(function, one)

        return offer if function is None else offer(function)

    def serve(self, function: Callable[P, R]) -> Callable[P, R]:
        """Make a function the agent's own entrance: for calls that name no tool of it. `ctx.operation` is what they
        name."""
        self._declare()
        if self._serving.entrance is not None:
            raise ValueError(f"{self.name} has an entrance already: {self._serving.entrance.name}")
        self._serving.entrance = Entrance(function, sys._getframe(1).f_locals, is_read=True)
        return function

    def on(
        self,
        topic: str,
        *,
        group: str = "",
        from_oldest: bool = False,
        starts_at: datetime | float | None = None,
        starts_after: str = "",
        handling_time: float | None = None,
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
        pattern, names = topic_pattern(topic), sys._getframe(1).f_locals
        start = start_of(from_oldest, starts_at, starts_after)

        def subscribe(function: Callable[P, R]) -> Callable[P, R]:
            self._declare()
            handler = Entrance(function, names, is_read=False)
            self._serving.subscriptions.append(Subscription(pattern, group, handler, start, handling_time))
            return function

        return subscribe

    def _declare(self) -> None:
        if self._is_declared:
            raise RuntimeError("what an agent offers is declared before it connects")

    # Its life

    async def __aenter__(self) -> Agent:
        """Connect, and serve. Raises NoSidecar (but with MESHD_WITHOUT=run), and Refused where the sidecar says no."""
        if self._serving.link is not None:
            raise RuntimeError(f"{self.name} is connected already")
        import asyncio

        self._is_declared = True
        self._serving.loop = asyncio.get_running_loop()
        try:
            await self._begin_session()
        except NoSidecar as error:
            await self._begin_without(error)
        except BaseException:
            self._serving.link = None
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Finish what runs, say goodbye, and let go."""
        try:
            if self._delivering is not None and self._session is not None:
                self._delivering.close()
                try:
                    await self._delivering.finish(self._grace_s)
                finally:
                    # Also where nobody wants to wait any more: callers would wait for the session to come back.
                    await self._session.end()
            if self._ungoverned is not None:
                await self._ungoverned.end(self._grace_s)
        finally:
            self._session = self._delivering = self._ungoverned = None
            self._serving.link = None

    async def _begin_session(self) -> None:
        from meshd_sdk.probe import probe

        await probe(self._place)
        from meshd_sdk.deliveries import Delivering
        from meshd_sdk.messages import tool_of
        from meshd_sdk.session import Session
        from meshd_sdk.v1.discovery_pb2 import Agent as Description

        described = Description(
            name=self.name,
            version=self._version,
            description=self._description,
            intents=self._intents,
            tools=[tool_of(one) for one in self._serving.tools.values()],
        )
        delivering = Delivering(self._serving)
        session = Session(self._place, described, delivering, credit=self._credit)
        delivering.session = self._serving.link = session
        try:
            await session.begin()
            await session.subscribe(self._serving.subscriptions, delivering.subscriptions)
            if self._token:
                self._root = await self._own(session, await session.read(self._token))
        except BaseException:
            await session.end("it could not begin")
            raise
        self._session, self._delivering = session, delivering
        log().info("the agent %s is connected to meshd at %s", self.name, self._place.grpc_target)

    async def _own(self, link: Link, root: Given) -> Given:
        """Return the root as this agent may show it: `meshd exec` has it issued to the sidecar's own agent, and does
        not know the names of those in the program. Its limits stay. Raises Refused where workflows have no names."""
        now = root.current
        if now.agent == self._name or not now.workflow:
            return root
        left_s = None if now.deadline_s is None else max(now.deadline_s - time.time(), 0.001)
        ceilings = root.ceiling_tokens, root.ceiling_microdollars
        return await link.open(Opening(self._name, now.workflow, left_s, *ceilings, now.traceparent))

    async def _begin_without(self, error: NoSidecar) -> None:
        self._serving.link = None
        words = (
            f"No sidecar for the agent {self.name}: {error}. Start one (`meshd run`), or say where it is in MESHD_API"
        )
        if self._without != RUN:
            # The words say it all: three tracebacks of sockets above them would hide that.
            raise NoSidecar(f"{words}; MESHD_WITHOUT=run goes on without one.") from None
        if words not in _said:
            _said.add(words)
            log().warning("%s. MESHD_WITHOUT=run: it goes on UNGOVERNED, with no budget, no limit and no trace.", words)
        from meshd_sdk.ungoverned import Ungoverned

        ungoverned = Ungoverned(self._serving)
        await ungoverned.begin()
        self._serving.link = self._ungoverned = ungoverned

    async def run(self) -> None:
        """Serve until SIGINT or SIGTERM: finish what runs, then end. A second signal ends it at once."""
        import asyncio
        import signal

        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        task = asyncio.current_task()

        def stop() -> None:
            if ended.is_set() and task is not None:
                task.cancel()
            elif self._delivering is not None and self._delivering.count:
                words = (
                    "%s ends when what runs is finished (%d under way, %g s at most); a second signal ends it at once"
                )
                log().warning(words, self.name, self._delivering.count, self._grace_s)
            ended.set()

        numbers = []
        for number in (signal.SIGINT, signal.SIGTERM):
            # Not in a thread that is not the main one, and not on every system: the caller ends it then.
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, stop)
                numbers.append(number)
        try:
            async with self:
                await ended.wait()
        finally:
            # Not before what runs is finished: a second signal is to be heard.
            for number in numbers:
                loop.remove_signal_handler(number)

    def run_forever(self) -> None:
        """Serve until SIGINT or SIGTERM, as a program's main.

        What meshd says no to ends it in words, without a traceback.
        """
        import asyncio

        try:
            asyncio.run(self.run())
        except (KeyboardInterrupt, asyncio.CancelledError):
            pass
        except MeshError as error:
            sys.exit(f"{self.name}: {error}")

    @property
    def is_governed(self) -> bool:
        """Whether it is connected to a sidecar, or was and will be again."""
        return self._session is not None

    # What it does of its own accord

    @property
    def ctx(self) -> Ctx:
        """The context that the program was started in (MESHD_CONTEXT); without one its calls are in no workflow, and
        are charged to the agent's shared account. Raises RuntimeError before the agent is connected."""
        return Ctx(self._link(), self._root, agent=self.name, loop=self._serving.loop)

    @asynccontextmanager
    async def workflow(
        self,
        name: str = "",
        *,
        tokens: int | None = None,
        dollars: float | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the workflow's deadline
        traceparent: str = "",
    ) -> AsyncIterator[Ctx]:
        """Open a workflow, or go on with one by its name; within the block it is the current context.

        Where the program was started in a context (`meshd exec`, MESHD_CONTEXT) that is the root: it is narrowed to
        the limits given here, and the name is not read. `tokens` and `dollars` are ceilings, `timeout` in seconds.
        """
        if dollars is not None and tokens is None:
            raise ValueError("a ceiling in dollars goes beside one in tokens")
        micro = None if dollars is None else round(dollars * 1_000_000)
        opening = Opening(self.name, name, timeout, tokens, micro, traceparent)
        link = self._link()
        if not self._root.current.token:
            given = await link.open(opening)
        elif tokens is None and timeout is None:
            given = self._root
        else:
            given = await link.narrow(self._root.current.token, opening)
        ctx = Ctx(link, given, agent=self.name, loop=self._serving.loop)
        with using(ctx.current):
            yield ctx

    def _link(self) -> Link:
        if self._serving.link is None:
            raise RuntimeError(f"{self.name} is not connected: `async with agent:`, or agent.run()")
        return self._serving.link
