"""A scenario against the detector alone: no process and no socket, and a clock that jumps to what is waited for.

The filters are the real ones, HopLimit and Turns; calls are handed to them as the proxy does.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, Final

from meshd import call as meshd_call
from meshd.call import Call, Direction, NeedBody, Target, Wait
from meshd.dialects.table import DIALECTS, GRPC
from meshd.filters.hop_limit import HopLimit
from meshd.filters.turns import Turns
from meshd.outcome import Fault, Outcome, classify
from meshd.policy.document import DocumentFile, parse
from meshd.refusal import Refused
from meshd.span import Span
from meshd_sdk.context import Context
from tests.loops.playing import WALL_S, Actor, Player, Record, StoppedError
from tests.loops.policies import document, refusal
from tests.loops.reading import LEAD, LLM, TOOL, Scenario

if TYPE_CHECKING:
    from tests.loops.playing import Handle, Said

words: Any = meshd_call
_NOT_DONE: Final = b'{"error": "a call that I made was refused"}'


class _Jumping(selectors.DefaultSelector):
    """Waits for nothing: whoever sleeps is woken at once, and the clock says that the time has passed."""

    now_s = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found and timeout:
            self.now_s += timeout
        return found


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop on which an hour takes no time."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


class PureMesh:
    """Judges calls as the chain does, and hands them straight to their target."""

    def __init__(self, scenario: Scenario, workflow: str) -> None:
        ports = dict.fromkeys(("", *scenario.agents), 9)
        one = scenario.model_copy(update={"sidecars": 1})
        self._policy = parse([DocumentFile("policy.yaml", document(one, 0, ports, []).encode())])
        self._passes_context = scenario.context == "passed"
        self._workflow = workflow
        self._hop_limit = HopLimit()
        self._turns = Turns(sleep=asyncio.sleep)
        self._background: set[asyncio.Task[bool]] = set()

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def loop_begins(self) -> None:
        return

    async def settled(self) -> None:
        """Wait for all that was only forwarded."""
        while self._background:
            await self._background.pop()

    async def send(self, actor: Actor, said: Said, handle: Handle) -> None:
        """See `Mesh.send`."""
        call = self._call(actor, said)
        try:
            self._hop_limit.admit(call)
            ticket = await self._admitted(call, said)
        except Refused as refused:
            said.refusal = refusal(refused.reason.value, refused.message)
            return
        if call.heard_by is not None and call.body is None:
            call.heard_by.hear(_wired(said, said.body or b""))
        said.reached = True
        await asyncio.sleep(said.takes_s)
        is_done = True
        if call.target.kind.value == "agent":
            is_done = await self._worked(Actor(said.target, _path(call)), said, handle)
        if ticket is not None:
            self._answer(call, said, ticket, is_done=is_done)

    def _call(self, actor: Actor, said: Said) -> Call:
        now_s = asyncio.get_running_loop().time()
        fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(said.body or b""))]
        upstream = self._policy.upstreams[said.target.removeprefix(TOOL)]
        call = Call(said.id, Direction.OUTBOUND, said.method, said.path, "", fields, now_s, WALL_S + now_s)
        call.policy, call.upstream = self._policy, upstream
        call.span = Span(False)
        call.dialect = GRPC if said.via == "grpc" else DIALECTS[upstream.dialect]
        call.target = Target(upstream.kind, upstream.name)
        operation = f"{said.method} {said.path}"
        if said.target == LLM:
            assert said.body is not None
            call.body = said.body
            call.ask = call.dialect.read("chat", said.body)
            call.target = Target(upstream.kind, upstream.name, call.ask.model)
            operation = "chat"
        elif said.via in ("mcp", "a2a") and said.via in DIALECTS:
            _fill(call, said)
        if self._passes_context:
            call.context = Context(
                self._workflow, actor.agent, len(actor.path), actor.path, account=f"workflow/{self._workflow}"
            )
        else:
            call.context = Context("", LEAD, account=f"unattributed/{LEAD}")
        call.agent = call.context.agent
        call.plan = self._policy.plan(call.target, call.agent, operation)
        return call

    async def _admitted(self, call: Call, said: Said) -> Any:
        decision: Any = self._turns.admit(call)
        if isinstance(decision, NeedBody):
            call.body = _wired(said, said.body or b"")
            decision = self._turns.admit(call)
        return await decision.coroutine if isinstance(decision, Wait) else decision

    async def _worked(self, callee: Actor, said: Said, handle: Handle) -> bool:
        """Let the callee do what it is asked; return False where that was refused."""
        if said.is_forwarded:
            self._background.add(asyncio.get_running_loop().create_task(_quietly(handle, callee)))
            return True
        return await _quietly(handle, callee)

    @staticmethod
    def _answer(call: Call, said: Said, ticket: Any, *, is_done: bool) -> None:
        status, body = (said.status, said.answer) if is_done else (500, _NOT_DONE)
        usage = None
        if call.ask is not None:
            meter = call.dialect.meter(call.ask)
            event = meter.read_message(body)
            usage = meter.usage
            if status == 200 and hasattr(ticket, "on_event"):
                ticket.on_event(event)
        heard_by = getattr(call, "reply_heard_by", None)
        if heard_by is not None:
            heard_by.hear(_wired(said, body))
        now_s = asyncio.get_running_loop().time()
        verdict = classify(status, Fault.NONE, True)
        outcome = Outcome(
            verdict, now_s, status=status, is_forwarded=True, is_answered=True, is_terminal=True, usage=usage
        )
        ticket.settle(outcome)


def _fill(call: Call, said: Said) -> None:
    """Read JSON-RPC as the proxy does."""
    read: Any = call
    read.rpc = words.Rpc(read.dialect.name)
    read.dialect.fill(read.rpc, said.body, read.headers)
    read.body = said.body


def _wired(said: Said, body: bytes) -> bytes:
    """Return a body as its wire carries it."""
    return b"\0" + len(body).to_bytes(4, "big") + body if said.via == "grpc" else body


def _path(call: Call) -> tuple[str, ...]:
    assert call.context is not None
    return (*call.context.path, call.context.agent)


async def _quietly(handle: Handle, callee: Actor) -> bool:
    try:
        await handle(callee)
    except StoppedError:
        return False
    return True


def play(scenario: Scenario, seed: int) -> Record:
    """Play a scenario once."""

    async def whole() -> Record:
        workflow = f"loop-{seed}"
        mesh = PureMesh(scenario, workflow)
        player = Player(scenario, seed, mesh, workflow)
        await player.play()
        await mesh.settled()
        return player.record

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(whole())
