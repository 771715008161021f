"""Who may come through the door: names, pages, users, addresses, numbers; and the socket's file."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from meshd.api import door as doors
from meshd.api.door import DoorError
from meshd.api.socket_file import SocketFileError, listening
from meshd.config import Address, ConfigError, parse_api
from meshd_sdk.v1 import context_pb2
from tests.api.house import house, refusal, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.both_loops

OPEN = "/meshd.v1.ContextService/Open"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7402", "127.0.0.1.evil.example", "10.0.0.1", "", "a b"])
async def test_a_name_that_was_rebound_is_refused(tmp_path: Path, host: str) -> None:
    async with house(tmp_path) as one:
        status, said = await one.ask("ContextService/Open", {}, headers={"Host": host})
        assert status in (400, 403)
        if status == 403:
            assert said["code"] == "permission_denied"


async def test_an_absolute_target_is_judged_too(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        reader, writer = await one.connect()
        writer.write(f"POST http://evil.example{OPEN} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 403 ")
        writer.close()


async def test_pages_of_other_origins_are_refused_on_both_faces(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
            status, said = await one.ask("ContextService/Open", {}, headers=headers)
            assert (status, said["code"]) == (403, "permission_denied")
        call = one.contexts.Open(context_pb2.OpenRequest(), metadata=(("origin", "https://evil.example"),))
        assert (await refusal(call)).code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com", "localhost.evil.example"])
async def test_only_loopback_is_listened_on(tmp_path: Path, host: str) -> None:
    async with house(tmp_path) as one:
        with pytest.raises(DoorError, match="loopback"):
            await doors.Door(one.mesh, home=tmp_path).start(Address(host, 0))


async def test_the_socket_is_this_users_alone(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        assert one.door.path is not None
        found = one.door.path.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, os.geteuid())
        await one.open()
        assert one.door._grpc is not None
        assert stat.S_IMODE(one.door._grpc.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(one.door._grpc.path.parent.stat().st_mode) == 0o700
    assert {path.name for path in tmp_path.iterdir()} == {"mesh.key", "policy.yaml"}


@pytest.fixture
def open_home() -> Iterator[Path]:
    """A directory that other users can look into; those of tests are in one that they cannot."""
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o755)
        yield Path(home)


async def test_another_users_process_is_turned_away(open_home: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    async with house(open_home) as one:
        assert one.door.path is not None
        one.door.path.chmod(0o666)
        program = (
            "import os, socket, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534);"
            "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
            "s.sendall(b'GET / HTTP/1.1\\r\\nhost: localhost\\r\\n\\r\\n'); sys.stdout.buffer.write(s.recv(100))"
        )
        process = await asyncio.create_subprocess_exec(
            "python3", "-c", program, str(one.door.path), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, error = await process.communicate()
        assert out == b"", (out, error)
        assert b"PermissionError" not in error


async def test_more_connections_than_may_be_are_closed(tmp_path: Path) -> None:
    async with house(tmp_path, connections_max=2) as one:
        held = [await one.connect() for _ in range(2)]
        await until(lambda: len(one.door.connections) == 2)
        reader, writer = await one.connect()
        try:
            assert await reader.read() == b""
        except ConnectionError:
            pass
        for _, open_one in (*held, (reader, writer)):
            open_one.close()
        await until(lambda: not one.door.connections)
        assert (await one.ask("ContextService/Open", {}))[0] == 200


# ------------------------------------------------------------------ the socket's file


async def test_a_stale_socket_is_replaced_and_a_living_one_is_not(tmp_path: Path, caplog: Any) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "api.sock"))
    left.close()
    async with house(tmp_path) as one:
        assert one.door.path == tmp_path / "api.sock"
        other = doors.Door(one.mesh, home=tmp_path)
        await other.start(Address("127.0.0.1", 0))
        assert other.path is None
        assert "another meshd listens there" in caplog.text
        await other.close()
        assert (tmp_path / "api.sock").is_socket()
    assert not (tmp_path / "api.sock").exists()


async def test_a_path_that_is_too_long_leaves_the_port_alone(tmp_path: Path, caplog: Any) -> None:
    home = tmp_path / ("d" * 100)
    home.mkdir()
    async with house(home) as one:
        assert one.door.path is None
        assert "only its port" in caplog.text
        assert (await one.open()).workflow == "w"


def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    (tmp_path / "api.sock").write_text("mine")
    with pytest.raises(SocketFileError, match="no socket"):
        listening(tmp_path / "api.sock")
    assert (tmp_path / "api.sock").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7402", Address("127.0.0.1", 7402)),
        ("[::1]:5", Address("::1", 5)),
        ("off", None),
        ("OFF", None),
    ],
)
def test_the_setting(text: str, expected: Address | None) -> None:
    assert parse_api(text, "--api") == expected


@pytest.mark.parametrize("text", ["", "x", "unix:/run/api.sock", "1:99999", "127.0.0.1:"])
def test_a_setting_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--api"):
        parse_api(text, "--api")
