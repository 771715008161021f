"""A scenario is played: its calls are made one after the other by agents, through whatever mesh is given.

The same player drives the detector alone, with a virtual clock, and real processes.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from tests.loops import bodies
from tests.loops.reading import LEAD, LLM, TOOL, Scenario, Step, leaves
from tests.loops.texts import Filler

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handle = Callable[["Actor"], Awaitable[None]]

ROUNDS: Final = 40
"""So often a runaway goes round where nothing stops it."""
AT_ONCE: Final = 20
"""Calls of a parallel step that are under way at a time."""
WALL_S: Final = 1_790_000_000.0


@dataclass
class Actor:
    """An agent as it works on one request. `token` is what came with that request, `path` who called whom before."""

    agent: str
    path: tuple[str, ...] = ()
    token: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Refusal:
    """meshd's no."""

    reason: str
    detector: str = ""
    message: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detector}" if self.detector else self.reason


@dataclass
class Said:
    """One call as it is made, and what became of it."""

    number: int
    id: str
    target: str
    via: str
    method: str
    path: str
    body: bytes | None
    answer: bytes
    status: int = 200
    tokens: int = 0
    takes_s: float = 0.05
    in_loop: bool = False
    is_counted: bool = False
    """One of the calls that the loop consists of."""
    is_forwarded: bool = False
    """The target answers at once and works afterwards."""
    speech: Any = ""
    reply: Any = ""
    reached: bool = False
    refusal: Refusal | None = None


class Mesh(Protocol):
    """What carries calls."""

    async def send(self, actor: Actor, said: Said, handle: Handle) -> None:
        """Carry a call; set `reached` and `refusal`. Where the target is an agent, `handle` is what it then does."""
        ...

    async def wait(self, seconds: float) -> None: ...

    async def loop_begins(self) -> None:
        """The next call is the first of the loop."""
        ...


class StoppedError(Exception):
    """A call was refused, and the agents give up."""


@dataclass
class Record:
    """How a workflow went."""

    scenario: Scenario
    seed: int
    calls: list[Said] = field(default_factory=list)
    error: str = ""

    @property
    def refusals(self) -> list[Refusal]:
        return [one.refusal for one in self.calls if one.refusal is not None]

    @property
    def periods(self) -> float:
        """Rounds of the loop that were let through, all calls together: also those after the first refusal."""
        return sum(one.reached and one.is_counted for one in self.calls) / self.scenario.period

    @property
    def spent(self) -> int:
        """Tokens that the model was paid since the loop began."""
        return sum(one.tokens for one in self.calls if one.in_loop and one.reached)


class Player:
    """Plays one scenario once."""

    def __init__(self, scenario: Scenario, seed: int, mesh: Mesh, workflow: str) -> None:
        self._scenario = scenario
        self._mesh = mesh
        self._filler = Filler(seed, workflow)
        self._used: dict[tuple[int, str], int] = {}
        self._in_loop = False
        self._counted = {id(step) for step in leaves(scenario.loop)}
        self._task = self._filler.fill("Deal with the matter of {any topics} for {workflow}.", {}, 0.0)
        self.record = Record(scenario, seed)
        self.background: list[asyncio.Task[None]] = []

    async def play(self) -> Record:
        """Play it to its end, or until the agents give up."""
        lead = Actor(LEAD)
        try:
            await self._all([*self._scenario.steps, *self._scenario.before], lead, {})
            if self._scenario.loop:
                await self._go_round(lead)
        except StoppedError:
            pass
        while self.background:
            await self.background.pop()
        return self.record

    async def _go_round(self, lead: Actor) -> None:
        await self._mesh.loop_begins()
        self._in_loop = True
        if self._scenario.shape != "flat":
            await self._link(0, lead)
            return
        for cycle in range(1, ROUNDS + 1):
            await self._all(self._scenario.loop, lead, {"cycle": cycle})

    async def _link(self, at: int, actor: Actor) -> None:
        """Make the loop's call number `at`; whom it calls makes the next."""
        loop = self._scenario.loop
        if at == ROUNDS * len(loop):
            return
        step = loop[at % len(loop)]
        scope = {"cycle": at // len(loop) + 1}

        async def goes_on(callee: Actor) -> None:
            await self._all(step.calls, callee, scope)
            await self._link(at + 1, callee)

        await self._call(step, actor, scope, goes_on)

    async def _all(self, steps: list[Step], actor: Actor, scope: dict[str, Any]) -> None:
        for step in steps:
            await self._repeated(step, actor, scope)

    async def _repeated(self, step: Step, actor: Actor, scope: dict[str, Any]) -> None:
        scopes = [
            {**scope, **({"item": item} if step.each else {}), **({"round": number} if step.times > 1 else {})}
            for item in step.each or [""]
            for number in range(1, step.times + 1)
        ]
        if not step.parallel:
            for one in scopes:
                await self._once(step, actor, one)
            return
        gate = asyncio.Semaphore(AT_ONCE)

        async def gated(one: dict[str, Any]) -> None:
            async with gate:
                # Work that is done at the same time is done by conversations of their own.
                await self._once(step, Actor(actor.agent, actor.path, actor.token), one)

        ended = await asyncio.gather(*(gated(one) for one in scopes), return_exceptions=True)
        for error in ended:
            if isinstance(error, BaseException):
                raise error

    async def _once(self, step: Step, actor: Actor, scope: dict[str, Any]) -> None:
        if step.of is not None:
            await self._all(step.of, actor, scope)
            return

        async def works(callee: Actor) -> None:
            await self._all(step.calls, callee, scope)

        await self._call(step, actor, scope, works)

    async def _call(self, step: Step, actor: Actor, scope: dict[str, Any], handle: Handle) -> None:
        if after_s := self._in_turn(step, "after_s"):
            await self._mesh.wait(after_s)
        said = self._composed(step, actor, scope)
        if step.thinks:
            await self._think(said, actor, step)

        async def is_told(callee: Actor) -> None:
            self._begin(callee, bodies.text_of(said.speech))
            await handle(callee)

        await self._send(said, actor, is_told)
        if step.to != LLM:
            self._heard(said, actor)

    async def _send(self, said: Said, actor: Actor, handle: Handle) -> None:
        said.in_loop = self._in_loop
        self.record.calls.append(said)
        await self._mesh.send(actor, said, handle)
        self._filler.history += [bodies.text_of(said.speech), bodies.text_of(said.reply)]
        if said.refusal is not None and not self._scenario.stubborn:
            raise StoppedError

    async def _think(self, said: Said, actor: Actor, step: Step) -> None:
        """Ask the model first, which answers with the call that is then made."""
        self._begin(actor)
        id = self._filler.uuid("", 0)
        # As agent frameworks have it, another agent is a tool too.
        tool = said.target.removeprefix(TOOL) if said.target.startswith(TOOL) else f"ask_{said.target}"
        message = bodies.tool_call(tool, said.speech if said.body is not None else {"path": said.path}, id)
        thought = self._to_model(actor, message, step.thinks, id)
        await self._send(thought, actor, _nothing)
        actor.messages.append(message)

    def _heard(self, said: Said, actor: Actor) -> None:
        if not actor.messages:
            return
        last = actor.messages[-1]
        if said.refusal is not None:
            said.reply = said.refusal.message
        if "tool_calls" in last:
            id = last["tool_calls"][0]["id"]
            actor.messages.append({"role": "tool", "tool_call_id": id, "content": bodies.text_of(said.reply)})
        else:
            actor.messages.append({"role": "user", "content": bodies.text_of(said.reply)})

    def _begin(self, actor: Actor, task: str = "", *, anew: bool = False) -> None:
        if not actor.messages or anew:
            system = {"role": "system", "content": bodies.SYSTEM}
            actor.messages = [system, {"role": "user", "content": task or self._task}]

    def _to_model(
        self, actor: Actor, message: dict[str, Any], tokens: int, id: str, temperature: float | None = None
    ) -> Said:
        path = "/v1/chat/completions"
        answer = bodies.completion(message, tokens, id)
        takes_s = self._filler.dice.uniform(0.8, 2.5)
        body = bodies.chat(actor.messages, temperature)
        number = len(self.record.calls)
        said = Said(number, id, LLM, "post", "POST", path, body, answer, tokens=tokens, takes_s=takes_s)
        said.speech, said.reply = actor.messages[-1]["content"] or "", message["content"] or ""
        return said

    def _composed(self, step: Step, actor: Actor, scope: dict[str, Any]) -> Said:
        wall_s = WALL_S + asyncio.get_running_loop().time() % 1e6
        fill = self._filler.fill
        speech = fill(self._in_turn(step, "says"), scope, wall_s)
        reply = fill(self._in_turn(step, "answers"), scope, wall_s)
        target = step.to or ""
        mark = self._filler.uuid("", 0)
        if target == LLM:
            self._begin(actor, anew=step.forgets)
            actor.messages.append({"role": "user", "content": bodies.text_of(speech)})
            message = {"role": "assistant", "content": bodies.text_of(reply)}
            said = self._to_model(actor, message, step.tokens, mark, step.temperature)
            actor.messages.append(message)
        else:
            via = step.via or ("grpc" if step.is_agent and self._scenario.speaks_grpc(target) else "post")
            number = len(self.record.calls) + 1
            method, path, body = bodies.request(via, target, fill(step.path, scope, wall_s), speech, number, mark)
            answer = bodies.answer(via, reply, number, self._filler.uuid("", 0), fails=step.fails)
            said = Said(number, mark, target, via, method, path, body, answer)
            said.takes_s = self._filler.dice.uniform(0.02, 0.3)
        said.status = self._in_turn(step, "status")
        said.is_counted = self._in_loop and id(step) in self._counted
        said.speech, said.reply = speech, reply
        said.is_forwarded = self._scenario.shape == "forwarded" and self._in_loop and step.is_agent
        return said

    def _in_turn(self, step: Step, key: str) -> Any:
        """Return the next of a step's list; after the last comes the first."""
        values = getattr(step, key)
        if len(values) == 1:
            return values[0]
        at = self._used.get((id(step), key), 0)
        self._used[id(step), key] = at + 1
        return values[at % len(values)]


async def _nothing(_: Actor) -> None:
    return
