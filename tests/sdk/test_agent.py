"""Agents that call one another through a real sidecar."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from meshd.filters.minting import mint_run
from meshd.mesh_key import MeshKeys
from meshd_sdk import Agent, CallFailed, Ctx, Reply, current
from meshd_sdk.errors import (
    BudgetExhausted,
    ContextInvalid,
    Malformed,
    NotAllowed,
    Refused,
    TimedOut,
    UnknownTarget,
)
from meshd_sdk.sync import Ctx as SyncCtx
from tests.end_to_end.sidecar import fetch
from tests.sdk.conftest import PATIENCE_S, soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.end_to_end.sidecar import Sidecar

    Make = Callable[..., Agent]


@dataclasses.dataclass
class Answer:
    title: str
    score: float


async def test_a_tool_is_called_with_arguments_and_its_context(make: Make) -> None:
    asker, finder = make("asker1"), make("finder1")

    @finder.tool(read_only=True)
    async def search(ctx: Ctx, query: str, limit: int = 2) -> list[Answer]:
        """Find."""
        assert current() is ctx.current
        assert (ctx.workflow, ctx.agent, ctx.operation) == ("tides-1", "finder1", "search")
        assert (ctx.hops, ctx.path) == (1, ("asker1",))
        assert ctx.headers()["x-meshd-context"] == ctx.token
        return [Answer(query, at / 2) for at in range(limit)]

    async with asker, finder, asker.workflow("tides-1", tokens=1000, timeout=60) as ctx:
        assert current() is ctx.current
        assert ctx.deadline is not None
        found = await ctx.call("finder1/search", {"query": "tides"})
        assert found == [{"title": "tides", "score": 0.0}, {"title": "tides", "score": 0.5}]
        assert await ctx.call("finder1", {"query": "a", "limit": 0}, operation="search") == []
    assert current() is None


async def test_the_own_entrance_takes_whatever_names_no_tool(make: Make) -> None:
    asker, other = make("asker2"), make("other2")

    @other.serve
    async def entrance(ctx: Ctx, payload: Answer | None) -> Any:
        return [ctx.operation, payload]

    async with asker, other, asker.workflow() as ctx:
        assert await ctx.call("other2") == ["", None]
        assert await ctx.call("other2", Answer("a", 1)) == ["", {"title": "a", "score": 1.0}]
        assert await ctx.call("other2/some/path") == ["some/path", None]
        with pytest.raises(CallFailed, match="the payload does not fit") as caught:
            await ctx.call("other2", {"title": 3})
        assert caught.value.code == "INVALID_ARGUMENT"


async def test_a_plain_handler_runs_in_a_thread_with_the_context(make: Make) -> None:
    asker, plain = make("asker3"), make("plain3")
    here = threading.get_ident()

    @plain.tool
    def inner() -> str:
        return "inner"

    @plain.tool
    def work(ctx: SyncCtx, n: int) -> Any:
        assert isinstance(ctx, SyncCtx)
        assert threading.get_ident() != here
        now = current()
        assert now is not None
        assert now.token == ctx.token
        ctx.note("at work")
        with ctx.step("think") as step:
            step.note("hm")
        return [n, ctx.workflow, ctx.call("plain3/inner"), list(ctx.stream("plain3/numbers", {"n": 2}))]

    @plain.tool
    def numbers(n: int) -> Iterator[int]:
        yield from range(n)

    async with asker, plain, asker.workflow("plain-3") as ctx:
        assert await ctx.call("plain3/work", {"n": 4}) == [4, "plain-3", "inner", [0, 1]]


async def test_replies_come_in_pieces_while_they_are_made(make: Make) -> None:
    asker, talker = make("asker4"), make("talker4")
    go_on = asyncio.Event()

    @talker.tool
    async def count(n: int) -> AsyncIterator[Any]:
        for at in range(n):
            yield {"at": at, "text": "a\nb"}
            await go_on.wait()

    @talker.tool
    async def raw() -> AsyncIterator[bytes]:
        yield b"ab"
        yield b"cd"

    @talker.tool
    async def fails_late() -> AsyncIterator[int]:
        yield 1
        raise CallFailed("no more", code="ABORTED")

    async with asker, talker, asker.workflow() as ctx:
        seen = []
        async for piece in ctx.stream("talker4/count", {"n": 3}):
            seen.append(piece["at"])
            go_on.set()  # the first has come before the second is made
        assert seen == [0, 1, 2]
        assert len(await ctx.call("talker4/count", {"n": 3})) == 3
        assert await ctx.call("talker4/count", {"n": 0}) == []
        assert b"".join([piece async for piece in ctx.stream("talker4/raw")]) == b"abcd"
        whole = await ctx.call("talker4/raw")
        assert isinstance(whole, Reply)
        assert (whole.payload, whole.content_type) == (b"abcd", "application/octet-stream")
        assert whole.call_id
        got: list[int] = []
        with pytest.raises(CallFailed):
            await _collect(ctx.stream("talker4/fails_late"), got)
        assert got == [1]


async def _collect(pieces: AsyncIterator[Any], into: list[Any]) -> None:
    async for piece in pieces:
        into.append(piece)  # noqa: PERF401 - what came before the error counts


async def test_a_stream_that_is_left_ends_its_handler(make: Make) -> None:
    asker, talker = make("asker5"), make("talker5")
    ended = asyncio.Event()

    @talker.tool
    async def forever() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with asker, talker, asker.workflow() as ctx:
        async with contextlib.aclosing(ctx.stream("talker5/forever")) as pieces:
            async for _ in pieces:
                break
        await asyncio.wait_for(ended.wait(), 20)


async def test_what_goes_wrong_has_a_type_and_words(make: Make) -> None:
    asker, other = make("asker6"), make("other6")

    @other.tool
    async def add(a: int) -> int:
        return a

    @other.tool
    async def broken() -> None:
        raise ZeroDivisionError("by zero")

    @other.tool
    async def says_no() -> None:
        raise CallFailed("there is no such page", code="NOT_FOUND", metadata={"page": "7"})

    async with asker, other, asker.workflow() as ctx:
        with pytest.raises(CallFailed, match='a: expected an integer, got "x"') as caught:
            await ctx.call("other6/add", {"a": "x"})
        assert caught.value.code == "INVALID_ARGUMENT"
        with pytest.raises(CallFailed, match="ZeroDivisionError: by zero") as caught:
            await ctx.call("other6/broken")
        assert caught.value.code == "INTERNAL"
        with pytest.raises(CallFailed, match="there is no such page") as caught:
            await ctx.call("other6/says_no")
        assert caught.value.code == "NOT_FOUND"
        assert caught.value.metadata["page"] == "7"
        with pytest.raises(CallFailed, match="has no tool 'sub'; there are: add, broken, says_no"):
            await ctx.call("other6/sub")
        with pytest.raises(CallFailed, match=r"names no tool \(@agent.serve would\); its tools are: add") as caught:
            await ctx.call("other6")
        assert caught.value.code == "NOT_FOUND"
        form = "application/x-www-form-urlencoded"
        with pytest.raises(CallFailed, match=f"not {form}: send them as application/json"):
            await ctx.call("other6/add", b'{"a": 1}', content_type=form)
        with pytest.raises(UnknownTarget, match="nobody6") as refused:
            await ctx.call("nobody6")
        assert refused.value.reason == "unknown_target"


@pytest.mark.parametrize("target", ["", "/search", "a b", "x" * 500, "ü"])
async def test_a_target_that_is_none_is_said_to_be(make: Make, target: str) -> None:
    async with make("asker7") as asker:
        with pytest.raises((ValueError, Refused)):
            await asker.ctx.call(target)


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
async def test_a_timeout_that_is_none_is_said_to_be(make: Make, timeout: float) -> None:
    async with make("asker8") as asker:
        with pytest.raises(ValueError, match="timeout"):
            await asker.ctx.call("x", timeout=timeout)
        with pytest.raises(ValueError, match="tokens"):
            await asker.ctx.call("x", delegate=0)


async def test_a_call_that_takes_too_long_ends_on_both_sides(make: Make) -> None:
    asker, slow = make("asker9"), make("slow9")
    ended = asyncio.Event()

    @slow.serve
    async def sleep() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with asker, slow, asker.workflow() as ctx:
        with pytest.raises((TimedOut, Refused)) as caught:
            await ctx.call("slow9", timeout=0.2)
        assert caught.value.code == "DEADLINE_EXCEEDED"
        await asyncio.wait_for(ended.wait(), 20)


async def test_a_call_that_nobody_waits_for_is_cancelled(make: Make) -> None:
    asker, slow = make("asker10"), make("slow10")
    began, ended = asyncio.Event(), asyncio.Event()

    @slow.serve
    async def sleep() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with asker, slow, asker.workflow() as ctx:
        task = asyncio.create_task(ctx.call("slow10"))
        await asyncio.wait_for(began.wait(), 20)
        task.cancel()
        await asyncio.wait_for(ended.wait(), 20)
        session: Any = asker._session
        await soon(lambda: session.state.under_way == 0)
        assert not session._operations


async def test_far_more_calls_than_credit_all_come_back(make: Make) -> None:
    asker, other = make("asker11"), make("other11", credit=4)
    running = most = 0

    @other.tool
    async def square(n: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return n * n

    async with asker, other, asker.workflow() as ctx:
        found = await asyncio.gather(*[ctx.call("other11/square", {"n": n}) for n in range(300)])
    assert found == [n * n for n in range(300)]
    assert most <= 4


async def test_large_replies_come_whole_and_too_large_payloads_do_not_go(make: Make) -> None:
    asker, other = make("asker12"), make("other12")

    @other.tool
    async def large(mebibytes: int) -> bytes:
        return b"x" * (mebibytes * 2**20)

    @other.serve
    async def measure(payload: Reply) -> int:
        return len(payload.payload)

    async with asker, other, asker.workflow() as ctx:
        assert len((await ctx.call("other12/large", {"mebibytes": 9})).payload) == 9 * 2**20
        assert await ctx.call("other12", b"y" * (3 * 2**20)) == 3 * 2**20
        with pytest.raises(CallFailed, match="are a JSON object, not application/octet-stream"):
            await ctx.call("other12/large", b"y")
        with pytest.raises(Malformed, match="4,128,768 are the most") as caught:
            await ctx.call("other12", b"y" * (4 * 2**20))
        assert caught.value.reason == "too_large"


async def test_a_part_of_the_budget_pays_for_what_is_called_within_it(make: Make) -> None:
    asker, other = make("asker13"), make("other13")

    @other.serve
    async def spend(ctx: Ctx, tokens: int) -> str:
        await ctx.report_usage("local", tokens)
        return ctx.account

    async with asker, other, asker.workflow("part-13", tokens=1000) as ctx:
        (before,) = await ctx.balance()
        assert before.tokens is not None
        assert (before.tokens.total, before.tokens.available) == (1000, 1000)
        async with ctx.delegate(400) as part:
            now = current()
            assert now is not None
            assert now.token == part.token != ctx.token
            (held,) = await part.balance()
            assert held.tokens is not None
            assert held.tokens.total == 400
            # What is called on the outer one, within the block, is the part's too.
            assert await ctx.call("other13", 30) == part.account
        assert await ctx.call("other13", 5) == ctx.account
        (after,) = await ctx.balance()
        assert after.tokens is not None
        assert after.tokens.available == 965
        with pytest.raises(BudgetExhausted, match="1,000 tokens"):
            async with ctx.delegate(1_000_000):
                pass
        assert await ctx.call("other13", 7, delegate=100) != ctx.account


async def test_usage_is_charged_once_for_one_report(make: Make) -> None:
    async with make("asker14") as asker, asker.workflow("usage-14", tokens=100) as ctx:
        assert await ctx.report_usage("local", 10, 5, report_id="r1") == (15, False)
        assert await ctx.report_usage("local", 10, 5, report_id="r1") == (0, False)
        assert (await ctx.report_usage("local", 200)).is_exhausted


async def test_steps_decisions_and_own_tools_are_in_the_trace(make: Make, api: str) -> None:
    agent = make("thinker15")

    @agent.tool
    async def double(n: int) -> int:
        return 2 * n

    @agent.tool
    def triple(n: int) -> int:
        return 3 * n

    async with agent, agent.workflow("trace-15") as ctx:
        async with ctx.step("plan", model="small") as outer:
            outer.decide("where", "web", options=["web", "news"], rationale="fresher")
            async with ctx.step("inner") as inner:
                inner.summarize("done")
                assert await double(4) == 8
                assert await asyncio.to_thread(triple, 3) == 9
        with pytest.raises(KeyError):
            async with ctx.step("fails"):
                raise KeyError("x")
        await ctx.note("x" * 5000, where="here")
        await ctx.decision("go", "yes")
        with pytest.raises(ValueError, match="32 attributes"):
            await ctx.note("n", **{f"a{at}": at for at in range(33)})
        entries = await _trace(api, ctx.token, 8)
    by_name = {entry.step.name: entry for entry in entries if entry.WhichOneof("entry") == "step"}
    assert set(by_name) == {"plan", "inner", "fails"}
    assert by_name["plan"].attributes["model"] == "small"
    assert by_name["inner"].parent_id == by_name["plan"].id
    assert by_name["inner"].step.summary == "done"
    assert by_name["fails"].error == "KeyError"
    tools = {entry.tool_call.tool: entry for entry in entries if entry.WhichOneof("entry") == "tool_call"}
    assert set(tools) == {"double", "triple"}
    assert all(entry.parent_id == by_name["inner"].id for entry in tools.values())
    assert len(tools["double"].tool_call.arguments_digest) == 64
    decided = [entry.decision for entry in entries if entry.WhichOneof("entry") == "decision"]
    assert {one.choice for one in decided} == {"web", "yes"}
    (note,) = [entry.note for entry in entries if entry.WhichOneof("entry") == "note"]
    assert len(note.text) == 4096


async def _trace(api: str, token: str, count: int) -> list[Any]:
    import grpc.aio

    from meshd_sdk.v1 import trace_pb2, trace_pb2_grpc

    async with grpc.aio.insecure_channel(api) as channel:
        stub: Any = trace_pb2_grpc.TraceServiceStub(channel)
        entries: list[Any] = []
        while len(entries) < count:
            entries = list((await stub.List(trace_pb2.ListRequest(token=token))).entries)
        return entries


async def test_what_is_too_long_for_the_trace_is_cut_and_not_lost(make: Make, api: str) -> None:
    async with make("thinker25") as agent, agent.workflow("trace-25") as ctx:
        async with ctx.step("read\nand write", **{"k" * 100: "v" * 5000}) as step:
            step.decide("q" * 5000, "c" * 5000, options=["o" * 5000] * 40, rationale="r" * 5000)
            step.note("half of a pair: \ud83d", more="\ud83d")
        async with ctx.step(""):
            pass
        entries = {entry.WhichOneof("entry"): entry for entry in (await _trace(api, ctx.token, 4))[:3]}
    assert entries["step"].step.name == "read?and write"
    assert {key: len(value) for key, value in entries["step"].attributes.items()} == {"k" * 61 + "...": 1024}
    decision = entries["decision"].decision
    assert [len(decision.question), len(decision.choice), len(decision.rationale)] == [1024, 1024, 4096]
    assert [len(option) for option in decision.options] == [1024] * 32
    assert (entries["note"].note.text, entries["note"].attributes["more"]) == ("half of a pair: ?", "?")


async def test_what_is_more_than_a_frame_is_split_or_refused_and_harms_no_session(make: Make, api: str) -> None:
    async with make("thinker26") as agent, agent.workflow("trace-26") as ctx:
        assert agent._session is not None
        channel = agent._session._channel
        async with ctx.step("much") as step:
            for _ in range(300):
                step.note("\U0001f600" * 4096)
        with pytest.raises(Malformed, match="bytes"):
            await ctx.publish("sdk.much", b"x" * 4_100_000, extensions={f"x{at}": "y" * 4000 for at in range(60)})
        await ctx.note("after")
        async with asyncio.timeout(PATIENCE_S):
            while not any(entry.note.text == "after" for entry in await _trace(api, ctx.token, 1)):
                await asyncio.sleep(0.01)
        assert agent._session._channel is channel, "one stream served it all"


async def test_a_token_that_does_not_verify_is_refused(make: Make, api: str) -> None:
    from meshd_sdk.current import Current
    from meshd_sdk.link import Given

    async with make("asker16") as asker:
        forged = Ctx(asker._link(), Given(Current("AQ" + "x" * 60)), agent="asker16")
        with pytest.raises(ContextInvalid):
            await forged.call("anything")
        with pytest.raises(ContextInvalid):
            await forged.balance()
    with pytest.raises(ContextInvalid):
        async with make("asker16", environ={"MESHD_CONTEXT": "AQ" + "x" * 60}):
            pass


async def test_the_context_that_the_program_was_started_in_is_the_root(make: Make) -> None:
    async with make("starter17") as starter, starter.workflow("root-17", tokens=500) as root:
        child = make("starter17", environ={"MESHD_CONTEXT": root.token})
        async with child:
            assert child.ctx.workflow == "root-17"
            async with child.workflow("not-read") as ctx:
                assert (ctx.workflow, ctx.token) == ("root-17", root.token)
            async with child.workflow(tokens=100) as ctx:
                assert (ctx.workflow, ctx.ceiling_tokens) == ("root-17", 100)


async def test_a_root_that_was_issued_to_another_agent_is_taken_up_under_the_own_name(make: Make) -> None:
    async with make("starter22") as starter, starter.workflow("root-22", tokens=500, timeout=100) as root:
        child = make("child22", environ={"MESHD_CONTEXT": root.token})

        @child.serve
        async def who(ctx: Ctx) -> Any:
            return [ctx.workflow, ctx.path, ctx.ceiling_tokens]

        async with child:
            assert child.ctx.agent == "child22"
            assert child.ctx.token != root.token
            assert (child.ctx.workflow, child.ctx.ceiling_tokens) == ("root-22", 500)
            assert child.ctx.deadline is not None
            assert root.deadline is not None
            assert child.ctx.deadline <= root.deadline + 0.1
            assert await child.ctx.call("child22") == ["root-22", ["child22"], 500]


async def test_a_root_with_a_ceiling_in_dollars_alone_is_taken_up_too(shared: Sidecar, make: Make) -> None:
    """As `meshd exec --dollars 5` begins a run."""
    keys = MeshKeys(shared.home / "mesh.key")
    token = mint_run(
        keys, workflow="root-23", agent="agent", wall_s=time.time(), nonce=b"8 bytes.", ceiling_microdollars=5_000_000,
        is_address=False,
    )  # fmt: skip
    async with make("child23", environ={"MESHD_CONTEXT": token}) as child:
        assert (child.ctx.agent, child.ctx.workflow) == ("child23", "root-23")
        assert (child.ctx.ceiling_tokens, child._root.ceiling_microdollars) == (None, 5_000_000)


async def test_a_handler_that_something_of_its_own_cancels_fails_and_keeps_nobody_waiting(make: Make) -> None:
    asker, worker = make("asker24"), make("worker24")
    attempts: list[int] = []
    done = asyncio.Event()

    async def end_early() -> None:
        task = asyncio.create_task(asyncio.sleep(3600))
        task.cancel()
        await task

    @worker.tool
    async def whole() -> None:
        await end_early()

    @worker.tool
    async def stream() -> AsyncIterator[str]:
        yield "one"
        await end_early()

    @worker.on("sdk.cancelled24")
    async def heard(ctx: Ctx) -> None:
        assert ctx.event is not None
        attempts.append(ctx.event.attempt)
        if len(attempts) == 1:
            await end_early()
        done.set()

    async with worker, asker:
        with pytest.raises(CallFailed, match="CancelledError"):
            await asyncio.wait_for(asker.ctx.call("worker24/whole"), PATIENCE_S)
        with pytest.raises(CallFailed):
            await asyncio.wait_for(asker.ctx.call("worker24/stream"), PATIENCE_S)
        await asker.ctx.publish("sdk.cancelled24", 1)
        await asyncio.wait_for(done.wait(), PATIENCE_S)
    assert attempts == [1, 2]


async def test_whatever_a_handler_says_of_its_failure_somebody_hears_of_it(make: Make) -> None:
    asker, worker = make("asker27"), make("worker27")
    attempts: list[int] = []

    @worker.tool
    async def half() -> None:
        raise ValueError("half of a pair: \ud83d")

    @worker.tool
    async def odd() -> None:
        raise CallFailed("no", metadata={"a": 1})  # type: ignore[dict-item]

    @worker.on("sdk.odd27")
    async def heard(ctx: Ctx) -> None:
        assert ctx.event is not None
        attempts.append(ctx.event.attempt)
        if len(attempts) == 1:
            raise ValueError("half of a pair: \ud83d")

    async with worker, asker:
        with pytest.raises(CallFailed, match=r"half of a pair: \?"):
            await asyncio.wait_for(asker.ctx.call("worker27/half"), PATIENCE_S)
        with pytest.raises(CallFailed):
            await asyncio.wait_for(asker.ctx.call("worker27/odd"), PATIENCE_S)
        await asker.ctx.publish("sdk.odd27", 1)
        await soon(lambda: len(attempts) == 2)
    assert attempts == [1, 2]


async def test_an_agent_without_a_workflow_can_call_too(make: Make) -> None:
    asker, other = make("asker18"), make("other18")

    @other.serve
    async def who(ctx: Ctx) -> str:
        return ctx.agent

    async with asker, other:
        assert asker.ctx.token == ""
        assert await asker.ctx.call("other18") == "other18"


async def test_over_the_socket(shared: Sidecar, make: Make) -> None:
    assert shared.running is not None
    async with make("asker19", api=f"unix:{shared.running['api_socket']}") as agent:
        assert agent.is_governed
        assert (await agent.ctx.publish("sdk.socket", 1)).sequence


async def test_what_is_declared_late_or_twice_is_refused(make: Make) -> None:
    agent = make("late20")

    @agent.tool
    async def one() -> None: ...

    with pytest.raises(ValueError, match="has a tool 'one' already"):
        agent.tool(one)
    agent.serve(one)
    with pytest.raises(ValueError, match="has an entrance already"):
        agent.serve(one)
    with pytest.raises(RuntimeError, match="not connected"):
        agent.ctx  # noqa: B018 - the property raises
    async with agent:
        with pytest.raises(RuntimeError, match="before it connects"):
            agent.on("x")(one)
        with pytest.raises(RuntimeError, match="connected already"):
            async with agent:
                pass
    async with agent:  # and again
        assert agent.is_governed


async def test_a_name_of_the_policy_is_told_to_its_owner(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    async with make("openai"):
        assert any("openai" in record.getMessage() for record in caplog.records)


def test_all_the_errors_are_exported() -> None:
    assert issubclass(NotAllowed, Refused)


async def test_a_tool_is_called_over_plain_http_too(make: Make, shared: Sidecar) -> None:
    other = make("web21")

    @other.tool
    async def add(ctx: Ctx, a: int, b: int = 1) -> Any:
        return {"sum": a + b, "workflow": ctx.workflow}

    json = {"content-type": "application/json"}
    async with other:
        for body, status, words in (
            (b'{"a": 2}', 200, '{"sum":3,"workflow":"web-21"}'),
            (b'{"a": "x"}', 400, "expected an integer"),
            (b"{", 400, "says it is JSON and is not"),
            (b"[" * 100_000, 400, "says it is JSON and is not"),
            (b"\xff\xfe", 400, "says it is JSON and is not"),
            (b'{"a": NaN}', 400, "says it is JSON and is not"),
            (b"", 400, "a: is missing"),
        ):
            found = await asyncio.to_thread(
                fetch, f"{shared.url}/web21/add", "POST", json | {"x-meshd-workflow": "web-21"}, body
            )
            assert found[0] == status, found
            assert words in found[1]
