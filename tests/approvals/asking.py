"""Questions, desks with a clock of their own, and keys for the tests of approvals."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from meshd.approvals.desk import Desk
from meshd.approvals.keys import hash_of, new_key
from meshd.approvals.question import Question
from meshd.approvals.record import Approval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.engines.port import Change, Record, Store

KEYS = {name: new_key() for name in ("ana", "ben", "cai", "ola")}
NOW_S = 1_790_000_000.0


@dataclass
class Rules:
    """A policy, as far as the desk reads it."""

    owner: str = "ola"
    agent: str = "researcher"
    approvers: dict[str, str] = field(default_factory=lambda: {name: hash_of(key) for name, key in KEYS.items()})


class Clock:
    def __init__(self) -> None:
        self.now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


QUESTION = Question(
    workflow="w1",
    agent="researcher",
    kind="tool",
    target="billing",
    operation="POST /invoices",
    arguments=b'{"amount":5}',
    approvers=("ana", "ben", "cai"),
    owner="ola",
    lasts_s=600.0,
    rule="money",
    why="POST may change something",
    call="c-1",
)


def question(**changes: Any) -> Question:
    return replace(QUESTION, **changes)


def desk(store: Store, *, rules: Rules | None = None, clock: Clock | None = None, **more: Any) -> Desk:
    """Return a desk over a store."""
    known = rules or Rules()
    return Desk(lambda: store, lambda: known, clock=clock or Clock(), **more)


def approval(**changes: Any) -> Approval:
    fields: dict[str, Any] = {
        "id": "0000-0000-0001", "digest": "d" * 64, "asked_s": NOW_S, "expires_s": NOW_S + 600, "lasts_s": 600.0,
        "workflow": "w1", "agent": "researcher", "kind": "tool", "target": "billing", "operation": "POST /x",
        "approvers": ("ana", "ben", "cai"), "owner": "ola", "rule": "money",
    }  # fmt: skip
    return Approval(**(fields | changes))


class Crash(BaseException):
    """The process ends here."""


class Crashing:
    """A store whose process ends before, or right after, its n-th operation: what was written by then stays."""

    def __init__(self, store: Store, at: int, *, is_after: bool) -> None:
        self._store = store
        self._left = at
        self._is_after = is_after
        self.name, self.abilities, self.caution = store.name, store.abilities, store.caution
        self.is_over = False

    async def _do(self, work: Any) -> Any:
        if self.is_over:
            work.close()
            raise Crash
        self._left -= 1
        if self._left < 0 and not self._is_after:
            work.close()
            self.is_over = True
            raise Crash
        result = await work
        if self._left < 0:
            self.is_over = True
            raise Crash
        return result

    async def read(self, space: str, keys: Sequence[str]) -> dict[str, Record]:
        found: dict[str, Record] = await self._do(self._store.read(space, keys))
        return found

    async def write(self, changes: Sequence[Change]) -> list[bool]:
        made: list[bool] = await self._do(self._store.write(changes))
        return made

    async def take(self, space: str, key: str, amount: int, ceiling: int) -> int | None:
        raise NotImplementedError

    async def keys(self, space: str, after: str = "", limit: int = 1000) -> list[str]:
        return await self._store.keys(space, after, limit)

    async def watch(self, space: str, changed: Any) -> Any:
        return await self._store.watch(space, changed)

    async def close(self) -> None:
        pass
