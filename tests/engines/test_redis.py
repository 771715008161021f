"""What is Redis's own: what the server promises, who may sign in, and what stands in a record's place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshd.engines import redis_server as driver
from meshd.engines.port import (
    Ability,
    Change,
    Store,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreUnable,
)
from meshd.engines.redis_wire import ReplyError
from meshd.engines.table import open_store
from tests.engines.places import Place, place_of, redis_command
from tests.engines.servers import Server, certificate, redis_server, running
from tests.ports import free_port

SECRET = "p/ss@word:cànary"
SECRET_IN_URL = "p%2Fss%40word%3Ac%C3%A0nary"


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with place_of("redis", tmp_path) as one:
        yield one


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    one = await place.open()
    yield one
    await one.close()


async def _opened(server: Server, path: Path, *, user: str = "", options: str = "", scheme: str = "redis") -> Store:
    return await open_store(f"{scheme}://{user}{server.address}/0{options}", path)


@pytest.mark.parametrize(
    ("options", "is_durable", "caution"),
    [
        (("--appendonly", "yes", "--appendfsync", "always"), True, ""),
        (("--appendonly", "yes", "--appendfsync", "everysec"), False, "appendfsync is everysec"),
        (("--appendonly", "no"), False, "appendonly is off"),
        (("--rename-command", "CONFIG", ""), False, "CONFIG GET is refused"),
        (("--rename-command", "INFO", ""), False, "does not let this user look"),
    ],
)
async def test_what_a_server_promises(options: tuple[str, ...], is_durable: bool, caution: str, tmp_path: Path) -> None:
    async with running(redis_server(tmp_path / "server", *options)) as server:
        store = await _opened(server, tmp_path)
        assert (Ability.DURABLE in store.abilities) == is_durable
        assert Ability.SHARED in store.abilities
        assert caution in store.caution
        assert bool(store.caution) == (not is_durable)
        await store.close()


async def test_a_server_that_evicts_records_is_refused(tmp_path: Path) -> None:
    options = ("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    async with running(redis_server(tmp_path / "server", *options)) as server:
        with pytest.raises(StoreUnable, match=r"evicts keys when it is full \(maxmemory-policy allkeys-lru\)"):
            await _opened(server, tmp_path)
        redis_command("CONFIG", "SET", "maxmemory-policy", "volatile-ttl", address=server.address)
        await (await _opened(server, tmp_path)).close()


async def test_a_full_server_says_so_and_takes_up_again(tmp_path: Path) -> None:
    async with running(redis_server(tmp_path / "server", "--maxmemory-policy", "noeviction")) as server:
        store = await _opened(server, tmp_path)
        await store.write([Change("space", f"{number:03d}", b"x") for number in range(20)])
        redis_command("CONFIG", "SET", "maxmemory", "1mb", address=server.address)
        with pytest.raises(StoreFull, match="is full: raise its maxmemory"):
            await store.write([Change("space", "a", b"")])
        with pytest.raises(StoreFull):
            await store.take("space", "n", 1, 10)
        names = await store.keys("space")
        assert set(await store.read("space", names)) == set(names)
        assert await store.write([Change("space", name, None) for name in names]) == [True] * 20  # which frees some
        redis_command("CONFIG", "SET", "maxmemory", "0", address=server.address)
        assert await store.take("space", "n", 1, 10) == 1
        await store.close()


async def test_a_replica_is_refused_and_a_master_that_became_one_is_given_up(tmp_path: Path) -> None:
    async with (
        running(redis_server(tmp_path / "master")) as master,
        running(redis_server(tmp_path / "replica", "--replicaof", "127.0.0.1", str(master.port))) as replica,
    ):
        with pytest.raises(StoreReadOnly, match="is a replica, which may not be written; name its master"):
            await _opened(replica, tmp_path)
        while b"connected_slaves:1" not in redis_command("INFO", "replication", address=master.address):
            await asyncio.sleep(0.01)
        store = await _opened(master, tmp_path)
        assert "one that is promoted may lack the last writes" in store.caution
        redis_command("REPLICAOF", "127.0.0.1", str(replica.port), address=master.address)
        with pytest.raises(StoreReadOnly):
            await store.write([Change("space", "a", b"")])
        redis_command("REPLICAOF", "NO", "ONE", address=master.address)
        async with asyncio.timeout(20):
            while True:
                try:
                    assert await store.write([Change("space", "a", b"")]) == [True]
                    break
                except StoreError:
                    await asyncio.sleep(0.01)
        await store.close()


async def test_passwords_and_users(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(SECRET + "\n")
    async with running(redis_server(tmp_path / "server", "--requirepass", SECRET)) as server:
        for user, options in (
            (f":{SECRET_IN_URL}@", ""),
            ("", f"?password_file={file}"),
            ("default@", f"?password_file={file}"),
        ):
            store = await _opened(server, tmp_path, user=user, options=options)
            assert await store.write([Change("space", "a", b"")]) == [True]
            await store.close()
        with pytest.raises(StoreUnable, match="asks for a password"):
            await _opened(server, tmp_path)
        with pytest.raises(StoreUnable, match="refuses the user or the password") as told:
            await _opened(server, tmp_path, user=f":{SECRET_IN_URL}x@")
        assert "nary" not in str(told.value)
        with pytest.raises(StoreError, match=r"password_file=.*nowhere cannot be read: No such file"):
            await _opened(server, tmp_path, options=f"?password_file={tmp_path}/nowhere")
        # A new password is taken from the file at the next connection.
        store = await _opened(server, tmp_path, options=f"?password_file={file}")
        file.write_text("another")
        admin = ("AUTH", SECRET), ("CONFIG", "SET", "requirepass", "another"), ("CLIENT", "KILL", "TYPE", "normal")
        _commands(server, *admin)
        async with asyncio.timeout(20):
            while True:
                try:
                    await store.read("space", ["a"])
                    break
                except StoreError:
                    await asyncio.sleep(0.01)
        await store.close()


def _commands(server: Server, *commands: tuple[str, ...]) -> None:
    import socket

    import hiredis

    with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
        for command in commands:
            connection.sendall(hiredis.pack_command(command))
            try:
                connection.recv(1000)
            except ConnectionResetError:
                return


async def test_a_user_that_may_too_little(tmp_path: Path) -> None:
    async with running(redis_server(tmp_path / "server")) as server:
        redis_command(
            "ACL", "SETUSER", "few", "on", ">pw", "~*", "&*", "+get", "+select", "+auth", address=server.address
        )
        with pytest.raises(StoreUnable, match="does not let this user do what meshd must"):
            await _opened(server, tmp_path, user="few:pw@")
        needed = ("+evalsha", "+eval", "+script|load", "+incr", "+zadd", "+zrem", "+set", "+del", "+publish")
        redis_command("ACL", "SETUSER", "few", *needed, "+zrangebylex", "+subscribe", "+ping", address=server.address)
        store = await _opened(server, tmp_path, user="few:pw@")
        assert "does not let this user look" in store.caution
        await store.watch("space", lambda _: None)
        assert await store.write([Change("space", "a", b"")]) == [True]
        assert await store.take("space", "n", 1, 1) == 1
        assert await store.keys("space") == ["a", "n"]
        await store.close()


async def test_tls(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path / "tls")
    _, _ = certificate(tmp_path / "other")
    port = free_port()
    options = ("--port", "0", "--tls-port", str(port), "--tls-cert-file", str(cert), "--tls-key-file", str(key))
    options += ("--tls-ca-cert-file", str(cert), "--tls-auth-clients", "no")
    async with running(redis_server(tmp_path / "server", *options, port=port)) as server:
        store = await _opened(server, tmp_path, scheme="rediss", options=f"?ca={cert}")
        assert await store.write([Change("space", "a", b"")]) == [True]
        await store.close()
        with pytest.raises(StoreUnable, match="certificate that is not trusted"):
            await _opened(server, tmp_path, scheme="rediss")
        with pytest.raises(StoreUnable, match="certificate that is not trusted"):
            await _opened(server, tmp_path, scheme="rediss", options=f"?ca={tmp_path}/other/127.0.0.1.pem")
        with pytest.raises(StoreUnable, match="ca=/nowhere cannot be used"):
            await _opened(server, tmp_path, scheme="rediss", options="?ca=/nowhere")
        with pytest.raises(StoreError, match=r"closed the connection|did not answer"):
            await _opened(server, tmp_path, options="?connect_timeout=0.5")


async def test_a_client_certificate(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path / "tls")
    port = free_port()
    options = ("--port", "0", "--tls-port", str(port), "--tls-cert-file", str(cert), "--tls-key-file", str(key))
    async with running(
        redis_server(tmp_path / "server", *options, "--tls-ca-cert-file", str(cert), port=port)
    ) as server:
        store = await _opened(server, tmp_path, scheme="rediss", options=f"?ca={cert}&cert={cert}&key={key}")
        assert await store.write([Change("space", "a", b"")]) == [True]
        await store.close()
        with pytest.raises(StoreError):
            await _opened(server, tmp_path, scheme="rediss", options=f"?ca={cert}")


async def test_tls_to_a_port_that_speaks_none(place: Place) -> None:
    # It takes the handshake for the beginning of a command, and waits for its end.
    with pytest.raises(StoreError, match=r"did not answer within 0\.2 s|TLS failed|closed the connection"):
        await open_store(place.url.replace("redis:", "rediss:") + "&connect_timeout=0.2", place.path)


async def test_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    async with running(redis_server(tmp_path / "server", "--unixsocket", str(path))) as server:
        # The server listens on its port before it does on the socket; once it answers, on both.
        await (await open_store(f"redis://{server.address}", tmp_path)).close()
        store = await open_store(f"unix://{path}?prefix=mine", tmp_path)
        assert await store.write([Change("space", "a", b"")]) == [True]
        await store.close()
    with pytest.raises(StoreError, match=r"cannot be reached|refuses connections"):
        await open_store(f"unix://{path}", tmp_path)


FOREIGN = [
    ("SET", "a string of another program"),
    ("SET", ""),
    ("SET", "m1 x y"),
    ("SET", "m1 12"),
    ("SET", "m2 12 value"),
    ("RPUSH", "element"),
    ("SADD", "member"),
]


@pytest.mark.parametrize("command", FOREIGN, ids=lambda one: "-".join(one))
async def test_what_stands_in_a_records_place(command: tuple[str, str], store: Store, place: Place) -> None:
    name = f"{place.name}:record:space:a"
    redis_command(command[0], name, command[1])
    for asked in (
        store.read("space", ["b", "a"]),
        store.write([Change("space", "b", b""), Change("space", "a", b"")]),
        store.write([Change("space", "a", b"", expected=0)]),
        store.write([Change("space", "a", None)]),
        store.take("space", "a", 1, 10),
    ):
        with pytest.raises(StoreCorrupt, match=r"what stands under a in .* is not a record of meshd"):
            await asked
    redis_command("DEL", name)
    assert await store.write([Change("space", "a", b"mine", expected=0)]) == [True]


async def test_what_stands_in_the_place_of_index_and_counter(store: Store, place: Place) -> None:
    redis_command("SET", f"{place.name}:keys:space", "no index")
    with pytest.raises(StoreCorrupt):
        await store.keys("space")
    with pytest.raises(StoreCorrupt):
        await store.write([Change("space", "a", b"")])
    assert await store.read("space", ["a"]) == {}  # what cannot be found again was not written
    redis_command("DEL", f"{place.name}:keys:space")
    await store.write([Change("space", "a", b""), Change("space", "a", b""), Change("space", "a", b"")])
    redis_command("DEL", f"{place.name}:version")
    with pytest.raises(StoreCorrupt, match="has lost its counter of versions"):
        await store.write([Change("space", "a", b"")])
    with pytest.raises(StoreCorrupt, match="has lost its counter of versions"):
        await store.write([Change("space", "n", b"1"), Change("space", "a", b"")])
    redis_command("SET", f"{place.name}:version", "nonsense")
    with pytest.raises(StoreError):
        await store.write([Change("space", "a", b"")])
    redis_command("ZADD", f"{place.name}:keys:other", "0", b"\xff\xfe")
    with pytest.raises(StoreCorrupt, match="is no text"):
        await store.keys("other")


async def test_scripts_that_the_server_has_forgotten_are_sent_again(store: Store) -> None:
    await store.write([Change("space", "a", b"one", expected=0)])
    redis_command("SCRIPT", "FLUSH")
    assert await store.write([Change("space", "b", b"one", expected=0)]) == [True]
    redis_command("SCRIPT", "FLUSH")
    assert await store.take("space", "n", 1, 1) == 1


async def test_calls_of_one_turn_share_a_round_trip(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from meshd.engines.redis_wire import Wire

    store = await open_store(f"{place.url}&timeout=10", tmp_path)
    flushes = []
    flush = Wire._flush
    monkeypatch.setattr(Wire, "_flush", lambda wire: (flushes.append(1), flush(wire))[1])
    await asyncio.gather(*(store.write([Change("space", str(number), b"")]) for number in range(500)))
    assert len(flushes) == 1
    await store.close()


async def test_a_server_that_is_too_old(store: Store, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "OLDEST", (99, 1))
    with pytest.raises(StoreUnable, match=r"is Redis 7[.\d]+; meshd needs 99\.1 or newer"):
        await place.open()


async def test_what_does_not_speak_redis(tmp_path: Path) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(StoreError, match="does not speak Redis's protocol"):
        await open_store(f"redis://:pw@127.0.0.1:{port}", tmp_path)
    server.close()


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ("ERR MESHDBAD 1", "MESHDBAD 1"),
        ("OOM command not allowed when used memory > 'maxmemory'.", "OOM command not allowed"),
        ("ERR Error running script (call to f_0a): @user_script:14: WRONGTYPE Operation", "WRONGTYPE Operation"),
        ("ERR Error running script (call to f_0a): @user_script:1: @user_script: 1: -OOM command", "OOM command"),
        ("ERR Error running script", "Error running script"),
    ],
)
def test_what_scripts_put_around_an_error(reply: str, words: str) -> None:
    assert driver.words_of(ReplyError(reply)).startswith(words)
