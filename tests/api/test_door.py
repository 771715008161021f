"""The door: which wire is spoken, who may come, what nonsense does, and how it closes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from meshd.api import door as doors
from meshd.api import json_http
from meshd.api.door import DoorError
from meshd.api.services import SERVICES
from meshd.api.socket_file import SocketFileError, listening
from meshd.api.splice import End
from meshd.config import Address, ConfigError, parse_api
from meshd.refusal import Reason, Refused
from meshd_sdk.v1 import context_pb2, context_pb2_grpc, session_pb2
from tests.api.house import PREFACE, house, refusal, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.both_loops

OPEN = "/meshd.v1.ContextService/Open"


async def test_one_port_and_one_socket_speak_both_wires(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        assert (await one.open("report-42")).workflow == "report-42"
        status, said = await one.ask("ContextService/Open", {"workflow": "report-43"})
        assert (status, said["context"]["account"]) == (200, "workflow/report-43")
        async with grpc.aio.insecure_channel(f"unix:{one.door.path}") as channel:
            stub = context_pb2_grpc.ContextServiceStub(channel)
            assert (await stub.Open(context_pb2.OpenRequest(workflow="w3"))).context.agent == "ann"
        connector = aiohttp.UnixConnector(str(one.door.path))
        session = aiohttp.ClientSession(connector=connector)
        async with session, session.post(f"http://anything.example{OPEN}", json={}) as reply:
            assert (await reply.json())["context"]["workflow"].startswith("wf-")


async def test_a_client_of_the_connect_protocol_may_speak_protobuf(tmp_path: Path) -> None:
    async with house(tmp_path) as one, aiohttp.ClientSession() as session:
        body = context_pb2.OpenRequest(workflow="w").SerializeToString()
        headers = {"content-type": "application/proto", "connect-protocol-version": "1", "connect-timeout-ms": "5000"}
        async with session.post(f"http://{one.address}{OPEN}", data=body, headers=headers) as reply:
            assert reply.content_type == "application/proto"
            found = context_pb2.OpenResponse.FromString(await reply.read())
        assert found.context.workflow == "w"
        for wrong in ("0", "-1", "1.5", "soon", "12345678901"):
            status, said = await one.ask("ContextService/Open", {}, headers={"connect-timeout-ms": wrong})
            assert (status, said["code"]) == (400, "invalid_argument")
        status, said = await one.ask("ContextService/Open", b"x" * 20, headers={"content-encoding": "gzip"})
        assert (status, said["code"]) == (501, "unimplemented")


async def test_what_is_here_is_said(tmp_path: Path) -> None:
    async with (
        house(tmp_path) as one,
        aiohttp.ClientSession() as session,
        session.get(f"http://{one.address}/") as reply,
    ):
        text = await reply.text()
    assert all(service.name in text for service in SERVICES)


async def test_nothing_of_the_admin_port_is_here(tmp_path: Path) -> None:
    async with house(tmp_path) as one, aiohttp.ClientSession() as session:
        for path in ("/v1/status", "/v1/accounts", "/v1/policy", "/metrics", "/v1/reload", "/v1/drain"):
            for method in ("GET", "POST"):
                async with session.request(method, f"http://{one.address}{path}") as reply:
                    assert reply.status in (404, 405)


@pytest.mark.parametrize("face", ["grpc", "json"])
async def test_a_refusal_says_the_same_on_both_faces(tmp_path: Path, face: str) -> None:
    async with house(tmp_path) as one:
        if face == "grpc":
            ended = await refusal(one.contexts.Read(context_pb2.ReadRequest(token="nonsense")))
            assert ended.code() is grpc.StatusCode.UNAUTHENTICATED
            trailers = dict(ended.trailing_metadata() or ())
            assert trailers["grpc-retry-pushback-ms"] == "-1"
            status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
            assert (status.code, status.message) == (16, ended.details())
            info = error_details_pb2.ErrorInfo()
            assert status.details[0].Unpack(info)
            assert (info.reason, info.domain) == ("context_invalid", "meshd")
        else:
            http, said = await one.ask("ContextService/Read", {"token": "nonsense"})
            assert (http, said["code"]) == (401, "unauthenticated")
            assert said["message"].startswith("The context token does not verify")
            assert said["details"][0]["debug"]["reason"] == "context_invalid"


# ------------------------------------------------------------------ nonsense

GARBAGE = {
    "nothing but zeros": bytes(64),
    "a TLS hello": bytes.fromhex("160301020001000001fc0303") + bytes(50),
    "half a preface, then other things": PREFACE[:10] + b"GET / HTTP/1.1\r\n\r\n",
    "no method": b"\xff\xfe\xfd / HTTP/1.1\r\n\r\n",
    "a head without an end": b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 100_000,
    "two lengths": b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx",
    "both length and chunks": (
        b"POST /a/b HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "a preface and no frames": PREFACE + b"\xff" * 512,
    "a frame too long": PREFACE + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + bytes(100),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_garbage_ends_its_own_connection_alone(tmp_path: Path, garbage: bytes) -> None:
    async with house(tmp_path) as one:
        reader, writer = await one.connect()
        writer.write(garbage)
        got = b""
        with_error = False
        try:
            async with asyncio.timeout(30):
                got = await reader.read()
        except ConnectionError:
            with_error = True
        assert with_error or b" 200 " not in got.split(b"\r\n")[0]
        writer.close()
        assert (await one.open()).workflow == "w"
        await until(lambda: len(one.door.connections) <= 1)


@pytest.mark.parametrize("first", [b"", b"P", PREFACE[:23]])
async def test_a_connection_that_does_not_speak_is_closed(tmp_path: Path, first: bytes) -> None:
    async with house(tmp_path, first_bytes_s=0.05) as one:
        reader, writer = await one.connect()
        writer.write(first)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        await until(lambda: not one.door.connections)
        writer.close()


async def test_a_head_that_only_drips_is_closed(tmp_path: Path) -> None:
    async with house(tmp_path, idle_s=0.1) as one:
        reader, writer = await one.connect()
        writer.write(b"POST /meshd.v1.ContextService/Open HTTP/1.1\r\nhost: localh")
        assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", 200),
        (b"{}", 200),
        (b'{"workflow": "w", "fieldOfTomorrow": {"a": [1]}}', 200),
        (b"[]", 400),
        (b"null", 400),
        (b"{", 400),
        (b'{"workflow": 5}', 400),
        (b'{"workflow": "a b"}', 400),
        (b'{"timeout": "-3s"}', 400),
        (b'{"timeout": "soon"}', 400),
        (b'{"ceilingTokens": "-1"}', 400),
        (b'{"ceilingTokens": "99999999999999999999999"}', 400),
        (b'{"ceilingMicrodollars": "1"}', 400),
        (b'{"traceparent": "00-zz"}', 400),
        (b'{"agent": "\\ud800"}', 400),
        (b"\xff\xfe", 400),
        (b'{"timeout":' * 2000, 400),
    ],
)
async def test_json_that_is_no_request(tmp_path: Path, body: bytes, code: int) -> None:
    async with house(tmp_path) as one:
        status, said = await one.ask("ContextService/Open", body)
        assert status == code, said
        if code == 400:
            assert said["code"] == "invalid_argument"
            assert said["message"]


async def test_bytes_that_are_no_message(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        call = one.channel.unary_unary(OPEN)
        for body in (b"\xff" * 20, b"\x0a\xff", b"\x0a\x02\xff\xfe"):
            ended = await refusal(call(body))
            assert ended.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "OpenRequest" in str(ended.details())


async def test_a_newer_client_has_fields_that_are_passed_over(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        newer = context_pb2.OpenRequest(workflow="w").SerializeToString() + b"\xfa\x3f\x03new"
        answer = await one.channel.unary_unary(OPEN)(newer)
        assert context_pb2.OpenResponse.FromString(answer).context.workflow == "w"


async def test_what_is_not_there_is_said_to_be_not_there(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        for path in ("/meshd.v1.ContextService/Close", "/meshd.v1.StateService/Checkout", "/x"):
            ended = await refusal(one.channel.unary_unary(path)(b""))
            assert ended.code() is grpc.StatusCode.UNIMPLEMENTED
        for path in ("ContextService/Close", "StateService/Checkout", "ContextService/open"):
            status, said = await one.ask(path, {})
            assert (status, said["code"]) == (404, "unimplemented")
        status, _ = await one.ask("ContextService/Open", b"{}", headers={"content-type": "text/plain"})
        assert status == 415


async def test_messages_that_are_too_large(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        body = context_pb2.OpenRequest(workflow="w" * (5 * 2**20)).SerializeToString()
        ended = await refusal(one.channel.unary_unary(OPEN)(body))
        assert ended.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await one.open()).workflow == "w"
        reader, writer = await one.connect()
        writer.write(f"POST {OPEN} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n".encode())
        writer.write(b"content-length: 5000000\r\n\r\n" + b" " * 5_000_000)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429 ")
        assert b"a request has at most" in (await reader.read()).lower()
        writer.close()


async def test_metadata_that_is_too_large(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        call = one.contexts.Open(context_pb2.OpenRequest(), metadata=(("x-much", "y" * 40_000),))
        assert (await refusal(call)).code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
        assert (await one.open()).workflow == "w"


# ------------------------------------------------------------------ who may come


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


# ------------------------------------------------------------------ standard services


async def test_health_knows_every_service_and_follows_the_books(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        stub = health_pb2_grpc.HealthStub(one.channel)
        for name in ("", *(service.name for service in SERVICES)):
            assert (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status == 1
        ended = await refusal(stub.Check(health_pb2.HealthCheckRequest(service="meshd.v1.None")))
        assert ended.code() is grpc.StatusCode.NOT_FOUND
        await one.mesh.ledger.close()
        one.mesh.ledger._lost(Refused(Reason.INTERNAL, "gone"))  # type: ignore[arg-type]
        found = await stub.Check(health_pb2.HealthCheckRequest(service="meshd.v1.BudgetService"))
        assert found.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_reflection_describes_the_services(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        stub = reflection_pb2_grpc.ServerReflectionStub(one.channel)

        async def ask() -> Any:
            yield reflection_pb2.ServerReflectionRequest(list_services="")
            yield reflection_pb2.ServerReflectionRequest(file_containing_symbol="meshd.v1.BudgetService")

        answers = [answer async for answer in stub.ServerReflectionInfo(ask())]
    listed = {service.name for service in answers[0].list_services_response.service}
    assert {service.name for service in SERVICES} <= listed
    assert answers[1].file_descriptor_response.file_descriptor_proto


# ------------------------------------------------------------------ streams


class Echo:
    """A stream that answers each Hello with a Welcome; one named `refuse` is refused."""

    def __init__(self, mesh: Any) -> None:
        self.mesh = mesh

    async def connect(self, frames: Any, send: Any, peer: str) -> None:
        async for frame in frames:
            if frame.hello.session == "refuse":
                raise Refused(Reason.MALFORMED, "hello.session must be another.")
            await send(session_pb2.ConnectResponse(welcome=session_pb2.Welcome(session=frame.hello.session)))


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    from meshd.api.services import Service

    return (*SERVICES[:1], Service("meshd.v1.SessionService", "meshd_sdk.v1.session_pb2", __name__, "Echo"))


CONNECT = "/meshd.v1.SessionService/Connect"


def hello(session: str) -> session_pb2.ConnectRequest:
    return session_pb2.ConnectRequest(hello=session_pb2.Hello(session=session))


async def test_a_stream_over_grpc(tmp_path: Path, streams: Any) -> None:
    async with house(tmp_path, services=streams) as one:
        call = one.channel.stream_stream(
            CONNECT,
            request_serializer=session_pb2.ConnectRequest.SerializeToString,
            response_deserializer=session_pb2.ConnectResponse.FromString,
        )()
        await call.write(hello("a"))
        assert (await call.read()).welcome.session == "a"
        await call.write(hello("refuse"))
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call.read()
        assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_over_a_websocket(tmp_path: Path, streams: Any) -> None:
    async with house(tmp_path, services=streams) as one, aiohttp.ClientSession() as session:
        url = f"http://{one.address}{CONNECT}"
        async with session.ws_connect(url) as stream:
            await stream.send_str('{"hello": {"session": "a"}, "fieldOfTomorrow": 1}')
            assert (await stream.receive_json())["welcome"]["session"] == "a"
            await stream.send_str("{")
            assert (await stream.receive_json())["error"]["code"] == "invalid_argument"
            assert (await stream.receive()).type is aiohttp.WSMsgType.CLOSE
        async with session.ws_connect(url) as stream:
            await stream.send_bytes(b"\x00")
            assert (await stream.receive_json())["error"]["code"] == "invalid_argument"
        async with session.get(url) as reply:
            assert reply.status == 426
        async with session.post(url, json={}) as reply:
            assert reply.status == 405
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await session.ws_connect(url, origin="https://evil.example")
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await session.ws_connect(f"http://{one.address}{OPEN}")


# ------------------------------------------------------------------ many, and slow ones


async def test_many_at_once_get_each_their_own(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        await one.open()
        asked = [one.open(f"w{number}") for number in range(200)]
        posted = [one.ask("ContextService/Open", {"workflow": f"p{number}"}) for number in range(50)]
        opened = await asyncio.gather(*asked)
        answered = await asyncio.gather(*posted)
        assert [context.workflow for context in opened] == [f"w{number}" for number in range(200)]
        assert [said["context"]["workflow"] for _, said in answered] == [f"p{number}" for number in range(50)]


async def test_a_client_that_never_reads_holds_a_bounded_amount(tmp_path: Path, streams: Any) -> None:
    """It floods a stream that echoes, and takes nothing: the flood stands still, and others are served."""
    async with house(tmp_path, services=streams) as one:
        await one.open()
        before = rss_bytes()
        channel = grpc.aio.insecure_channel(one.address, options=(("grpc.use_local_subchannel_pool", 1),))
        call = channel.stream_stream(CONNECT)()
        body = hello("x" * 60_000).SerializeToString()
        written = asyncio.ensure_future(flood(call, body))
        held = -1
        # It stands still where a second look finds no more.
        while held != (held := written_bytes(one)):
            await asyncio.sleep(0.2)
        assert not written.done()
        assert held < 2**20
        assert rss_bytes() - before < 64 * 2**20
        assert (await one.open()).workflow == "w"
        call.cancel()
        written.cancel()
        await asyncio.gather(written, return_exceptions=True)
        await channel.close(grace=None)
        assert (await one.open()).workflow == "w"


async def test_an_answer_that_is_never_read_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_http, "WRITE_TIMEOUT_S", 0.2)
    async with house(tmp_path) as one:
        token = (await one.open()).token
        entries = [{"id": f"{at}", "began": "2026-11-26T09:00:00Z", "note": {"text": "x" * 4096}} for at in range(240)]
        assert (await one.ask("TraceService/Record", {"token": token, "entries": entries}))[0] == 200
        body = json.dumps({"token": token, "entriesMax": 1000}).encode()
        head = f"POST /meshd.v1.TraceService/List HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
        silent = socket.socket(socket.AF_UNIX)
        silent.connect(str(one.door.path))
        silent.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + body)
        assert one.door._runner is not None
        server = one.door._runner.server
        assert server is not None
        await until(lambda: server.connections)
        await until(lambda: not server.connections)
        silent.close()


async def flood(call: Any, body: bytes) -> None:
    for _ in range(10_000):
        await call.write(body)


def written_bytes(one: Any) -> int:
    """What splices hold for either side."""
    ends = [end for end in one.door.connections if isinstance(end, End)]
    ends += [end.other for end in ends if end.other is not None]
    return sum(end.transport.get_write_buffer_size() for end in ends)


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ------------------------------------------------------------------ the end


async def test_a_drain_lets_what_runs_end_and_takes_nothing_more(tmp_path: Path, streams: Any) -> None:
    async with house(tmp_path, services=streams) as one:
        call = one.channel.stream_stream(
            CONNECT,
            request_serializer=session_pb2.ConnectRequest.SerializeToString,
            response_deserializer=session_pb2.ConnectResponse.FromString,
        )()
        await call.write(hello("a"))
        await call.read()
        watch = health_pb2_grpc.HealthStub(one.channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == 1
        draining = asyncio.ensure_future(one.door.drain(60.0))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await call.write(hello("b"))
        assert (await call.read()).welcome.session == "b"
        assert not draining.done()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        await draining
        with pytest.raises(OSError):
            await one.connect()


async def test_a_drain_lets_a_websocket_end(tmp_path: Path, streams: Any) -> None:
    async with house(tmp_path, services=streams) as one, aiohttp.ClientSession() as session:
        async with session.ws_connect(f"http://{one.address}{CONNECT}") as stream:
            await stream.send_str('{"hello": {"session": "a"}}')
            await stream.receive_json()
            draining = asyncio.ensure_future(one.door.drain(60.0))
            await stream.send_str('{"hello": {"session": "b"}}')
            assert (await stream.receive_json())["welcome"]["session"] == "b"
            assert not draining.done()
        await draining


async def test_a_drain_ends_in_time_whoever_stays(tmp_path: Path, streams: Any) -> None:
    async with house(tmp_path, services=streams) as one:
        call = one.channel.stream_stream(CONNECT)()
        await call.write(hello("a").SerializeToString())
        await call.read()
        await one.door.drain(0.05)
        ended = await call.code()
        assert ended in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_requests_under_way_survive_a_drain(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        await one.open()
        asked = [asyncio.ensure_future(one.open(f"w{number}")) for number in range(100)]
        await asyncio.sleep(0)
        await one.door.drain(30.0)
        ended = await asyncio.gather(*asked, return_exceptions=True)
        answered = [one for one in ended if not isinstance(one, BaseException)]
        others = [one for one in ended if isinstance(one, BaseException)]
        assert len(answered) + len(others) == 100
        for error in others:
            assert isinstance(error, grpc.aio.AioRpcError)
            # It was not begun: a client may ask another sidecar.
            assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_while_draining_http_is_told_so(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        one.mesh.proxy.is_draining = True
        status, said = await one.ask("ContextService/Open", {})
        assert (status, said["code"]) == (503, "unavailable")
        assert said["details"][0]["debug"]["reason"] == "draining"
