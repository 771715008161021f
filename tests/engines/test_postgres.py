"""What is PostgreSQL's own: its tables, what the server promises, who may sign in, and poolers."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from meshd.engines import postgres as driver
from meshd.engines import postgres_server as server_side
from meshd.engines.port import (
    Ability,
    Change,
    Store,
    StoreCorrupt,
    StoreError,
    StoreNewer,
    StoreReadOnly,
    StoreUnable,
)
from meshd.engines.table import open_store
from tests.engines.places import Place, place_of, postgres_command, until_it_fails
from tests.engines.servers import PostgresServer, Server, as_postgres, certificate, program, running
from tests.ports import free_port


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with place_of("postgres", tmp_path) as one:
        yield one


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    one = await place.open()
    yield one
    await one.close()


@pytest.fixture
async def role(place: Place) -> AsyncIterator[str]:
    """A user of the running server, removed behind the test."""
    name = f"meshd_role_{secrets.token_hex(6)}"
    await postgres_command(f"CREATE ROLE {name} LOGIN PASSWORD 's3cret'")
    yield name
    await postgres_command(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


async def test_a_server_that_syncs_is_durable(store: Store) -> None:
    assert store.abilities == {Ability.DURABLE, Ability.SHARED}
    assert store.caution == ""


async def test_a_server_that_does_not_sync_every_commit_is_named(place: Place, role: str) -> None:
    await postgres_command(f"GRANT CREATE ON DATABASE test TO {role}")
    await postgres_command(f"ALTER ROLE {role} SET synchronous_commit = off")
    store = await open_store(place.url.replace("root@", f"{role}@"), place.path)
    assert store.abilities == {Ability.SHARED}
    assert "synchronous_commit is off" in store.caution
    await store.close()


async def test_other_isolation_is_refused(place: Place, role: str) -> None:
    await postgres_command(f"ALTER ROLE {role} SET default_transaction_isolation = 'serializable'")
    with pytest.raises(StoreUnable, match="as serializable; meshd needs read committed"):
        await open_store(place.url.replace("root@", f"{role}@"), place.path)


async def test_read_only_is_refused_and_given_up(place: Place, role: str) -> None:
    url = place.url.replace("root@", f"{role}@")
    await postgres_command(f"ALTER ROLE {role} SET default_transaction_read_only = on")
    with pytest.raises(StoreReadOnly, match="may not be written; name its primary"):
        await open_store(url, place.path)


async def test_a_user_that_may_too_little(place: Place, role: str) -> None:
    url = place.url.replace("root@", f"{role}@")
    with pytest.raises(StoreUnable, match=r"needs CREATE on the database"):
        await open_store(url, place.path)
    await (await place.open()).close()
    await postgres_command(f"GRANT USAGE ON SCHEMA {place.name} TO {role}")
    await postgres_command(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {place.name} TO {role}")
    await postgres_command(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {place.name} TO {role}")
    # Where the tables were made for it, it need not be able to make any.
    store = await open_store(url, place.path)
    assert await store.write([Change("space", "a", b"")]) == [True]
    await store.close()


async def test_a_newer_format_is_refused(place: Place) -> None:
    await (await place.open()).close()
    await postgres_command(f"UPDATE {place.name}.meshd_format SET version = 2")
    with pytest.raises(StoreNewer, match=r"written by a newer meshd \(format 2, this one knows 1\)"):
        await place.open()
    await postgres_command(f"DELETE FROM {place.name}.meshd_format")
    with pytest.raises(StoreCorrupt, match="names no format"):
        await place.open()


async def test_a_table_of_another_program(place: Place) -> None:
    await postgres_command(f"CREATE SCHEMA {place.name}")
    await postgres_command(f"CREATE TABLE {place.name}.meshd_record (theirs text)")
    with pytest.raises(StoreCorrupt, match="is a table of another program"):
        await place.open()


async def test_tables_that_are_dropped_under_us(store: Store, place: Place) -> None:
    await store.write([Change("space", "a", b"one")])
    await postgres_command(f"DROP SCHEMA {place.name} CASCADE")
    with pytest.raises(StoreCorrupt, match="has lost"):
        await store.write([Change("space", "b", b"")])
    async with asyncio.timeout(20):
        while True:
            try:
                assert await store.read("space", ["a"]) == {}
                break
            except StoreError:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("127.0.0.1:5432/test", "127.0.0.1:5432/nowhere"), "has no such database"),
        (("root@", "nobody_here@"), "pg_hba|refuses the user|does not exist"),
    ],
)
async def test_what_is_said_of_a_url_that_leads_nowhere(change: tuple[str, str], why: str, place: Place) -> None:
    with pytest.raises(StoreError, match=why):
        await open_store(place.url.replace(*change), place.path)


@pytest.mark.parametrize("option", ["sslmode=require", "sslmode=verify-full", "ca={ca}"])
async def test_no_password_is_said_where_tls_was_asked_for_and_is_not_spoken(option: str, tmp_path: Path) -> None:
    said = bytearray()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said.extend(await reader.readexactly(8))
        writer.write(b"N")
        said.extend(await reader.read())

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    ca, _ = certificate(tmp_path / "tls")
    with pytest.raises(StoreUnable, match="does not speak TLS"):
        await open_store(f"postgres://me:canary@127.0.0.1:{port}/x?{option.format(ca=ca)}", tmp_path)
    assert said == bytes([0, 0, 0, 8, 4, 210, 22, 47])  # the question whether it does, and nothing more
    server.close()


async def test_keys_that_it_cannot_hold(store: Store) -> None:
    with pytest.raises(StoreUnable, match="NUL"):
        await store.write([Change("space", "a\0b", b"")])
    with pytest.raises(StoreUnable, match="too long"):
        await store.write([Change("space", "a" * 3000, b"")])
    assert await store.write([Change("space", "a" * 1900, b"")]) == [True]
    assert await store.read("space", ["a" * 3000]) == {}


async def test_calls_of_one_turn_share_a_round_trip(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = []
    run = driver.PostgresStore._run
    monkeypatch.setattr(
        driver.PostgresStore,
        "_run",
        lambda one, connection, group: (groups.append(len(group)), run(one, connection, group))[1],
    )
    await asyncio.gather(*(store.write([Change("space", str(number), b"")]) for number in range(500)))
    assert groups == [500]


async def test_what_it_answered_while_this_process_stood_still_came_in_time(place: Place) -> None:
    store = await place.open("&timeout=2")
    written = asyncio.ensure_future(store.write([Change("space", "a", b"")]))
    for _ in range(3):
        await asyncio.sleep(0)  # it is asked for
    time.sleep(3)  # as in a container that is frozen
    assert await written == [True]
    await store.close()


async def test_a_caller_of_a_group_has_its_own_fault(store: Store) -> None:
    await store.write([Change("space", "n", b"no number")])
    told = await asyncio.gather(
        store.take("space", "n", 1, 10),
        store.write([Change("space", "a", b"")]),
        store.take("space", "m", 1, 10),
        store.read("space", ["n"]),
        return_exceptions=True,
    )
    assert isinstance(told[0], StoreCorrupt)
    assert told[1:3] == [[True], 1]


async def test_a_large_batch_is_told_as_look_again(store: Store, place: Place) -> None:
    other = await place.open()
    heard: asyncio.Queue[str] = asyncio.Queue()
    await other.watch("space", heard.put_nowait)
    await store.write([Change("space", f"{number:03d}", b"") for number in range(200)])
    assert await heard.get() == ""
    await store.write([Change("space", "é" * 900, b"")])
    assert await heard.get() == "é" * 900
    await other.close()


async def test_a_server_that_is_too_old(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_side, "OLDEST", 990000)
    with pytest.raises(StoreUnable, match=r"is PostgreSQL 1\d.*; meshd needs 99 or newer"):
        await place.open()


async def test_a_backend_that_is_ended_by_its_administrator(store: Store, place: Place) -> None:
    await store.write([Change("space", "a", b"one")])
    await postgres_command(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%"
        f"{place.name}.meshd_%' AND pid <> pg_backend_pid()"
    )
    async with asyncio.timeout(20):
        while True:
            try:
                assert (await store.read("space", ["a"]))["a"].value == b"one"
                break
            except StoreError:
                await asyncio.sleep(0.01)


async def test_a_pooler_in_transaction_mode(place: Place) -> None:
    """Everything but watching goes over one; that is seen, for what is heard behind one is nothing."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        port = free_port()
        file = path / "pgbouncer.ini"
        host, _, server_port = place.address.partition(":")
        users = path / "users"
        users.write_text('"root" ""\n')
        file.write_text(
            f"[databases]\ntest = host={host} port={server_port} dbname=test\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {port}\nauth_type = trust\nauth_file = {users}\npool_mode = transaction\n"
            "default_pool_size = 4\nunix_socket_dir =\n"
        )
        pooler = Server([*as_postgres(path), program("pgbouncer"), str(file)], port)
        async with running(pooler):
            place.url = place.url.replace(place.address, pooler.address)
            stores = [await place.open() for _ in range(8)]
            taken = await asyncio.gather(*(one.take("space", "n", 1, 100) for one in stores for _ in range(10)))
            assert sorted(taken) == list(range(1, 81))
            for one in stores:
                await one.write([Change("space", "a", b"x")])
                assert len(await one.read("space", ["a", "n"])) == 2
            with pytest.raises(StoreUnable, match="a pooler in transaction mode stands between"):
                await stores[0].watch("space", lambda _: None)
            assert await stores[0].write([Change("space", "b", b"")]) == [True]
            for one in stores:
                await one.close()


@pytest.fixture
async def own_server() -> AsyncIterator[Server]:
    """A server of the test's own, that speaks TLS and asks for a password."""
    # Not `tmp_path`: what root makes there nobody else may enter.
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        secret = path / "secret"
        secret.write_text("s3cret-canary\n")
        secret.chmod(0o644)
        cert, key = certificate(path / "tls")
        options = {"ssl": "on", "ssl_cert_file": cert.name, "ssl_key_file": key.name, "fsync": "off"}
        server = PostgresServer(path, password_file=secret, files=(cert, key), **options)
        async with running(server):
            yield server


async def _opened(server: Server, *, password: str = "", options: str = "") -> Store:
    user = f"me:{password}@" if password else "me@"
    return await open_store(f"postgres://{user}{server.address}/postgres{options}", Path("/"))


async def test_a_server_of_its_own_with_passwords_tls_and_kills(own_server: Server, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("s3cret-canary\n")
    store = await _opened(own_server, options=f"?password_file={file}")
    assert "fsync is off" in store.caution
    assert Ability.DURABLE not in store.abilities
    with pytest.raises(StoreUnable, match="refuses the user or the password") as told:
        await _opened(own_server, password="wr0ng-canary")
    assert "canary" not in str(told.value)

    data = Path(own_server.command[own_server.command.index("-D") + 1])
    cert = data.parent / "tls" / "127.0.0.1.pem"
    for options in (f"?ca={cert}", f"?ca={cert}&sslmode=verify-ca", "?sslmode=require", "?sslmode=disable"):
        await (await _opened(own_server, password="s3cret-canary", options=options)).close()
    for options in ("?sslmode=verify-full", "?sslmode=verify-ca"):
        with pytest.raises(StoreUnable, match="certificate that is not trusted"):
            await _opened(own_server, password="s3cret-canary", options=options)

    await store.write([Change("space", "a", b"one")])
    own_server.kill()
    with pytest.raises(StoreError):
        await until_it_fails(lambda: store.write([Change("space", "b", b"")]))
    await own_server.start()
    async with asyncio.timeout(60):
        while True:
            try:
                assert (await store.read("space", ["a"]))["a"].value == b"one"
                break
            except StoreError:
                await asyncio.sleep(0.05)

    # Every connection taken: said, and passed.
    held: list[Any] = []

    async def hold() -> None:
        common = {"host": "127.0.0.1", "port": own_server.port, "database": "postgres"}
        held.append(await asyncpg.connect(**common, user="me", password="s3cret-canary"))

    with pytest.raises(asyncpg.TooManyConnectionsError):
        await until_it_fails(hold)
    with pytest.raises(StoreError, match="no connection left"):
        await _opened(own_server, password="s3cret-canary")
    for one in held:
        await one.close()
    assert await store.write([Change("space", "c", b"", expected=0)]) == [True]
    await store.close()
