"""A scenario against the detector alone: no process and no socket, and a clock that jumps to what is waited for."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, Final

from meshd.turns.turn import AGENT, LOOP, MAX_TURNS, TOOL, WAIT, Limits, Turn
from meshd.turns.turn import LLM as MODEL
from meshd.turns.workflow import Workflow
from tests.loops.playing import Actor, Player, Record, Refusal, StoppedError
from tests.loops.reading import LEAD, LLM, Scenario

if TYPE_CHECKING:
    from tests.loops.playing import Handle, Said

SAMPLE_BYTES: Final = 4096
"""Of a payload and of an answer that are looked at, as `limits.turns.sample` has it."""
HOPS_MAX: Final = 16
"""As the policy's default has it; the hop limit is one of the things that stop a loop."""
_STALE_SHARE: Final = 0.25
_FAILED: Final = frozenset({429, 500, 502, 503, 504, 529})


class _Jumping(selectors.DefaultSelector):
    """Waits for nothing: whoever sleeps is woken at once, and the clock says that the time has passed."""

    now_s = 0.0

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
    """Judges calls as the filter does, and hands them straight to their target."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._workflow = Workflow()
        self._limits = Limits(stale_tokens=int(scenario.budget * _STALE_SHARE))
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
        is_passed_on = self._scenario.context == "passed"
        source = actor.agent if is_passed_on else LEAD
        path = actor.path if is_passed_on else ()
        is_agent = said.target != LLM and not said.target.startswith("tool.")
        kind = AGENT if is_agent else MODEL if said.target == LLM else TOOL
        if is_agent and len(path) >= HOPS_MAX:
            said.refusal = Refusal("hop_limit")
            return
        now_s = asyncio.get_running_loop().time()
        turn = Turn(
            source, said.target.removeprefix("tool."), kind, f"{said.method} {said.path}",
            sampled(said.body or said.path.encode()), path, now_s, is_read_only(said), rounds=rounds_of(said),
            is_many=not is_passed_on,
        )  # fmt: skip
        judged = self._workflow.judge(turn, self._limits)
        if judged.verdict in (LOOP, MAX_TURNS):
            self._workflow.withdraw(turn)
            said.refusal = Refusal(judged.verdict, judged.detector)
            return
        if judged.verdict == WAIT:
            await asyncio.sleep(judged.wait_s)
        said.reached = True
        await asyncio.sleep(said.takes_s)
        ok = True
        if is_agent:
            callee = Actor(said.target, (*path, source))
            if said.is_forwarded:
                self._background.add(asyncio.get_running_loop().create_task(self._quietly(handle, callee)))
            else:
                ok = await self._quietly(handle, callee)
        status = said.status if ok else 500
        answer = sampled(said.answer) if ok else b'{"error": "a call that I made was refused"}'
        self._workflow.answered(turn, answer, said.tokens, is_failed=status in _FAILED, status=status)

    @staticmethod
    async def _quietly(handle: Handle, callee: Actor) -> bool:
        try:
            await handle(callee)
        except StoppedError:
            return False
        return True


def sampled(payload: bytes) -> bytes:
    """Return the beginning and the end of a long payload."""
    half = SAMPLE_BYTES // 2
    return payload if len(payload) <= SAMPLE_BYTES else payload[:half] + payload[-half:]


def is_read_only(said: Said) -> bool:
    """Say whether a call only asks how something stands."""
    return said.method == "GET" or (
        said.via == "a2a" and said.path == "/" and b'"method":"tasks/get"' in (said.body or b"")
    )


def rounds_of(said: Said) -> int:
    """Say how often the history of a request to the model goes round."""
    return 0


def play(scenario: Scenario, seed: int) -> Record:
    """Play a scenario once."""

    async def whole() -> Record:
        mesh = PureMesh(scenario)
        player = Player(scenario, seed, mesh, f"loop-{seed}")
        await player.play()
        await mesh.settled()
        return player.record

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(whole())
