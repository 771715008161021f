"""What is NATS's own: the bucket, its markers, who may sign in, and what stands in a record's place."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from meshd.engines import nats as driver
from meshd.engines import nats_consumer, nats_wire
from meshd.engines import nats_server as server_side
from meshd.engines.nats_keys import decoded, encoded
from meshd.engines.nats_wire import Message, Wire
from meshd.engines.port import Ability, Change, Store, StoreCorrupt, StoreError, StoreFull, StoreUnable
from meshd.engines.table import open_store
from meshd.engines.url import StoreUrl
from tests.engines.places import Place, nats_api, place_of, until_it_fails
from tests.engines.servers import Server, certificate, nats_server, running


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with place_of("nats", tmp_path) as one:
        yield one


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    one = await place.open()
    yield one
    await one.close()


async def _opened(server: Server, path: Path, *, user: str = "", options: str = "", scheme: str = "nats") -> Store:
    return await open_store(f"{scheme}://{user}{server.address}{options}", path)


async def _stream(place: Place) -> dict[str, Any]:
    request = json.dumps({"subjects_filter": ">"}).encode()
    found: dict[str, Any] = json.loads(await nats_api(f"STREAM.INFO.KV_{place.name}", request))
    return found


async def _made(place: Place, **config: Any) -> None:
    """Make a bucket as an operator might."""
    name = f"KV_{place.name}"
    common = {"name": name, "subjects": [f"$KV.{place.name}.>"], "max_msgs_per_subject": 1, "discard": "new"}
    answer = json.loads(await nats_api(f"STREAM.CREATE.{name}", json.dumps(common | config).encode()))
    assert "error" not in answer, answer


async def test_the_bucket_that_is_made(store: Store, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    config = (await _stream(place))["config"]
    assert (config["storage"], config["discard"], config["max_msgs_per_subject"]) == ("file", "new", 1)
    assert (config["max_age"], config["num_replicas"]) == (0, 1)
    assert Ability.DURABLE not in store.abilities
    assert "sync_interval" in store.caution
    monkeypatch.setattr(server_side, "SYNCS", (99, 0))
    with pytest.raises(StoreUnable, match="has no sync_interval: synced=true cannot be so"):
        await place.open("&synced=true")
    monkeypatch.setattr(server_side, "SYNCS", (2, 9))
    told = await place.open("&synced=true")
    assert Ability.DURABLE in told.abilities
    assert told.caution == ""
    await told.close()


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"max_age": 3_600_000_000_000}, "forgets records by their age"),
        ({"max_bytes": 1 << 20, "discard": "old"}, "throws old records away"),
        ({"subjects": ["other.>"]}, "is no bucket of its own"),
        ({"retention": "workqueue", "max_msgs_per_subject": -1}, "is no bucket of its own"),
    ],
)
async def test_a_bucket_that_forgets_is_refused(config: dict[str, Any], why: str, place: Place) -> None:
    if "subjects" in config:
        config = config | {"subjects": [f"other.{place.name}.>"]}
    await _made(place, **config)
    with pytest.raises(StoreUnable, match=why):
        await place.open()


async def test_a_bucket_in_memory_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_side, "SYNCS", (2, 9))
    await _made(place, storage="memory")
    store = await place.open("&synced=true")
    assert "kept in memory" in store.caution
    assert Ability.DURABLE not in store.abilities
    await store.close()


async def test_a_full_bucket(place: Place) -> None:
    await _made(place, max_bytes=20_000)
    store = await place.open()
    numbers = itertools.count()
    with pytest.raises(StoreFull, match="is full"):
        await until_it_fails(lambda: store.write([Change("space", str(next(numbers)), b"x" * 1000)]))
    names = await store.keys("space")
    assert set(await store.read("space", names)) == set(names)
    await store.close()


async def test_markers_are_purged_and_what_came_after_them_is_not(
    store: Store, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "MARKER_S", 0.0)
    await store.write([Change("space", name, b"x") for name in "abcd"])
    await store.write([Change("space", name, None) for name in "abc"])
    await store.write([Change("space", "b", b"again", expected=0)])
    while set((await _stream(place))["state"]["subjects"]) != {f"$KV.{place.name}.space.{one}" for one in "bd"}:
        await asyncio.sleep(0.01)
    assert (await store.read("space", list("abcd")))["b"].value == b"again"
    assert await store.write([Change("space", "a", b"", expected=0)]) == [True]


async def test_a_marker_that_its_maker_left_is_purged_by_a_scan(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await place.open()
    await first.write([Change("space", "a", b"x"), Change("space", "a", None)])
    await first.close()
    assert (await _stream(place))["state"]["num_subjects"] == 1
    monkeypatch.setattr(driver, "MARKER_S", -1.0)
    second = await place.open()
    assert await second.keys("space") == []
    while (await _stream(place))["state"].get("num_subjects", 0):
        await asyncio.sleep(0.01)
    await second.close()


async def test_other_clients_see_the_records_as_keys_of_a_bucket(store: Store, place: Place) -> None:
    nats = pytest.importorskip("nats")
    await store.write([Change("account", "workflow/run-1", b"books"), Change("account", "gone", b"")])
    await store.write([Change("account", "gone", None)])
    client = await nats.connect(f"nats://{place.address}")
    bucket = await client.jetstream().key_value(place.name)
    entry = await bucket.get("account.workflow/run-1")
    assert entry.value == b"books"
    assert await bucket.keys() == ["account.workflow/run-1"]
    version = await bucket.update("account.workflow/run-1", b"theirs", last=entry.revision)
    record = (await store.read("account", ["workflow/run-1"]))["workflow/run-1"]
    assert record == (version, b"theirs")
    await bucket.delete("account.workflow/run-1")
    assert await store.read("account", ["workflow/run-1"]) == {}
    await client.close()


async def test_what_stands_in_a_records_place(store: Store, place: Place) -> None:
    wire = await server_side.connected(_url(place), "x", 5, "_INBOX.q", _gone)
    await wire.ask(f"$KV.{place.name}.space.two.tokens", b"of another program")
    with pytest.raises(StoreCorrupt, match=r"space\.two\.tokens in .* is not a record of meshd"):
        await store.keys("space")
    assert await store.write([Change("space", "a", b"")]) == [True]
    wire.abort(StoreError("done"))


def _url(place: Place) -> Any:
    from meshd.engines.url import StoreUrl

    return StoreUrl(f"nats://{place.address}")


def _gone(*_: object) -> None:
    pass


async def test_records_and_keys_that_are_too_long(store: Store) -> None:
    with pytest.raises(StoreUnable, match="a record of 2000000 bytes is too long"):
        await store.write([Change("space", "a", b"x" * 2_000_000)])
    with pytest.raises(StoreUnable, match="a key of 2000 characters is too long"):
        await store.read("space", ["ä" * 2000])
    assert await store.write([Change("space", "x" * 2900, b"")]) == [True]
    assert await store.keys("space") == ["x" * 2900]


async def test_a_bucket_that_is_deleted_under_us_is_made_anew(store: Store, place: Place) -> None:
    await store.write([Change("space", "a", b"one")])
    heard: asyncio.Queue[str] = asyncio.Queue()
    await store.watch("space", heard.put_nowait)
    await nats_api(f"STREAM.DELETE.KV_{place.name}")
    with pytest.raises(StoreError, match="is gone, or has no leader"):
        await store.write([Change("space", "b", b"")])
    async with asyncio.timeout(20):
        while await heard.get() != "":
            pass
        assert await store.read("space", ["a"]) == {}
        assert await store.write([Change("space", "b", b"", expected=0)]) == [True]
        while await heard.get() != "b":
            pass


@pytest.mark.parametrize("after", [(nats_wire.Wire, "_ping"), (nats_consumer.Consumer, "_wait")])
async def test_what_came_while_this_process_stood_still_was_no_silence(
    after: tuple[type, str], place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(nats_consumer, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(nats_consumer, "SILENT_S", 0.5)
    monkeypatch.setattr(nats_wire, "PING_EVERY_S", 0.5)
    begin, has_stood = getattr(*after), asyncio.Event()

    def begin_and_stand_still(one: object) -> None:
        begin(one)
        time.sleep(2)  # as in a container that is frozen, once the next look has been planned
        has_stood.set()
        monkeypatch.setattr(*after, begin)

    store = await place.open()
    monkeypatch.setattr(*after, begin_and_stand_still)
    await store.watch("space", lambda _: None)
    await has_stood.wait()
    wire = store._link.current()  # type: ignore[attr-defined]
    for _ in range(3):
        assert await store.write([Change("space", "a", b"")]) == [True]
        await asyncio.sleep(0.2)
    assert store._link.current() is wire  # type: ignore[attr-defined]
    await store.close()


async def test_a_stream_that_another_made_since_we_looked(place: Place) -> None:
    """It is used where it is our bucket (which such a server says overlaps itself), and else the error stands."""
    none, overlap = '{"error": {"err_code": 10059}}', '{"error": {"err_code": 10065, "description": "overlap"}}'
    ours = json.dumps({"config": {"subjects": [f"$KV.{place.name}.>"], "discard": "new", "storage": "file"}})
    wire, url = mock.Mock(Wire, ask=mock.AsyncMock()), StoreUrl(place.url)
    wire.ask.side_effect = [
        Message("", "", 0, b"", text.encode()) for text in (none, overlap, ours, none, overlap, none)
    ]
    assert "sync_interval" in (await server_side.bucket_made(wire, url, "nats", 1)).caution
    with pytest.raises(StoreError, match=r"overlap \(10065\)"):
        await server_side.bucket_made(wire, url, "nats", 1)


async def test_a_server_that_just_let_go_of_its_last_stream_is_asked_again(place: Place) -> None:
    none, gone = '{"error": {"err_code": 10059}}', '{"error": {"err_code": 10049, "description": "no store"}}'
    ours = json.dumps({"config": {"subjects": [f"$KV.{place.name}.>"], "discard": "new", "storage": "file"}})
    wire, url = mock.Mock(Wire, ask=mock.AsyncMock()), StoreUrl(place.url)
    wire.ask.side_effect = [
        Message("", "", 0, b"", text.encode()) for text in (none, gone, ours, none, gone, gone, none)
    ]
    assert "sync_interval" in (await server_side.bucket_made(wire, url, "nats", 1)).caution
    with pytest.raises(StoreError, match=r"no store \(10049\)"):
        await server_side.bucket_made(wire, url, "nats", 1)


async def test_no_jetstream(tmp_path: Path) -> None:
    server = nats_server(tmp_path / "server")
    file = Path(server.command[-1])
    file.write_text(f"host: 127.0.0.1\nport: {server.port}\n")
    async with running(server):
        with pytest.raises(StoreUnable, match="has no JetStream"):
            await _opened(server, tmp_path)


async def test_a_server_that_is_too_old(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_side, "OLDEST", (99, 1))
    with pytest.raises(StoreUnable, match=r"is NATS 2[.\d]+; meshd needs 99\.1 or newer"):
        await place.open()
    monkeypatch.undo()
    await (await place.open()).close()


async def test_passwords_and_tokens(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("s3cret-cänary\n")
    users = 'authorization { users: [{user: "me", password: "s3cret-cänary"}] }'
    async with running(nats_server(tmp_path / "users", users)) as server:
        for user, options in (("me:s3cret-c%C3%A4nary@", ""), ("me@", f"?password_file={file}")):
            await (await _opened(server, tmp_path, user=user, options=options)).close()
        for user in ("", "me:wrong-cänary@", "you:s3cret-cänary@"):
            with pytest.raises(StoreUnable, match="refuses the user, the password or the key") as told:
                await _opened(server, tmp_path, user=user)
            assert "nary" not in str(told.value)
    async with running(nats_server(tmp_path / "token", 'authorization { token: "s3cret-cänary" }')) as server:
        await (await _opened(server, tmp_path, user="s3cret-c%C3%A4nary@")).close()
        await (await _opened(server, tmp_path, options=f"?token_file={file}")).close()
        with pytest.raises(StoreUnable, match="refuses the user, the password or the key"):
            await _opened(server, tmp_path, user="wrong@")


def _keys() -> tuple[str, str]:
    """Return the public key and the seed of a new user key."""
    import os

    import nkeys

    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    return nkeys.from_seed(bytearray(seed)).public_key.decode(), bytes(seed).decode()


async def test_a_key(tmp_path: Path) -> None:
    public, seed = _keys()
    file = tmp_path / "user.nk"
    file.write_text(f"{seed}\n")
    config = f"authorization {{ users: [{{nkey: {public}}}] }}"
    async with running(nats_server(tmp_path / "server", config)) as server:
        store = await _opened(server, tmp_path, options=f"?nkey={file}")
        assert await store.write([Change("space", "a", b"")]) == [True]
        await store.close()
        file.write_text(_keys()[1])
        with pytest.raises(StoreUnable, match="refuses the user, the password or the key"):
            await _opened(server, tmp_path, options=f"?nkey={file}")
        file.write_text("no seed at all")
        with pytest.raises(StoreUnable, match="holds no seed of a NATS key"):
            await _opened(server, tmp_path, options=f"?nkey={file}")


def _jwt(seed: str, claims: dict[str, Any]) -> str:
    import nkeys

    def part(raw: bytes) -> str:
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    pair = nkeys.from_seed(bytearray(seed.encode()))
    claims = {"iss": pair.public_key.decode(), "iat": 1, **claims}
    signed = part(b'{"typ":"JWT","alg":"ed25519-nkey"}') + "." + part(json.dumps(claims).encode())
    return f"{signed}.{part(pair.sign(signed.encode()))}"


async def test_a_credentials_file(tmp_path: Path) -> None:
    import os

    import nkeys

    def pair(prefix: int) -> tuple[str, str]:
        seed = nkeys.encode_seed(os.urandom(32), prefix)
        return nkeys.from_seed(bytearray(seed)).public_key.decode(), bytes(seed).decode()

    operator, operator_seed = pair(nkeys.PREFIX_BYTE_OPERATOR)
    account, account_seed = pair(nkeys.PREFIX_BYTE_ACCOUNT)
    user, user_seed = pair(nkeys.PREFIX_BYTE_USER)
    every = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True, "conn": -1}
    every["leaf"] = -1
    stored = every | {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
    kind = {"type": "operator", "version": 2}
    operator_jwt = _jwt(operator_seed, {"jti": "o", "sub": operator, "name": "O", "nats": kind})
    system, _ = pair(nkeys.PREFIX_BYTE_ACCOUNT)
    account_jwt, system_jwt = (
        _jwt(operator_seed, {"jti": n, "sub": k, "name": n, "nats": {"type": "account", "version": 2, "limits": most}})
        for n, k, most in (("A", account, stored), ("SYS", system, every))
    )
    user_claims = {"type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1}
    user_jwt = _jwt(account_seed, {"jti": "u", "sub": user, "name": "U", "nats": user_claims})
    file = tmp_path / "user.creds"
    file.write_text(
        f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user_seed}\n------END USER NKEY SEED------\n"
    )
    config = f"operator: {operator_jwt}\nsystem_account: {system}\nresolver: MEMORY\n"
    config += f"resolver_preload: {{ {account}: {account_jwt}, {system}: {system_jwt} }}\n"
    async with running(nats_server(tmp_path / "server", config)) as server:
        store = await _opened(server, tmp_path, options=f"?creds={file}")
        assert await store.write([Change("space", "a", b"")]) == [True]
        await store.close()
        file.write_text(user_seed)
        with pytest.raises(StoreUnable, match="holds no user JWT"):
            await _opened(server, tmp_path, options=f"?creds={file}")
        with pytest.raises(StoreUnable, match="refuses"):
            await _opened(server, tmp_path)


async def test_a_user_that_may_too_little(tmp_path: Path) -> None:
    users = 'authorization { users: [{user: me, password: pw, permissions: {publish: "nothing", subscribe: ">"}}] }'
    async with running(nats_server(tmp_path / "server", users)) as server:
        with pytest.raises(StoreUnable, match="does not let this user do what meshd must"):
            await _opened(server, tmp_path, user="me:pw@")


async def test_tls(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path / "tls")
    async with running(nats_server(tmp_path / "server", f'tls {{ cert_file: "{cert}", key_file: "{key}" }}')) as server:
        for scheme in ("tls", "nats"):
            store = await _opened(server, tmp_path, scheme=scheme, options=f"?ca={cert}")
            assert await store.write([Change("space", "a", b"")]) == [True]
            await store.close()
            with pytest.raises(StoreUnable, match="certificate that is not trusted"):
                await _opened(server, tmp_path, scheme=scheme)


async def test_no_password_is_said_where_tls_was_asked_for_and_is_not_spoken(place: Place, tmp_path: Path) -> None:
    said = bytearray()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"version":"2.10.0","headers":true,"max_payload":1048576}\r\n')
        while data := await reader.read(1000):
            said.extend(data)

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(StoreUnable, match="does not speak TLS"):
        await open_store(f"tls://me:canary@127.0.0.1:{port}", tmp_path)
    assert said == b""
    server.close()


@pytest.mark.parametrize(
    "line",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"INFO {nonsense}\r\n", b"INFO []\r\n", b"\x00" * 2_000_000, b"MSG a\r\n"],
)
async def test_what_does_not_speak_nats(line: bytes, tmp_path: Path) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(line)

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(StoreError, match="does not speak NATS's protocol"):
        await open_store(f"nats://127.0.0.1:{port}", tmp_path)
    server.close()


def test_keys_are_written_in_what_a_subject_allows_and_read_back() -> None:
    for text in ("", "a", "workflow/run-1", "a.b", "*", ">", " ", "=", "=2E", "ä\U0001f600", "\x00\r\n", "A=41"):
        token = encoded(text)
        assert decoded(token) == text
        assert token.isascii()
        assert token
        assert not set(token) & set(".*> \r\n\x00")
    for foreign in ("a.b", "=", "==", "=2", "=2e", "=41", "=FF", "a b", "ä", "="):
        assert foreign == "=" or decoded(foreign) is None


def test_a_key_without_the_package_that_signs(tmp_path: Path) -> None:
    program = (
        "import sys\nsys.modules['nkeys'] = None\n"
        "from meshd.engines.nats_server import _credentials\nfrom meshd.engines.nats_wire import Info\n"
        "from meshd.engines.url import StoreUrl\n"
        "try:\n    _credentials(StoreUrl('nats://h?nkey=/dev/null'), Info())\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("StoreUnable")
    assert "pip install 'agent-meshd[nats]'" in done.stdout
