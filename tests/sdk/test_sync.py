"""The sync face: derived, typed, and as good as the async one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest

import meshd_sdk
from meshd_sdk import agent as async_agent
from meshd_sdk import ctx as async_ctx
from meshd_sdk.current import carrying, current
from meshd_sdk.errors import BudgetExhausted, CallFailed, SettingInvalid
from meshd_sdk.link import Given
from meshd_sdk.sync import Agent, Ctx
from tests.repository.tree import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator


TYPES = ROOT / "sdk" / "meshd_sdk" / "sync.pyi"


def test_the_types_are_fresh() -> None:
    check = subprocess.run([sys.executable, str(ROOT / "sdk" / "derive.py"), "--check"], check=False)
    assert check.returncode == 0, "run: python sdk/derive.py"


@pytest.mark.parametrize(
    ("source", "face", "without"),
    [(async_ctx.Ctx, Ctx, {"record", "record_later"}), (async_agent.Agent, Agent, {"run"})],
)
def test_every_public_name_has_its_face(source: type, face: type, without: set[str]) -> None:
    names = {name for name in vars(source) if not name.startswith("_")} - without
    made = async_agent.Agent("a", environ={})
    for one in (made, async_ctx.Ctx(cast("Any", None), Given())):
        if isinstance(one, source):  # what only an instance has the face would not have
            assert {name for name in vars(one) if not name.startswith("_")} <= {"loop"}
    assert names <= set(dir(face))
    text = TYPES.read_text()
    assert all(f"def {name}(" in text for name in names)


def test_a_program_without_async(api: str) -> None:
    agent = Agent("plain1", api=api, environ={})

    assert agent.name == "plain1"

    @agent.tool
    def add(ctx: Ctx, a: int, b: int = 1) -> int:
        assert (ctx.agent, ctx.operation, ctx.event, ctx.idempotency_key) == ("plain1", "add", None, "")
        ctx.note("adding")
        return a + b

    @agent.tool
    def count(n: int) -> Iterator[int]:
        yield from range(n)

    with agent, agent.workflow("plain-1", tokens=1000) as ctx:
        assert isinstance(ctx, Ctx)
        now = current()
        assert now is not None
        assert (now.token, ctx.workflow) == (ctx.token, "plain-1")
        assert ctx.call("plain1/add", {"a": 1}) == 2
        assert list(ctx.stream("plain1/count", {"n": 3})) == [0, 1, 2]
        for piece in ctx.stream("plain1/count", {"n": 3}):
            assert piece == 0
            break
        with ctx.delegate(100) as part:
            now = current()
            assert now is not None
            assert now.token == part.token != ctx.token
            (left,) = ctx.balance()
            assert left.account == part.account
            # A thread of the program's own has what is current too.
            seen: list[Any] = []
            thread = threading.Thread(target=carrying(lambda: seen.append(ctx.balance()[0].account)))
            thread.start()
            thread.join()
            assert seen == [part.account]
        with ctx.step("think") as step:
            step.note("x")
        with pytest.raises(KeyError, match="mine"), ctx.step("fails"):
            raise KeyError("mine")
        with pytest.raises(KeyboardInterrupt), ctx.step("interrupted"):
            raise KeyboardInterrupt
        with pytest.raises(BudgetExhausted), ctx.delegate(10**6):
            pass
        with pytest.raises(CallFailed, match="expected an integer"):
            ctx.call("plain1/add", {"a": "x"})
        assert ctx.publish("plain1.nobody", {"a": 1}).sequence
    assert meshd_sdk.current() is None


def test_nonsense_is_refused_as_it_is_there() -> None:
    with pytest.raises(SettingInvalid):
        Agent("a b", environ={})
    with pytest.raises(RuntimeError, match="not connected"):
        Agent("a", environ={}).ctx  # noqa: B018 - the property raises


def test_in_the_loop_it_does_not_wait_for_itself(api: str) -> None:
    agent = Agent("plain2", api=api, environ={})
    found: list[str] = []
    with agent:
        ctx = agent.ctx

        async def wrong() -> None:
            for use in (lambda: ctx.publish("x", 1), lambda: ctx.step("x").__enter__()):
                try:
                    use()
                except RuntimeError as error:
                    found.append(str(error))

        asyncio.run_coroutine_threadsafe(wrong(), ctx._of).result(20)
    assert len(found) == 2
    assert all("use `await` here" in one for one in found)
