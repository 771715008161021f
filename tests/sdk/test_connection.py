"""A session over connections that break, sidecars that end, and addresses where there is none."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest

from meshd_sdk import Agent, NoSidecar, channel
from meshd_sdk.errors import KeyConflict, SessionLost
from tests.ports import free_port
from tests.sdk.conftest import PATIENCE_S, soon

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.end_to_end.sidecar import Sidecar
    from tests.sdk.conftest import Link, Own

    Make = Callable[..., Agent]


def over(link: Link) -> dict[str, Any]:
    return {"api": f"127.0.0.1:{link.port}"}


async def test_what_is_published_while_the_connection_breaks_arrives_once(make: Make, own: Own, link: Link) -> None:
    publisher, listener, seen = make("publisher", **over(link)), make("listener", api=own.api), []

    @listener.on("broken.link")
    async def handle(event: Any) -> None:
        seen.append(event.data)

    async with publisher, listener, publisher.workflow() as ctx:

        async def publish(at: int) -> None:
            await ctx.publish("broken.link", at)

        tasks = [asyncio.create_task(publish(at)) for at in range(400)]
        for _ in range(12):
            await asyncio.sleep(0.01)
            link.cut()
        await asyncio.gather(*tasks)
        await soon(lambda: len(seen) >= 400)
        await ctx.publish("broken.link", "end")
        await soon(lambda: "end" in seen)
        assert publisher._session is not None
        assert publisher._session.era == 1  # it was one session all the while
    assert sorted(one for one in seen if one != "end") == list(range(400))


async def test_events_reach_a_handler_whose_connection_breaks(make: Make, own: Own, link: Link) -> None:
    publisher, listener, seen = make("publisher", api=own.api), make("listener", credit=2, **over(link)), []

    @listener.on("broken.link")
    async def handle(event: Any) -> None:
        await asyncio.sleep(0.002)
        seen.append(event.data)

    async with publisher, listener, publisher.workflow() as ctx:
        for at in range(150):
            await ctx.publish("broken.link", at)
            if at % 20 == 10:
                link.cut()
        await soon(lambda: len(seen) >= 150)
        await ctx.publish("broken.link", "end")
        await soon(lambda: "end" in seen)
    assert sorted(one for one in seen if one != "end") == list(range(150))


@pytest.mark.parametrize("side", ["caller", "callee"])
async def test_a_call_outlives_the_connection(make: Make, own: Own, link: Link, side: str) -> None:
    through, direct = over(link), {"api": own.api}
    caller = make("caller", **(through if side == "caller" else direct))
    callee = make("callee", **(through if side == "callee" else direct))
    began, go_on, count = asyncio.Event(), asyncio.Event(), 0

    @callee.serve
    async def work(payload: int) -> int:
        nonlocal count
        count += 1
        began.set()
        await go_on.wait()
        return payload + 1

    async with caller, callee, caller.workflow() as ctx:
        call = asyncio.create_task(ctx.call("callee", 1))
        await began.wait()
        link.cut()
        broken: Any = (caller if side == "caller" else callee)._session
        await soon(lambda: not broken._is_connected.is_set())
        go_on.set()
        assert await call == 2
        assert await asyncio.gather(*[ctx.call("callee", at) for at in range(200)]) == list(range(1, 201))
    assert count == 201


async def test_whoever_reads_that_it_is_gone_reads_that_it_is_back(make: Make, link: Link, caplog: Any) -> None:
    async with make("away", **over(link)) as agent:
        link.is_down = True
        link.cut()
        await soon(lambda: "no connection to meshd" in caplog.text)
        assert "again" not in caplog.text
        link.is_down = False
        await agent.ctx.publish("back.again", 1)
    assert caplog.text.count("connected to meshd again, and the session goes on") == 1


async def test_a_sidecar_that_was_killed_is_found_again(make: Make, own: Own, link: Link, caplog: Any) -> None:
    caller, callee, seen = make("caller", **over(link)), make("callee", api=own.api), []
    began, go_on = set[int](), asyncio.Event()

    @callee.serve
    async def work(payload: int) -> int:
        began.add(payload)
        await go_on.wait()
        return payload + 1

    @callee.on("after.restart")
    async def handle(event: Any) -> None:
        seen.append(event.data)

    async with caller, callee, caller.workflow("restarted") as ctx:
        lost = asyncio.create_task(ctx.call("callee", 1))
        keyed = asyncio.create_task(ctx.call("callee", 2, idempotency_key="k2"))
        await soon(lambda: began == {1, 2})
        link.is_down = True  # the caller comes back when the callee has: nobody would be there for its call
        own.kill()
        untaken = asyncio.create_task(ctx.call("callee", 3, idempotency_key="k3"))
        waiting = asyncio.create_task(ctx.publish("after.restart", "sent while it was away"))
        asked = asyncio.create_task(ctx.balance())
        await asyncio.to_thread(own.up)
        await _is_back(callee)
        link.is_down = False
        with pytest.raises(SessionLost, match="may or may not have been done") as caught:
            await lost
        assert caught.value.code == "UNAVAILABLE"
        with pytest.raises(KeyConflict, match="may have been carried out"):  # its claim outlived the sidecar
            await keyed
        go_on.set()
        assert await untaken == 4
        assert (await waiting).sequence
        assert isinstance(await asked, list)
        await soon(lambda: seen == ["sent while it was away"])
        assert await ctx.call("callee", 4) == 5
    assert any("forgotten" in record.getMessage() for record in caplog.records)


async def test_what_was_acknowledged_is_there_after_a_kill(make: Make, own: Own) -> None:
    seen: list[int] = []
    async with make("publisher", api=own.api) as publisher:
        for at in range(40):
            assert (await publisher.ctx.publish("kept.event", at)).sequence
        own.kill()
        await asyncio.to_thread(own.up)
    listener = make("listener", api=own.api)

    @listener.on("kept.event", from_oldest=True)
    async def handle(event: Any) -> None:
        seen.append(event.data)

    async with listener:
        await soon(lambda: len(seen) >= 40)
    assert sorted(seen) == list(range(40))


async def _is_back(agent: Agent) -> None:
    session: Any = agent._session
    await soon(lambda: session.era == 2)


async def test_what_runs_is_finished_while_the_sidecar_drains(make: Make, own: Own, link: Link) -> None:
    caller, callee = make("caller", **over(link)), make("callee", api=own.api)
    began, go_on = asyncio.Event(), asyncio.Event()

    @callee.serve
    async def work(payload: int) -> int:
        began.set()
        await go_on.wait()
        return payload + 1

    async with caller, callee:
        call = asyncio.create_task(caller.ctx.call("callee", 1))
        await began.wait()
        own.signal(signal.SIGTERM)
        session: Any = caller._session
        await soon(lambda: session.state.is_held)
        later = asyncio.create_task(caller.ctx.call("callee", 2))
        go_on.set()
        assert await call == 2
        link.is_down = True
        await asyncio.to_thread(own.wait)
        await asyncio.to_thread(own.up)
        await _is_back(callee)
        link.is_down = False
        assert await later == 3  # it waited for the next sidecar


async def test_away_for_too_long_ends_what_waits_and_new_work_waits_on(make: Make, own: Own, link: Link) -> None:
    caller, callee = make("caller", **over(link)), make("callee", api=own.api)
    began, go_on = asyncio.Event(), asyncio.Event()

    @callee.serve
    async def work() -> int:
        began.set()
        await go_on.wait()
        return 1

    async with caller, callee:
        call = asyncio.create_task(caller.ctx.call("callee"))
        await began.wait()
        session: Any = caller._session
        session._resume_s = 0.0
        link.is_down = True
        link.cut()
        with pytest.raises(SessionLost):
            await call
        go_on.set()
        later = asyncio.create_task(caller.ctx.call("callee"))
        link.is_down = False
        assert await later == 1


async def test_an_agent_ends_while_there_is_no_connection(make: Make, own: Own, link: Link) -> None:
    async with make("caller", **over(link)) as caller:
        link.is_down = True
        link.cut()
        call = asyncio.create_task(caller.ctx.call("nobody"))
        await asyncio.sleep(0)
    with pytest.raises(NoSidecar, match="has left"):
        await call
    with pytest.raises(RuntimeError, match="not connected"):
        caller.ctx  # noqa: B018 - the property raises


# No sidecar


async def test_without_a_sidecar_it_says_what_to_do(make: Make) -> None:
    port = free_port()
    with pytest.raises(NoSidecar) as caught:
        async with make("alone", api=f"127.0.0.1:{port}"):
            pass
    words = str(caught.value)
    assert f"nothing listens at 127.0.0.1:{port}" in words
    assert all(one in words for one in ("meshd run", "MESHD_API", "MESHD_WITHOUT=run"))


async def test_without_a_socket_it_says_so(make: Make, tmp_path: Any) -> None:
    with pytest.raises(NoSidecar, match="No such file"):
        async with make("alone", api=f"unix:{tmp_path}/none.sock"):
            pass


async def test_it_goes_on_ungoverned_where_the_setting_says_so_and_says_it_once(make: Make, caplog: Any) -> None:
    options = {"api": f"127.0.0.1:{free_port()}", "environ": {"MESHD_WITHOUT": "run"}}
    caplog.set_level(logging.WARNING, "meshd_sdk")
    for _ in range(2):
        async with make("alone", **options) as agent:
            assert not agent.is_governed
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "UNGOVERNED" in said[0]


async def _answering(answer: bytes | None) -> asyncio.Server:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answer is not None:
            await reader.read(1)
            writer.write(answer)
            writer.close()
        else:
            await reader.read()
            writer.close()

    return await asyncio.start_server(accept, "127.0.0.1", 0)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 100, b"\xff" * 9000])
async def test_somebody_else_at_the_address_is_no_sidecar(make: Make, answer: bytes) -> None:
    server = await _answering(answer)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(NoSidecar, match="is no meshd of this protocol"):
            async with make("alone", api=f"127.0.0.1:{port}"):
                pass


async def test_somebody_who_never_answers_is_no_sidecar(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "WELCOME_S", 0.2)
    server = await _answering(None)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(NoSidecar, match="did not answer"):
            async with make("alone", api=f"127.0.0.1:{port}"):
                pass


async def test_a_grpc_server_without_the_service_is_no_sidecar(make: Make) -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        with pytest.raises(NoSidecar, match="is no meshd of this protocol"):
            async with make("alone", api=f"127.0.0.1:{port}"):
                pass
    finally:
        await server.stop(None)


@pytest.mark.parametrize("port", ["listen", "metrics", "admin"])
async def test_another_port_of_the_sidecar_is_not_its_api(make: Make, shared: Sidecar, port: str) -> None:
    assert shared.running is not None
    with pytest.raises(NoSidecar, match="its API is at port 7402"):
        async with make("alone", api=shared.running[port].removeprefix("http://")):
            pass


async def test_what_waits_for_room_hears_that_the_agent_has_left(own: Own, make: Make) -> None:
    agent = make("leaver1", api=own.api)
    async with agent:
        own.kill()
        session = agent._session
        assert session is not None
        tasks = [asyncio.create_task(agent.ctx.publish("sdk.room", number)) for number in range(1100)]
        await soon(lambda: session._room)
    done, late = await asyncio.wait(tasks, timeout=PATIENCE_S)
    assert not late
    assert {type(task.exception()) for task in done} == {NoSidecar}
