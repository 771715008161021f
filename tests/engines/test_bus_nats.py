"""The bus on NATS: servers and sidecars that are killed, streams that are not ours, and servers that refuse."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshd.engines.bus_nats import NatsBus
from meshd.engines.bus_nats_streams import promise
from meshd.engines.bus_port import Event, EventMalformed, Published, Subscription, Verdict
from meshd.engines.bus_table import open_bus
from meshd.engines.nats_server import connected
from meshd.engines.port import Ability, StoreClosed, StoreCorrupt, StoreError, StoreFull, StoreNewer, StoreUnable
from meshd.engines.url import StoreUrl
from tests.engines.buses import TERMS, event, handle, is_waiting, quiet, take
from tests.engines.places import nats_api, until_it_fails
from tests.engines.servers import Server, line_to, nats_server, running

PATIENCE = "timeout=5&connect_timeout=5"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with running(nats_server(tmp_path / "nats")) as one:
        yield one


async def opened(server: Server, options: str = "", absent_s: float = 5.0, address: str = "") -> NatsBus:
    url = StoreUrl(f"nats://{address or server.address}?{PATIENCE}{options}")
    return await NatsBus.open(url, terms=TERMS._replace(retry_first_s=0.0), absent_s=absent_s)


async def api(server: Server, call: str, **request: object) -> dict[str, object]:
    return json.loads(await nats_api(call, json.dumps(request).encode(), server.address))  # type: ignore[no-any-return]


async def put(server: Server, subject: str, data: bytes, headers: bytes = b"") -> None:
    """Write a message into a stream, as another program would."""
    wire = await connected(StoreUrl(f"nats://{server.address}"), "the test", 5.0, "_INBOX.test", lambda *_: None)
    await wire.ask(subject, data, headers)
    wire.abort(StoreError("done"))


async def insist(publish: NatsBus, one: Event) -> None:
    """Publish until that is acknowledged, as whoever has no acknowledgement does."""
    while True:
        try:
            await publish.publish([one])
        except StoreError:
            await asyncio.sleep(0.01)
        else:
            return


async def until_it_works(bus: NatsBus) -> None:
    async with asyncio.timeout(20.0):
        while True:
            try:
                await bus.positions()
            except StoreError:
                await asyncio.sleep(0.01)
            else:
                return


async def test_a_server_that_is_killed_mid_stream_loses_nothing_and_repeats_nothing_that_was_acknowledged(
    server: Server,
) -> None:
    buses = [await opened(server) for _ in range(2)]
    handled: Counter[str] = Counter()
    again: list[str] = []
    everything = asyncio.Event()
    many = 400

    async def work(one: Subscription) -> None:
        while True:
            try:
                delivery = await one.next()
                if handled[delivery.event.id]:
                    again.append(delivery.event.id)
                if await one.settle(delivery, Verdict.SUCCESS):
                    handled[delivery.event.id] += 1
                    if len(handled) == many:
                        everything.set()
            except StoreClosed:
                return
            except StoreError:
                await asyncio.sleep(0.01)

    subscribers = [await bus.subscribe("task.*", "group") for bus in buses for _ in range(4)]
    workers = [asyncio.ensure_future(work(one)) for one in subscribers]

    async def kill(at: int) -> None:
        while len(handled) < at:
            await asyncio.sleep(0.001)
        server.kill()
        await server.start()

    killing = [asyncio.ensure_future(kill(at)) for at in (many // 4, many // 2)]
    for begin in range(0, many, 10):
        events = [event(id=str(number), partition_key=str(number % 5)) for number in range(begin, begin + 10)]
        await asyncio.gather(*(insist(buses[number % 2], one) for number, one in enumerate(events)))
    await asyncio.gather(*killing)
    await asyncio.wait_for(everything.wait(), 60.0)
    assert again == []
    assert set(handled.values()) == {1}
    await asyncio.gather(*(one.close() for one in subscribers))
    # The other may have been connected again before it, and have handled all that was left.
    await until_it_works(buses[0])
    fresh = await buses[0].subscribe("task.*", "group")
    assert await is_waiting(buses[0], fresh)
    for bus in buses:
        await bus.close()
    await asyncio.gather(*workers)


async def test_what_is_settled_survives_a_killed_server_at_once(server: Server) -> None:
    bus = await opened(server)
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id=str(number)) for number in range(50)])
    # Half of them one by one, so that the last verdict is as young as can be.
    assert await handle(one, 25) == [str(number) for number in range(25)]
    server.kill()
    with pytest.raises(StoreError):
        await until_it_fails(lambda: bus.publish([event("other")]))
    await server.start()
    await bus.close()
    bus = await opened(server)
    assert await handle(await bus.subscribe(">", "group"), 25) == [str(number) for number in range(25, 50)]
    assert (await bus.publish([event(id="3")]))[0].is_duplicate
    await bus.close()


async def test_success_waits_for_a_server_that_comes_back(server: Server) -> None:
    bus = await opened(server)
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id="a"), event(id="b")])
    first, second = await take(one, 2)
    server.kill()
    settling = asyncio.ensure_future(one.settle(first, Verdict.SUCCESS))
    with pytest.raises(StoreError):
        await one.settle(second, Verdict.RETRY)
    assert not settling.done()
    await server.start()
    assert await settling
    assert (await bus.positions())[0].under_way == 1
    assert await one.settle(second, Verdict.SUCCESS)
    await bus.close()


TAKER = """
import asyncio, sys
from meshd.engines.bus_nats import NatsBus
from meshd.engines.bus_port import Verdict
from meshd.engines.url import StoreUrl

async def main():
    bus = await NatsBus.open(StoreUrl(sys.argv[1]))
    one = await bus.subscribe("task.>", "group", starts_at_oldest=True)
    for number in range(3):
        delivery = await one.next()
        if number == 0:
            await one.settle(delivery, Verdict.SUCCESS)
        print(delivery.event.id, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_what_a_killed_sidecar_had_goes_to_another_marked_and_what_it_settled_does_not(server: Server) -> None:
    bus = await opened(server, absent_s=0.05)
    await bus.publish([event(f"task.{name}", id=name, partition_key="k" * (name in "bd")) for name in "abcd"])
    taker = subprocess.Popen(
        [sys.executable, "-c", TAKER, f"nats://{server.address}?{PATIENCE}"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert taker.stdout is not None
    lines = [await asyncio.to_thread(taker.stdout.readline) for _ in range(3)]
    assert [line.strip() for line in lines] == ["a", "b", "c"]
    one = await bus.subscribe("task.>", "group")
    # As long as it lives, its events are its own, and the next of their key waits.
    for _ in range(5):
        await bus._look()
    assert await is_waiting(bus, one)
    taker.kill()
    taker.wait()
    found = [await one.next(), await one.next()]
    assert [(each.event.id, each.attempt, each.may_have_been_handled) for each in found] == [
        ("b", 2, True),
        ("c", 2, True),
    ]
    assert await one.settle(found[0], Verdict.SUCCESS)
    assert (await one.next()).event.id == "d"
    assert await is_waiting(bus, one)
    taker.stdout.close()
    await bus.close()


async def test_a_connection_that_is_cut_and_mended(server: Server) -> None:
    async with line_to(server.address) as line:
        bus = await opened(server, address=line.address)
        other = await opened(server)
        one = await bus.subscribe(">", "group")
        waiting = asyncio.ensure_future(one.next())
        await quiet(bus)
        line.cut()
        with pytest.raises(StoreError):
            await until_it_fails(lambda: bus.publish([event("x")]))
        await line.mend()
        await other.publish([event(id="a")])
        while True:
            try:
                delivery = await waiting
                break
            except StoreError:
                waiting = asyncio.ensure_future(one.next())
                await asyncio.sleep(0.01)
        assert delivery.event.topic in ("x", "task.done")
        assert await one.settle(delivery, Verdict.SUCCESS)
        await bus.close()
        await other.close()


async def test_two_sidecars_that_begin_at_once_share_what_there_is(server: Server) -> None:
    first, second = await asyncio.gather(opened(server), opened(server))
    subscribers = await asyncio.gather(*(bus.subscribe(">", "group") for bus in (first, second, first, second)))
    await first.publish([event(id=str(number)) for number in range(40)])
    got = await asyncio.gather(*(handle(one, 10) for one in subscribers))
    assert sorted((id for some in got for id in some), key=int) == [str(number) for number in range(40)]
    await first.close()
    await second.close()


async def test_what_the_bus_says_of_itself(server: Server) -> None:
    bus = await open_bus(f"nats://{server.address}", Path())
    assert (bus.name, bus.abilities) == ("nats", {Ability.SHARED, Ability.REPLAYS})
    assert "sync_interval" in bus.caution
    one = await bus.subscribe("task.*", "audit.log")
    waiting = asyncio.ensure_future(one.next())
    await quiet(bus)
    # Who reads is to be seen by NATS's own tools.
    names = await api(server, "CONSUMER.NAMES.meshd_events")
    assert [name.startswith("audit-log_task-any-") for name in names["consumers"]] == [True]  # type: ignore[attr-defined]
    waiting.cancel()
    await bus.close()


def test_the_operator_s_word_that_the_server_syncs() -> None:
    assert promise([], is_synced=True) == (True, "")
    assert "sync_interval" in promise([], is_synced=False).caution
    assert promise(["it is kept in memory"], is_synced=True) == (False, "it is kept in memory")


@pytest.mark.parametrize(
    ("stream", "wrong", "told"),
    [
        ("meshd_events", {"subjects": ["elsewhere.>"]}, "no stream of meshd's own"),
        ("meshd_events", {"retention": "workqueue"}, "no stream of meshd's own"),
        ("meshd_events", {"max_age": 3600 * 10**9, "duplicate_window": 3600 * 10**9}, "max_age"),
        ("meshd_events", {"max_msgs_per_subject": 5}, "max_msgs_per_subject"),
        ("meshd_events", {"discard": "old", "max_bytes": 10**6}, "discard"),
        ("meshd_events", {"duplicate_window": 3600 * 10**9}, "duplicate_window to 86400 s"),
        ("meshd_events", {"deny_delete": True}, "deny_delete"),
        ("meshd_groups", {"allow_rollup_hdrs": False}, "allow_rollup_hdrs"),
        ("meshd_dead", {"deny_purge": True, "allow_rollup_hdrs": False}, "deny_purge"),
    ],
)
async def test_a_stream_of_our_name_with_other_settings_is_refused(
    server: Server, stream: str, wrong: dict[str, object], told: str
) -> None:
    subjects = {
        "meshd_events": ["meshd.event.>"],
        "meshd_groups": ["meshd.group.>", "meshd.marks"],
        "meshd_dead": ["meshd.dead.>"],
    }
    right = {"name": stream, "subjects": subjects[stream], "storage": "file", "discard": "new", "num_replicas": 1}
    right |= {"duplicate_window": 7 * 86400 * 10**9, "allow_rollup_hdrs": True}
    made = await api(server, f"STREAM.CREATE.{stream}", **{**right, **wrong})
    assert "error" not in made, made
    with pytest.raises(StoreUnable, match=told) as refused:
        await opened(server)
    assert stream in str(refused.value)
    assert "stream=" in str(refused.value)
    other = await opened(server, "&stream=other")
    await other.publish([event()])
    await other.close()


async def test_a_stream_in_memory_is_used_with_a_caution(server: Server) -> None:
    await api(
        server,
        "STREAM.CREATE.meshd_events",
        name="meshd_events",
        subjects=["meshd.event.>"],
        storage="memory",
        duplicate_window=7 * 86400 * 10**9,
    )
    bus = await opened(server)
    assert "memory" in bus.caution
    assert Ability.DURABLE not in bus.abilities
    await bus.close()


async def test_foreign_messages_become_dead_letters_and_nothing_else_is_harmed(server: Server) -> None:
    bus = await opened(server)
    one = await bus.subscribe(">", "group")
    at = b"Meshd-At: 1800000000000\r\n"
    for subject, data, headers in (
        ("meshd.event.task.done", b"hello", b""),
        ("meshd.event.task.done", b"\xff\x00", at),
        ("meshd.event.task.done", b"", at),
        ("meshd.event.task.done", b'{"specversion":"1.0"}', b"ce-id: 1\r\n"),
        ("meshd.event.Ünsinn.!!", b"x" * 1000, b"Meshd-At: soon\r\n"),
    ):
        await put(server, subject, data, headers)
    await bus.publish([event(id="ours")])
    # Another topic's event under this one's subject.
    await put(server, "meshd.event.other", (await _body(server, 6)), at)
    assert await handle(one, 1) == ["ours"]
    assert await is_waiting(bus, one)
    letters = await bus.dead_letters("group")
    assert len(letters) == 6
    assert all("no event of meshd" in letter.reason for letter in letters)
    assert letters[0].event.data == b"hello"
    assert letters[4].event.topic == "foreign"
    # Redriven they are what they were.
    assert await bus.redrive("group", [letters[0].id]) == 1
    assert await is_waiting(bus, one)
    assert len(await bus.dead_letters("group")) == 6
    assert (await bus.positions())[0][3:6] == (0, 0, 6)
    await bus.close()


async def _body(server: Server, sequence: int) -> bytes:
    got = await api(server, "STREAM.MSG.GET.meshd_events", seq=sequence)
    return base64.b64decode(got["message"]["data"])  # type: ignore[index]


@pytest.mark.parametrize(
    ("data", "kind"), [(b"nonsense", StoreCorrupt), (b"\x9a\x63\xa1a\xa1b\xc3\x00\x00\x00\x00\x80\x80", StoreNewer)]
)
async def test_a_journal_that_is_not_ours_stops_its_group_and_no_other(
    server: Server, data: bytes, kind: type[StoreError]
) -> None:
    bus = await opened(server)
    one, other = await bus.subscribe(">", "group"), await bus.subscribe(">", "other")
    await bus.publish([event(id="a")])
    await put(server, "meshd.group.group.=3E", data)

    async def retry() -> None:
        await one.settle(await one.next(), Verdict.RETRY, retry_after_s=0.0)

    with pytest.raises(kind, match=r"group \(>\)"):
        await until_it_fails(retry)
    assert await handle(other, 1) == ["a"]
    await bus.close()


async def test_an_event_that_is_larger_than_the_server_takes(tmp_path: Path) -> None:
    async with running(nats_server(tmp_path / "nats", "max_payload: 65536\n")) as server:
        bus = await opened(server)
        one = await bus.subscribe(">", "group")
        with pytest.raises(EventMalformed, match="max_payload"):
            await bus.publish([event(), event(data=bytes(65_500))])
        await bus.publish([event(id="a", data=bytes(60_000))])
        assert await handle(one, 1) == ["a"]
        with pytest.raises(EventMalformed, match="longer than 1048576"):
            await bus.publish([event(data=bytes(100 * 2**20))])
        await bus.close()


async def test_a_server_that_is_full_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    limits = "accounts { A { users = [{user: a, password: b}], jetstream { max_file: 300000 } } }\n"
    async with running(nats_server(tmp_path / "nats", limits)) as server:
        bus = await opened(server, address=f"a:b@{server.address}")
        one = await bus.subscribe(">", "group")
        kept: list[Published] = []

        async def fill() -> None:
            kept.extend(await bus.publish([event(data=bytes(5000))]))

        with pytest.raises(StoreFull):
            await until_it_fails(fill)
        assert 10 < len(kept) < 100
        await bus.close()
        # Even the verdicts find no room: told, and nothing is lost.
        bus = await opened(server, address=f"a:b@{server.address}")
        assert (await bus.positions())[0].sequence < kept[-1].sequence
        assert one is not None
        await bus.close()


async def test_a_user_who_may_not_do_what_the_bus_must(tmp_path: Path) -> None:
    config = """authorization { users = [
        { user: a, password: b, permissions: { publish: { deny: ["$JS.API.STREAM.CREATE.>"] } } },
        { user: c, password: d, permissions: { publish: { deny: ["meshd.event.>"] } } } ] }\n"""
    async with running(nats_server(tmp_path / "nats", config)) as server:
        with pytest.raises(StoreUnable, match="does not let this user"):
            await opened(server, address=f"a:b@{server.address}")
        bus = await opened(server, address=f"c:d@{server.address}")
        with pytest.raises(StoreUnable, match="does not let this user"):
            await bus.publish([event()])
        assert await bus.positions() == []
        await bus.close()
        with pytest.raises(StoreUnable, match="refuses the user"):
            await opened(server, address=f"c:wrong@{server.address}")


async def test_a_server_without_jetstream(tmp_path: Path) -> None:
    path = tmp_path / "nats"
    server = nats_server(path)
    (path / "nats.conf").write_text(f"host: 127.0.0.1\nport: {server.port}\n")
    async with running(server):
        with pytest.raises(StoreUnable, match="no JetStream"):
            await opened(server)


async def test_journals_stay_short(server: Server) -> None:
    bus = await opened(server)
    one = await bus.subscribe(">", "group")
    for _ in range(20):
        await bus.publish([event() for _ in range(400)])
        await handle(one, 400)
    info = await api(server, "STREAM.INFO.meshd_groups")
    assert info["state"]["bytes"] < 700_000  # type: ignore[index]
    await bus.close()
    bus = await opened(server)
    assert (await bus.positions())[0][3:] == (0, 0, 0, 0, 0)
    assert await is_waiting(bus, await bus.subscribe(">", "group"))
    await bus.close()
