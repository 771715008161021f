"""Sidecars that share a store which loses and delays answers, a provider that counts, and callers that ask again.

What is real: the filters Idempotency and Forwarding with all that is behind them, and the ledger's epochs. What stands
in: the store's wire (faults are put in between), the provider, and the exchange, which here is one coroutine.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from meshd.call import Call, NeedBody, Reply, Wait
from meshd.claims.tape import spill_in
from meshd.engines.memory import MemoryStore
from meshd.engines.port import Ability, Change, Record, StoreClosed, StoreError
from meshd.filters.forwarding import Forwarding
from meshd.filters.idempotency import Idempotency
from meshd.ledger import Ledger
from meshd.ledger.desk import Desk
from meshd.outcome import Fault, Outcome, classify
from meshd.refusal import Reason, Refused
from tests.filters.calls import WALL_S, call, policy

PATIENCE_S = 400.0


class Wire:
    """The store as one run of one sidecar has it."""

    name = "memory"
    caution = ""

    def __init__(self, store: MemoryStore, chance: random.Random, faults: float, *, is_shared: bool) -> None:
        self.abilities = frozenset({Ability.SHARED}) if is_shared else frozenset()
        self._store = store
        self._chance = chance
        self.faults = faults
        """How likely it is that an answer is lost, before or after it did its work."""
        self.is_cut = False

    async def _pass(self, work: Any) -> Any:
        chance = self._chance
        await asyncio.sleep(chance.choice((0.0, 0.001, 0.01, 0.2)))
        if self.is_cut:
            # The process is dead; what it had sent may still arrive.
            if chance.random() < 0.5:
                await work()
            await asyncio.Event().wait()
        fault = chance.random()
        if fault < self.faults / 3:
            raise StoreError("the request was lost")
        if fault < 2 * self.faults / 3:
            # It arrives after whoever sent it was told that it had failed.
            asyncio.get_running_loop().call_later(chance.choice((0.1, 2.0, 12.0)), lambda: _start(work()))
            raise StoreError("the answer did not come in time")
        found = await work()
        await asyncio.sleep(chance.choice((0.0, 0.001, 0.01)))
        if fault < self.faults:
            raise StoreError("the answer was lost")
        return found

    async def read(self, space: str, keys: Sequence[str]) -> dict[str, Record]:
        found: dict[str, Record] = await self._pass(lambda: self._store.read(space, keys))
        return found

    async def write(self, changes: Sequence[Change]) -> list[bool]:
        made: list[bool] = await self._pass(lambda: self._store.write(changes))
        return made

    async def take(self, space: str, key: str, amount: int, ceiling: int) -> int | None:
        return await self._store.take(space, key, amount, ceiling)

    async def keys(self, space: str, after: str = "", limit: int = 1000) -> list[str]:
        found: list[str] = await self._pass(lambda: self._store.keys(space, after, limit))
        return found

    async def watch(self, space: str, changed: Any) -> Any:
        return await self._store.watch(space, changed)

    async def close(self) -> None:
        self.is_cut = True


_started: set[Any] = set()


def _start(coroutine: Any) -> None:
    task = asyncio.get_running_loop().create_task(coroutine)
    _started.add(task)
    task.add_done_callback(_started.discard)


class Provider:
    """Carries calls out, or does not, and answers, or does not."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.runs: Counter[str] = Counter()
        self.answers: dict[str, tuple[int, bytes]] = {}
        """By key: what was answered where a call was carried out."""
        self.doubts: set[str] = set()
        """Keys of which it left open whether a call was carried out."""

    async def ask(self, key: str) -> tuple[int, bytes, Fault, bool]:
        """Return status, body, fault and whether the answer came whole."""
        chance = self._chance
        await asyncio.sleep(chance.choice((0.0, 0.01, 1.0, 30.0)))
        sort = chance.random()
        if sort < 0.05:
            return 429, b"slow down", Fault.NONE, True
        if sort < 0.08:
            return 0, b"", Fault.CONNECT, False
        if sort < 0.14 and chance.random() < 0.5:
            self.doubts.add(key)
            return 0, b"", Fault.RESET, False
        self.runs[key] += 1
        body = chance.randbytes(chance.choice((0, 10, 3000, 70_000, 600_000)) if chance.random() < 0.1 else 40)
        status = 200 if sort > 0.2 else 422
        self.answers.setdefault(key, (status, body))
        await asyncio.sleep(chance.choice((0.0, 0.01, 1.0)))
        if sort < 0.17:
            self.doubts.add(key)
        if sort < 0.14:
            return 200, body[: len(body) // 2], Fault.RESET, False
        if sort < 0.17:
            return 503, b"oh", Fault.NONE, True
        return status, body, Fault.NONE, True


class Sidecar:
    """One sidecar over its runs: killed and started again, it has another epoch."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.epoch = 0
        self.tasks: set[asyncio.Task[Any]] = set()
        self.start()

    def start(self) -> None:
        world = self.world
        self.epoch += 1
        world.store._write(Change("holder", self.name, b'{"epoch":%d}' % self.epoch))  # as the ledger's start does
        self.wire = Wire(world.store, world.chance, world.faults, is_shared=world.is_shared)
        ledger = Ledger(Desk(self.wire), self.epoch, holder=self.name)
        self.filter = Idempotency(ledger, wall_clock=world.wall_s, nonce=world.nonce, spill=spill_in(None))
        self.forwarding = Forwarding()

    def kill(self) -> None:
        """What it has sent is sent; nothing more comes of it."""
        self.wire.is_cut = True
        book = self.filter.book
        book._is_closed = True
        for timer in book._timers.values():
            timer.cancel()
        for task in (*self.tasks, *book._tasks):
            task.cancel()
        self.tasks.clear()

    def take(self, key: str, payload: bytes = b"{}") -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(self._call(key, payload))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def _call(self, key: str, payload: bytes) -> tuple[str, bytes]:
        """Return how it ended for its caller: a word, and the body where there was one."""
        world = self.world
        now_s = asyncio.get_running_loop().time()
        one = call("billing", headers=[(b"idempotency-key", key.encode())], of=world.policy, now_s=now_s,
                   wall_s=world.wall_s(), path="/orders")  # fmt: skip
        one.id = world.nonce()
        one.agent = "researcher"
        one.plan = world.policy.plan(one.target, "researcher", "POST /orders")
        if world.chance.random() < 0.15:
            asyncio.get_running_loop().call_later(world.chance.choice((0.0, 0.5, 5.0)), hang_up, one)
        tickets: list[Any] = []
        outcome = Outcome(classify(0, Fault.CALLER_GONE, True), now_s, fault=Fault.CALLER_GONE)
        try:
            for each in (self.filter, self.forwarding):
                decision = await self._admit(each, one, payload)
                if isinstance(decision, Reply):
                    body = await whole(decision)
                    return ("broken off", b"") if body is None else (f"replayed {decision.status}", body)
                if decision is not None:
                    tickets.append(decision)
                elif each is self.filter:
                    return "gone", b""
                if each is self.filter and world.chance.random() < 0.1:
                    await asyncio.sleep(3.0)  # a person is asked
            claim = one.claim
            status, body, fault, is_whole = await world.provider.ask(key)
            if (status and fault is not Fault.RESET) or body:
                claim.tape.head(status, [(b"content-type", b"x")])
                half = len(body) // 2
                claim.tape.data(body[:half])
                claim.tape.data(body[half:])
                if is_whole:
                    claim.tape.end([])
            outcome = Outcome(classify(status, fault, True), world.loop_s(), status=status, fault=fault,
                              is_forwarded=fault is not Fault.CONNECT, is_terminal=True)  # fmt: skip
            return f"answered {status}", body
        except Refused as refused:
            return refused.reason.value, b""
        finally:
            for ticket in reversed(tickets):
                if not self.wire.is_cut:
                    ticket.settle(outcome)

    @staticmethod
    async def _admit(each: Any, one: Call, payload: bytes) -> Any:
        decision = each.admit(one)
        if isinstance(decision, NeedBody):
            one.body = payload
            decision = each.admit(one)
        return await decision.coroutine if isinstance(decision, Wait) else decision


async def whole(reply: Reply) -> bytes | None:
    """Read a reply as whoever sends it does; None where its rest cannot be read."""
    body, rest = reply.body, reply.rest
    if rest is not None:
        try:
            while piece := await rest.next():
                body += piece
        except StoreError:
            return None
        finally:
            rest.close()
    return body


def hang_up(one: Call) -> None:
    if one.on_gone is not None:
        one.on_gone()


class World:
    """One schedule."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        self.is_shared = chance.random() < 0.6
        self.faults = chance.choice((0.0, 0.0, 0.05, 0.3))
        self.store = MemoryStore()
        self.provider = Provider(chance)
        setting = chance.choice(("{}", "{}", "{in_flight: refuse}"))
        self.policy = POLICIES[setting]
        self._nonces = 0
        count = chance.choice((1, 2, 3)) if self.is_shared else 1
        self.sidecars = [Sidecar(self, f"h{number}") for number in range(count)]
        self.results: Counter[str] = Counter()
        self.problems: list[str] = []
        self.calls = 0
        self.crashes = 0

    def nonce(self) -> str:
        self._nonces += 1
        return f"n{self._nonces}"

    @staticmethod
    def loop_s() -> float:
        return asyncio.get_running_loop().time()

    def wall_s(self) -> float:
        return WALL_S + asyncio.get_running_loop().time()

    async def run(self) -> World:
        """Play it, hold what came of it to the rules, and return itself."""
        chance = self.chance
        keys = [f"k{number}" for number in range(chance.choice((1, 1, 2)))]
        waiting: list[tuple[str, asyncio.Task[Any]]] = []
        for _ in range(chance.randint(2, 7)):
            step = chance.random()
            if step < 0.7:
                key = chance.choice(keys)
                self.calls += 1
                waiting.append((key, chance.choice(self.sidecars).take(key)))
            elif step < 0.9:
                one = chance.choice(self.sidecars)
                self.crashes += 1
                one.kill()
                if chance.random() < 0.7:
                    await asyncio.sleep(chance.choice((0.0, 0.1, 40.0)))
                one.start()
            if chance.random() < 0.6:
                await asyncio.sleep(chance.choice((0.0, 0.005, 0.5, 2.0, 35.0)))
        await self._ended(waiting)
        await self._asked_once_more(keys)
        for one in self.sidecars:
            one.kill()
        return self

    async def _ended(self, waiting: list[tuple[str, asyncio.Task[Any]]]) -> None:
        for key, task in waiting:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    result, body = await asyncio.shield(task)
            except asyncio.CancelledError:
                result, body = "crashed", b""
            except TimeoutError:
                self.problems.append(f"{key}: a call never ended")
                continue
            self._judge(key, result, body)

    def _judge(self, key: str, result: str, body: bytes) -> None:
        self.results[result.partition(" ")[0]] += 1
        runs = self.provider.runs[key]
        if runs > 1:
            self.problems.append(f"{key}: carried out {runs} times")
        if result.startswith("replayed"):
            status, said = self.provider.answers.get(key, (0, b"nothing"))
            if result != f"replayed {status}" or body != said:
                self.problems.append(f"{key}: {result} with {len(body)} bytes, answered was {status} with {len(said)}")

    async def _asked_once_more(self, keys: list[str]) -> None:
        """When nothing fails any more and the dead are known to be dead, each key has a definite answer."""
        for one in self.sidecars:
            one.wire.faults = 0.0
        await asyncio.sleep(60.0)
        for key in keys:
            for _ in range(40):
                result, body = await self.sidecars[0].take(key)
                if result not in (Reason.KEY_IN_FLIGHT.value, "gone"):
                    break
                await asyncio.sleep(2.0)
            else:
                self.problems.append(f"{key}: still {result} when everything works again")
            if result == Reason.KEY_UNKNOWN.value and not self.crashes and key not in self.provider.doubts:
                self.problems.append(f"{key}: unknown, though nobody died and the provider left nothing open")
            self._judge(key, result, body)


POLICIES = {
    setting: policy(f"rules:\n  - {{name: once, match: {{}}, idempotency: {setting}}}\n")
    for setting in ("{}", "{in_flight: refuse}")
}
__all__ = ["StoreClosed", "World"]
