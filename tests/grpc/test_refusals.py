"""Refusals as real clients see them: the status, what a program may read of it, and whether they try again."""

from __future__ import annotations

import base64
import json
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from meshd.outcome import Verdict
from meshd.refusal import TABLE, Reason, Refused
from meshd.wire.grpc import DETAILS_BYTES_MAX, MESSAGE_BYTES_MAX
from tests.grpc import testing_pb2 as pb
from tests.grpc.conftest import policy
from tests.ports import free_port
from tests.proxy.harness import CHAT, get

GRPC = (("content-type", "application/grpc"), ("te", "trailers"))
SERVICE = "/grpc.testing.TestService"
WORKFLOW = (("x-meshd-workflow", "task-1"),)


async def refused_by(stub: Any, *, metadata: Any = WORKFLOW) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.UnaryCall(pb.SimpleRequest(), metadata=metadata)
    return caught.value


def info(error: grpc.aio.AioRpcError) -> Any:
    """Return the ErrorInfo of an error's details, by Google's own classes."""
    trailers = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.code == error.code().value[0]
    (detail,) = status.details
    found = error_details_pb2.ErrorInfo()
    assert detail.Unpack(found)
    # Both may be cut, each at its own length.
    said = str(error.details())
    assert said.startswith(status.message) or status.message.startswith(said)
    return found


@pytest.mark.parametrize("reason", Reason)
async def test_every_reason_has_its_status_details_and_push_back(
    mesh: Any, serve: Any, stub: Any, reason: Reason
) -> None:
    server = await serve()
    one = await mesh(policy(server.port))

    def refuse(call: Any) -> None:
        raise Refused(reason, "No: 100 % sure, „wirklich“ \n 😈", rule="the-rule", retry_after_s=3)

    one.per_call.on_admit = refuse
    error = await refused_by(stub(one.port))
    assert error.code().value[0] == TABLE[reason].grpc
    assert error.details() == "No: 100 % sure, „wirklich“ \n 😈"
    found = info(error)
    call = dict(error.trailing_metadata())["x-meshd-call"]
    assert (found.reason, found.domain) == (reason.value.upper(), "meshd")
    assert dict(found.metadata) == {"call": call, "workflow": "task-1", "rule": "the-rule"}
    trailers = dict(error.trailing_metadata())
    assert trailers["grpc-retry-pushback-ms"] == ("3000" if TABLE[reason].is_retryable else "-1")
    assert (trailers["x-meshd-decision"], trailers["x-meshd-reason"]) == ("refuse", reason.value)
    assert not {"x-should-retry", "retry-after"} & set(trailers)
    assert server.servicer.calls == 0


@pytest.mark.parametrize("letter", ["a", "ü", "😈", "%"])
async def test_a_message_of_any_length_fits_into_metadata(mesh: Any, serve: Any, stub: Any, letter: str) -> None:
    one = await mesh(policy((await serve()).port))

    def refuse(call: Any) -> None:
        raise Refused(Reason.NOT_ALLOWED, letter * 9000, rule="r" * 5000)

    one.per_call.on_admit = refuse
    error = await refused_by(stub(one.port))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    details = str(error.details())
    assert 0 < len(details) < 9000
    assert details == letter * len(details)
    assert info(error).metadata["rule"] == "r" * 256
    raw = dict(error.trailing_metadata())["grpc-status-details-bin"]
    assert len(base64.b64encode(raw)) <= DETAILS_BYTES_MAX
    assert MESSAGE_BYTES_MAX + DETAILS_BYTES_MAX < 8192 - 2048


RETRIES = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": "grpc.testing.TestService"}],
                "retryPolicy": {
                    "maxAttempts": 3, "initialBackoff": "0.01s", "maxBackoff": "0.01s", "backoffMultiplier": 1,
                    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
                },
            }
        ]
    }
)  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "attempts"), [(Reason.BUDGET_EXHAUSTED, 1), (Reason.CIRCUIT_OPEN, 1), (Reason.BUDGET_BUSY, 2)]
)
async def test_a_client_with_a_retry_policy_heeds_the_push_back(
    mesh: Any, serve: Any, stub: Any, reason: Reason, attempts: int
) -> None:
    server = await serve()
    one = await mesh(policy(server.port))
    seen: list[Any] = []

    def refuse_once(call: Any) -> None:
        seen.append(dict(call.headers))
        if len(seen) == 1:
            raise Refused(reason, "not now", retry_after_s=1)

    one.per_call.on_admit = refuse_once
    made = stub(one.port, grpc__service_config=RETRIES)
    if attempts == 1:
        assert (await refused_by(made)).code().value[0] == TABLE[reason].grpc
    else:
        assert await made.EmptyCall(pb.Empty()) == pb.Empty()
        assert seen[1][b"grpc-previous-rpc-attempts"] == b"1"
    assert len(seen) == attempts
    assert server.servicer.calls == attempts - 1


async def test_an_upstream_that_is_not_there(mesh: Any, stub: Any) -> None:
    one = await mesh(policy(free_port()))
    error = await refused_by(stub(one.port))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert info(error).reason == "UPSTREAM_UNREACHABLE"
    assert one.attempts[0].outcome.verdict is Verdict.FAILURE


async def test_an_upstream_that_the_policy_calls_http1(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    one = await mesh(policy(server.port, ", protocol: http/1.1"))
    error = await refused_by(stub(one.port))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "HTTP/2" in str(error.details())
    assert server.servicer.calls == 0


async def test_the_ways_to_name_an_upstream(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    one = await mesh(policy(server.port))
    named = (("x-meshd-target", "up"),)
    for made, metadata in (
        (stub(one.port, authority="up.mesh"), ()),
        (stub(one.port, authority="up.mesh:7400"), ()),
        (stub(one.port, authority=""), named),
        (stub(one.port, authority="localhost"), named),
        (stub(one.port, authority="up.mesh"), named),
    ):
        assert await made.EmptyCall(pb.Empty(), metadata=metadata) == pb.Empty()
    assert server.servicer.calls == 5


@pytest.mark.parametrize(
    ("authority", "metadata", "status"),
    [
        ("", (), "NOT_FOUND"),
        ("nobody.mesh", (), "NOT_FOUND"),
        ("", (("x-meshd-target", "nobody"),), "NOT_FOUND"),
        ("", (("x-meshd-target", ""),), "NOT_FOUND"),
        ("", (("x-meshd-target", "http://127.0.0.1:1"),), "NOT_FOUND"),
        ("", (("x-meshd-target", "up"), ("x-meshd-target", "up")), "INVALID_ARGUMENT"),
        ("other.mesh", (("x-meshd-target", "up"),), "INVALID_ARGUMENT"),
        ("evil.example", (("x-meshd-target", "up"),), "PERMISSION_DENIED"),
        ("evil.example", (), "PERMISSION_DENIED"),
    ],
)
async def test_an_upstream_that_is_named_wrongly(
    mesh: Any, serve: Any, stub: Any, authority: str, metadata: Any, status: str
) -> None:
    server = await serve()
    one = await mesh(policy(server.port))
    error = await refused_by(stub(one.port, authority=authority), metadata=metadata)
    assert error.code().name == status
    if status == "NOT_FOUND":
        assert "x-meshd-target" in str(error.details())
    assert server.servicer.calls == 0


async def test_a_forged_context_is_unauthenticated(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    one = await mesh(policy(server.port))
    made = stub(one.port)
    await made.EmptyCall(pb.Empty(), metadata=WORKFLOW)
    token = server.servicer.metadata[0]["x-meshd-context"]
    # What the sidecar itself has issued to the agent that it calls is taken from that agent, and from no other.
    await made.EmptyCall(pb.Empty(), metadata=(("x-meshd-context", token),))
    minted = server.servicer.metadata[1]["x-meshd-context"]
    assert minted != token
    for forged in (token[:-4] + "AAAA", token[: len(token) // 2], "nonsense", ""):
        error = await refused_by(made, metadata=(("x-meshd-context", forged),))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED, forged
        assert info(error).reason == "CONTEXT_INVALID"
    twice = (("x-meshd-context", token), ("x-meshd-context", token))
    assert (await refused_by(made, metadata=twice)).code() is grpc.StatusCode.UNAUTHENTICATED
    assert server.servicer.calls == 2


DENY = "  - {match: {operation: %s}, deny: not this one}\n"


@pytest.mark.parametrize(
    ("glob", "refused"),
    [
        ('"grpc.testing.TestService/*"', ("UnaryCall", "EmptyCall")),
        ("grpc.testing.TestService/UnaryCall", ("UnaryCall",)),
        ('"*/Unary*"', ("UnaryCall",)),
        ('"POST *"', ("UnaryCall", "EmptyCall")),
        ('"POST /grpc.testing.TestService/EmptyCall"', ("EmptyCall",)),
        ('"DELETE *"', ()),
        ('"testing.TestService/*"', ()),
    ],
)
async def test_rules_see_service_and_method(
    mesh: Any, serve: Any, stub: Any, glob: str, refused: tuple[str, ...]
) -> None:
    one = await mesh(policy((await serve()).port, rules=DENY % glob))
    made = stub(one.port)
    for name, request in (("UnaryCall", pb.SimpleRequest()), ("EmptyCall", pb.Empty())):
        if name in refused:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await getattr(made, name)(request)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert info(caught.value).metadata["rule"]
        else:
            await getattr(made, name)(request)


async def test_a_rule_for_a_method_holds_for_servers_that_take_it_by_json_too(mesh: Any, upstream: Any) -> None:
    from tests.proxy.harness import echo

    up = await upstream(echo)
    one = await mesh(policy(up.port, rules=DENY % '"pay.v1.Billing/*"'))
    for path in ("/up/pay.v1.Billing/Pay", "/up/pay.v1.Billing/%50ay?x=1", "/up//pay.v1.Billing/Pay"):
        assert (await one.fetch(get(path, "content-type: application/json", method="POST"))).status == 403, path
    assert (await one.fetch(get("/up/pay.v1.Other/Pay", method="POST"))).status == 200


async def test_grpc_over_http1_is_refused_and_grpc_web_is_not(mesh: Any, upstream: Any) -> None:
    from tests.proxy.harness import echo

    up = await upstream(echo)
    one = await mesh(policy(up.port))
    for kind in ("application/grpc", "application/grpc+proto", "Application/gRPC; charset=x"):
        reply = await one.fetch(get("/up/s/m", f"Content-Type: {kind}", method="POST"))
        assert reply.status == 400
        assert json.loads(reply.body)["code"] == "meshd_malformed"
        assert "HTTP/2" in json.loads(reply.body)["detail"]
    for kind in ("application/grpc-web", "application/grpc-web-text", "application/grpcx"):
        assert (await one.fetch(get("/up/s/m", f"Content-Type: {kind}", method="POST"))).status == 200


async def test_what_is_framed_as_grpc_is_no_way_around_a_meter(mesh: Any, upstream_h2: Any, h2_client: Any) -> None:
    up = await upstream_h2(lambda server: server.closed())
    document = (
        f'upstreams:\n  llm: {{url: "http://127.0.0.1:{up.port}", kind: llm, dialect: openai}}\n'
        "rules: [{match: {kind: llm}, budget: {tokens: 10}}]\n"
    )
    one = await mesh(document)
    client = await h2_client(one)
    half = await client.ask("/llm/v1/chat/completions", *GRPC, method="POST", body=CHAT)
    assert half.fields["grpc-status"] == "8"
    assert half.fields["x-meshd-reason"] == "budget_exhausted"
    half = await client.ask("/llm/unheard.of.Service/Method", *GRPC, method="POST", body=b"\0\0\0\0\0")
    assert (half.fields["grpc-status"], half.fields["x-meshd-reason"]) == ("7", "not_allowed")
    assert not up.servers


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
async def test_no_other_method_than_post(mesh: Any, serve: Any, h2_client: Any, method: str) -> None:
    one = await mesh(policy((await serve()).port))
    half = await (await h2_client(one)).ask(f"/up{SERVICE}/EmptyCall", *GRPC, method=method)
    assert (half.status, half.fields["grpc-status"]) == (200, "3")


async def test_a_head_that_is_no_request_is_refused_as_grpc(mesh: Any, h2_client: Any) -> None:
    one = await mesh(policy(1))
    client = await h2_client(one, is_strict=False)
    half = await client.ask(f"/up{SERVICE}/EmptyCall", *GRPC, ("host", "other.example"), method="POST", body=b"")
    assert (half.status, half.fields["grpc-status"], half.fields["x-meshd-reason"]) == (200, "3", "malformed")


async def test_too_much_metadata(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    one = await mesh(policy(server.port))
    made = stub(one.port)
    error = await refused_by(made, metadata=tuple((f"k{number}", "v" * 1000) for number in range(90)))
    assert error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)
    assert server.servicer.calls == 0
    # The sidecar serves on. In another channel: a call made while a connection closes ends with it.
    again = stub(one.port)
    assert await again.EmptyCall(pb.Empty(), metadata=(("k", "v" * 5000),)) == pb.Empty()


async def test_garbage_for_messages_passes_as_it_is(mesh: Any, upstream_h2: Any, h2_client: Any) -> None:
    bodies: list[bytes] = []

    async def script(server: Any) -> None:
        for number in range(3):
            half = await server.request(number)
            await server.ended(half.id)
            bodies.append(bytes(half.body))
            server.head(half.id, *GRPC[:1], ("grpc-status", "13"), end=True)

    up = await upstream_h2(script)
    one = await mesh(policy(up.port))
    client = await h2_client(one)
    sent = [b"\xff" * 4, b"\x01\xff\xff\xff\xffshort", b""]
    for body in sent:
        half = await client.ask(f"/up{SERVICE}/UnaryCall", *GRPC, method="POST", body=body)
        assert half.fields["grpc-status"] == "13"
    assert bodies == sent


async def test_thousands_of_streams_opened_and_reset(mesh: Any, serve: Any, h2_client: Any, stub: Any) -> None:
    server = await serve()
    one = await mesh(policy(server.port) + "limits: {resets_per_minute: 100000}\n")
    client = await h2_client(one)
    for _ in range(3000):
        id = client.request(f"/up{SERVICE}/FullDuplexCall", *GRPC, ("grpc-timeout", "30S"), method="POST", end=False)
        client.h2.reset_stream(id, 8)
        client.flush()
        await client.writer.drain()
    assert (await client.ask("/nobody/s/m", *GRPC, method="POST", body=b"")).fields["grpc-status"] == "5"
    await one.idle()
    assert all(record.outcome.verdict is Verdict.NEUTRAL for record in one.attempts)
    assert await stub(one.port).EmptyCall(pb.Empty()) == pb.Empty()


async def test_a_flood_of_resets_is_ended(mesh: Any, serve: Any, h2_client: Any, stub: Any) -> None:
    one = await mesh(policy((await serve()).port))
    client = await h2_client(one)
    for _ in range(3000):
        if client.is_closed or client.goaway is not None:
            break
        id = client.request(f"/up{SERVICE}/FullDuplexCall", *GRPC, method="POST", end=False)
        client.h2.reset_stream(id, 8)
        client.flush()
        await client.writer.drain()
    await client.closed()
    await one.idle()
    assert await stub(one.port).EmptyCall(pb.Empty()) == pb.Empty()


async def test_one_too_many_is_unavailable_and_may_come_again(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    one = await mesh(policy(server.port, rules="  - {match: {kind: agent}, concurrency: {max: 1, queue: 0}}\n"))
    made = stub(one.port)
    held = made.FullDuplexCall()
    await held.write(pb.StreamingOutputCallRequest(response_parameters=[pb.ResponseParameters(size=1)]))
    await held.read()
    call = made.UnaryCall(pb.SimpleRequest())
    trailers = dict(await call.trailing_metadata())
    assert (await call.code()).name == "UNAVAILABLE"
    assert trailers["x-meshd-reason"] == "overloaded"
    assert 1000 <= int(trailers["grpc-retry-pushback-ms"]) <= 5000
    await held.done_writing()
    assert (await held.code()).name == "OK"
    await made.UnaryCall(pb.SimpleRequest())


async def test_a_pushback_of_the_upstream_holds_those_that_come_behind(mesh: Any, upstream_h2: Any, stub: Any) -> None:
    async def script(server: Any) -> None:
        asked = await server.request()
        fields = [("content-type", "application/grpc"), ("grpc-status", "8"), ("grpc-retry-pushback-ms", "30000")]
        server.head(asked.id, *fields, end=True)

    up = await upstream_h2(script)
    one = await mesh(policy(up.port))
    made = stub(one.port)
    call = made.UnaryCall(pb.SimpleRequest())
    assert (await call.code()).name == "RESOURCE_EXHAUSTED"
    assert "x-meshd-reason" not in dict(await call.trailing_metadata())
    again = made.UnaryCall(pb.SimpleRequest())
    trailers = dict(await again.trailing_metadata())
    assert (await again.code()).name == "RESOURCE_EXHAUSTED"
    assert (trailers["x-meshd-reason"], trailers["grpc-retry-pushback-ms"]) == ("overloaded", "-1")
