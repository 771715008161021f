"""A bus is named by its URL, and opened with the first event."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from meshd.config import ConfigError, from_environment
from meshd.engines.bus_port import EventMalformed, Verdict
from meshd.engines.bus_table import ENGINES, LateBus, check_bus, open_bus
from meshd.engines.port import Ability, StoreClosed, StoreCorrupt, StoreUnable
from tests.engines.buses import event, handle, nats_remove
from tests.engines.kafka_mock import shared_cluster
from tests.engines.places import NATS, RABBITMQ, REDIS, rabbitmq_delete, redis_remove


async def test_the_engines_by_their_urls(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for text, file, abilities in (
        ("", "bus.db", {Ability.REPLAYS}),
        ("sqlite:?mode=durable", "bus.db", {Ability.DURABLE, Ability.REPLAYS}),
        ("SQLITE:///?mode=fast", "bus.db", {Ability.REPLAYS}),
        (f"sqlite://{tmp_path}/elsewhere/x.db", "elsewhere/x.db", {Ability.REPLAYS}),
    ):
        bus = await open_bus(text, tmp_path)
        assert (bus.name, bus.abilities) == ("sqlite", abilities)
        assert (tmp_path / file).is_file()
        await bus.close()
    bus = await open_bus("memory:", tmp_path)
    assert (bus.name, bus.abilities) == ("memory", {Ability.REPLAYS})
    assert "nothing beyond this process" in bus.caution


async def test_the_engines_on_a_server_by_their_urls(tmp_path: Path) -> None:
    name = f"meshd_test_{secrets.token_hex(6)}"
    for engine, text in (
        ("redis", f"redis://{REDIS}/0?prefix={name}"),
        ("nats", f"nats://{NATS}?stream={name}"),
        ("rabbitmq", f"amqp://{RABBITMQ}?prefix={name}&connect_timeout=20"),
        ("kafka", f"kafka://{shared_cluster().address}?prefix={name}"),
    ):
        bus = await open_bus(text, tmp_path)
        assert (bus.name, Ability.SHARED in bus.abilities) == (engine, True)
        await bus.close()
    redis_remove(name)
    await nats_remove(name)
    await rabbitmq_delete(f"{name}.log", f"{name}.gone")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["redis", "nats", "amqp", "kafka"])
def test_an_option_that_a_bus_does_not_know_is_named_with_those_that_it_knows(scheme: str) -> None:
    with pytest.raises(StoreUnable, match=f"the {scheme} bus knows no option 'canary'; it knows .*timeout"):
        check_bus(f"{scheme}://h?canary=1")


@pytest.mark.parametrize("scheme", ["dynamodb", "postgres", "mysql", "http"])
def test_an_engine_without_a_bus_names_those_that_have_one(scheme: str) -> None:
    with pytest.raises(StoreUnable) as told:
        check_bus(f"{scheme}://user:canary@127.0.0.1:1/")
    assert "canary" not in str(told.value)
    assert scheme in str(told.value)
    for one in ENGINES.values():
        assert one.example in str(told.value)


@pytest.mark.parametrize(
    "text",
    ["bus", "/var/lib/bus.db", "://", "sqlite://host/bus.db", "sqlite:?mode=", "sqlite:?mode=canary",
     "sqlite:?timeout=1", "memory:?mode=fast", "sqlite:#canary", "sqlite://[", "\x00:", "redis:", "redis:///0",
     "redis://127.0.0.1/canary", "redis://127.0.0.1:canary", "redis://127.0.0.1?mode=durable", "redis://h?timeout=no",
     "redis://h?connect_timeout=0", "redis://h?prefix=", "rediss://:can/ary@h", "unix:", "unix://host/redis.sock",
     "nats:", "nats://h/path", "nats://h?bucket=canary", "nats://h?stream=a.b", "nats://h?stream=", "nats://h?replicas=6",
     "tls://h?synced=perhaps", "nats://h?timeout=0", "tls://:can/ary@h", "amqp:",
     "amqp:///v", "amqp://h:canary", "amqp://h?prefix=", "amqp://h?prefix=a/b", "amqp://h?timeout=no", "amqp://h?ca=x",
     "amqp://h?connect_timeout=0", "amqp://h?mode=durable", "amqps://h?cert=x", "amqps://:can/ary@h",
     f"amqp://h/{'v' * 128}",
     "kafka:", "kafka://h/canary", "kafka://h?acks=1", "kafka://h?partitions=0", "kafka://h?partitions=1001",
     "kafka://h?replicas=x", "kafka://h?prefix=a.b", "kafka://h?prefix=", "kafka://u:canary@h?sasl=gssapi",
     "kafka://h?sasl=plain", "kafka://u@h", "kafka://h?ca=/x", "kafka://h?fetch_wait=0", "kafka://h:canary",
     "kafka+tls:"],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_the_configuration(text: str) -> None:
    with pytest.raises(StoreUnable):
        check_bus(text)
    with pytest.raises(ConfigError, match=r"^MESHD_BUS: "):
        from_environment({"MESHD_HOME": "/x", "MESHD_BUS": text})
    with pytest.raises(ConfigError, match=r"^--bus: "):
        from_environment({"MESHD_HOME": "/x"}, bus=text)


def test_where_the_setting_comes_from_and_that_it_is_not_shown() -> None:
    config = from_environment({"MESHD_HOME": "/x", "MESHD_BUS": "sqlite:///canary.db"})
    assert config.bus == "sqlite:///canary.db"
    assert "canary" not in repr(config)
    assert from_environment({"MESHD_HOME": "/x", "MESHD_BUS": "sqlite:"}, bus="memory:").bus == "memory:"
    assert from_environment({"MESHD_HOME": "/x"}).bus == ""


def test_every_scheme_leads_to_a_driver_that_is_there() -> None:
    for scheme, engine in ENGINES.items():
        assert (Path(sys.modules["meshd.engines.bus_table"].__file__ or "").parent / f"{engine.module}.py").is_file()
        assert engine.example.startswith(f"{scheme}:")


async def test_a_late_bus_is_opened_once_with_the_first_question(tmp_path: Path) -> None:
    bus = LateBus("", tmp_path)
    assert (bus.name, bus.abilities, bus.caution) == ("", set(), "")
    assert list(tmp_path.iterdir()) == []
    # All at once, and none of them finds it locked by another.
    one, *_ = await asyncio.gather(bus.subscribe(">", "group"), *(bus.positions() for _ in range(8)))
    assert bus.name == "sqlite"
    assert "power cut" in bus.caution
    assert (tmp_path / "bus.db").is_file()
    await bus.publish([event(id="a"), event(id="b")])
    assert await handle(one, 1) == ["a"]
    await one.settle(await one.next(), Verdict.DROP)
    assert await bus.dead_letters("group") == []
    assert await bus.redrive("group", [1]) == 0
    await bus.close()
    await bus.close()
    with pytest.raises(StoreClosed):
        await bus.publish([event()])


async def test_a_late_bus_that_was_never_asked(tmp_path: Path) -> None:
    bus = LateBus("", tmp_path)
    await bus.close()
    with pytest.raises(StoreClosed):
        await bus.publish([event()])
    assert list(tmp_path.iterdir()) == []


async def test_a_late_bus_that_cannot_be_opened_is_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "bus.db"
    file.write_bytes(b"this is not a database" * 300)
    bus = LateBus("", tmp_path)
    for _ in range(2):
        with pytest.raises(StoreCorrupt, match="move it away"):
            await bus.publish([event()])
    file.unlink()
    assert len(await bus.publish([event()])) == 1
    with pytest.raises(EventMalformed):
        await bus.publish([event("no topic")])
    await bus.close()


DAEMON = """
import asyncio, sys, threading
from pathlib import Path
from meshd.config import from_environment
from meshd.daemon import Daemon
from meshd.engines.bus_port import Event

MODULES = ("meshd.engines.bus_memory", "meshd.engines.bus_sqlite", "meshd.engines.bus_front", "grpc")

def say():
    threads = sum(thread.name == "meshd-bus" for thread in threading.enumerate())
    print(threads, home.joinpath("bus.db").exists(), *(one for one in MODULES if one in sys.modules))

async def main():
    daemon = Daemon(from_environment())
    await daemon.start()
    say()
    await daemon.bus.publish([Event("task.done", "me", "a")])
    say()
    daemon.stop()
    await daemon.serve()
    say()

home = Path(sys.argv[1])
asyncio.run(main())
"""


def test_a_daemon_opens_its_bus_with_the_first_event_and_closes_it_at_its_end(tmp_path: Path) -> None:
    ports = dict.fromkeys(("MESHD_LISTEN", "MESHD_INBOUND", "MESHD_ADMIN", "MESHD_METRICS", "MESHD_API"), "127.0.0.1:0")
    done = subprocess.run(
        [sys.executable, "-c", DAEMON, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **ports, "PYTHONPATH": os.pathsep.join(sys.path), "MESHD_HOME": str(tmp_path)},
    )
    began, opened, ended = done.stdout.splitlines()
    assert began.split() == ["0", "False"]
    assert opened.split() == ["1", "True", "meshd.engines.bus_sqlite", "meshd.engines.bus_front"]
    assert ended.split()[0] == "0"
    # Closed, not left: the log beside the file has been taken in.
    assert not (tmp_path / "bus.db-wal").exists()
