"""The door: which wire is spoken, what a refusal looks like, what nonsense does."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from meshd.api.services import SERVICES
from meshd.refusal import Reason, Refused
from meshd_sdk.v1 import context_pb2, context_pb2_grpc
from tests.api.house import PREFACE, house, refusal, until

if TYPE_CHECKING:
    pass

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
            assert (info.reason, info.domain) == ("CONTEXT_INVALID", "meshd")
        else:
            http, said = await one.ask("ContextService/Read", {"token": "nonsense"})
            assert (http, said["code"]) == (401, "unauthenticated")
            assert said["message"].startswith("The context token does not verify")
            assert said["details"][0]["debug"]["reason"] == "CONTEXT_INVALID"


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
        (b'{"ceilingMicrodollars": "-1"}', 400),
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
        for path in ("/meshd.v1.ContextService/Close", "/meshd.v1.StateService/Burn", "/x"):
            ended = await refusal(one.channel.unary_unary(path)(b""))
            assert ended.code() is grpc.StatusCode.UNIMPLEMENTED
        for path in ("ContextService/Close", "StateService/checkout", "ContextService/open"):
            status, said = await one.ask(path, {})
            assert (status, said["code"]) == (404, "unimplemented")
            assert f"no method /meshd.v1.{path}" in said["message"]
        status, said = await one.ask("ContextService/Open", b"{}", headers={"content-type": "text/plain"})
        assert status == 415
        assert said["message"] == "text/plain is not read here: send application/json or application/proto"


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


LONG = b"x" * 9000


@pytest.mark.parametrize(
    ("head", "status", "code", "reason"),
    [
        (b"POST /" + LONG + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", 429, "resource_exhausted", "TOO_LARGE"),
        (b"POST /" + LONG, 429, "resource_exhausted", "TOO_LARGE"),
        (b"POST / HTTP/1.1\r\nx: " + LONG + b"\r\n\r\n", 429, "resource_exhausted", "TOO_LARGE"),
        (b"POST / HTTP/1.1\r\n" + b"x: y\r\n" * 65 + b"\r\n", 400, "invalid_argument", "MALFORMED"),
        (b"POST / HTTP/1.1\r\nno field\r\n\r\n", 400, "invalid_argument", "MALFORMED"),
        (b"P\xffST / HTTP/1.1\r\n\r\n", 400, "invalid_argument", "MALFORMED"),
    ],
)
async def test_a_head_that_cannot_be_read_is_refused_in_json(
    tmp_path: Path, head: bytes, status: int, code: str, reason: str
) -> None:
    async with house(tmp_path) as one:
        reader, writer = await one.connect()
        writer.write(head)
        front, _, said = (await reader.read()).partition(b"\r\n\r\n")
        first, *fields = front.decode().lower().split("\r\n")
        assert first.split()[1] == str(status)
        assert {"content-type: application/json", "cache-control: no-store"} <= set(fields)
        answer = json.loads(said)
        assert (answer["code"], answer["details"][0]["debug"]["reason"]) == (code, reason)
        assert "8190" in answer["message"] or reason == "MALFORMED"
        writer.close()


async def test_metadata_that_is_too_large(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        call = one.contexts.Open(context_pb2.OpenRequest(), metadata=(("x-much", "y" * 40_000),))
        assert (await refusal(call)).code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
        assert (await one.open()).workflow == "w"


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
