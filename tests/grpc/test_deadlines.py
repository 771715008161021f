"""A deadline narrows on its way, is kept to the millisecond, and ends both sides of a call."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest

from meshd.outcome import Fault, Verdict
from meshd.wire.grpc import read_timeout
from meshd_sdk import context as codec
from tests.grpc import testing_pb2 as pb
from tests.grpc.cases import output
from tests.grpc.conftest import policy
from tests.proxy.harness import until

GRPC = (("content-type", "application/grpc"), ("te", "trailers"))
PATH = "/up/grpc.testing.TestService/UnaryCall"


class Silent:
    """An upstream that takes calls, says nothing, and notes what came and how it was ended."""

    def __init__(self) -> None:
        self.halves: list[Any] = []

    async def script(self, server: Any) -> None:
        number = 0
        while True:
            self.halves.append(await server.request(number))
            number += 1


async def test_what_is_left_is_forwarded_and_never_more(mesh: Any, upstream_h2: Any, h2_client: Any) -> None:
    silent = Silent()
    up = await upstream_h2(silent.script)
    one = await mesh(policy(up.port))
    client = await h2_client(one)
    sent = ["2H", "3M", "99999999S", "5S", "2500m", "900000u", "99999999n"]
    for value in sent:
        client.request(PATH, *GRPC, ("grpc-timeout", value), method="POST", end=False)
    await until(lambda: len(silent.halves) == len(sent))
    for value, half in zip(sent, silent.halves, strict=True):
        forwarded = read_timeout(half.fields["grpc-timeout"].encode())
        asked = read_timeout(value.encode())
        assert asked - 5 < forwarded <= asked, (value, half.fields["grpc-timeout"])


async def test_the_nearer_deadline_of_a_workflow_holds(mesh: Any, upstream_h2: Any, h2_client: Any) -> None:
    silent = Silent()
    up = await upstream_h2(silent.script)
    one = await mesh(policy(up.port))
    client = await h2_client(one)
    cases = [
        (("x-meshd-deadline", "20"), ("grpc-timeout", "60S")),
        (("x-meshd-deadline", "60"), ("grpc-timeout", "20S")),
        (("x-meshd-deadline", "20"),),
    ]
    for fields in cases:
        client.request(PATH, *GRPC, *fields, method="POST", end=False)
    await until(lambda: len(silent.halves) == len(cases))
    for half in silent.halves:
        assert 15 < read_timeout(half.fields["grpc-timeout"].encode()) <= 20
        # The context that the upstream gets says the same.
        assert 15 < float(half.fields["x-meshd-deadline"]) <= 20
    plain = client.request(PATH, *GRPC, method="POST", end=False)
    await until(lambda: len(silent.halves) == len(cases) + 1)
    assert "grpc-timeout" not in silent.halves[-1].fields
    assert plain


async def test_the_policys_deadline_is_added(mesh: Any, upstream_h2: Any, h2_client: Any) -> None:
    silent = Silent()
    up = await upstream_h2(silent.script)
    one = await mesh(policy(up.port) + "limits: {deadline: 30s}\n")
    (await h2_client(one)).request(PATH, *GRPC, method="POST", end=False)
    await until(lambda: silent.halves)
    assert 25 < read_timeout(silent.halves[0].fields["grpc-timeout"].encode()) <= 30


async def test_time_spent_on_waiting_is_taken_off(mesh: Any, upstream_h2: Any, h2_client: Any) -> None:
    silent = Silent()
    up = await upstream_h2(silent.script)
    one = await mesh(policy(up.port))
    gate = one.per_call.hold()
    client = await h2_client(one)
    client.request(PATH, *GRPC, ("grpc-timeout", "100S"), method="POST", end=False)
    await until(lambda: one.proxy.live and next(iter(one.proxy.live))._is_waiting)
    one.ahead_s += 40
    gate.set_result(None)
    await until(lambda: silent.halves)
    assert 50 < read_timeout(silent.halves[0].fields["grpc-timeout"].encode()) <= 60


async def test_a_deadline_that_passes_here_ends_both_sides(mesh: Any, upstream_h2: Any, h2_client: Any) -> None:
    """The caller has no clock of its own in this test: what it gets, and when, is the sidecar's doing."""
    silent = Silent()
    up = await upstream_h2(silent.script)
    one = await mesh(policy(up.port))
    client = await h2_client(one)
    began_s = time.monotonic()
    id = client.request(PATH, *GRPC, ("grpc-timeout", "50m"), method="POST", end=False)
    half = await client.ended(id)
    took_s = time.monotonic() - began_s
    # It cannot be early; that it is not late by a sweep is what test_a_near_deadline_has_a_timer shows.
    assert took_s >= 0.045
    assert half.fields["grpc-status"] == "4"
    assert half.fields["x-meshd-reason"] == "deadline"
    await until(lambda: silent.halves and silent.halves[0].reset is not None)
    assert silent.halves[0].reset == 8
    await one.idle()
    outcome = one.attempts[0].outcome
    assert (outcome.fault, outcome.verdict, outcome.grpc_status) == (Fault.DEADLINE, Verdict.NEUTRAL, 4)


async def test_a_near_deadline_has_a_timer_and_a_far_one_none(mesh: Any, upstream_h2: Any, h2_client: Any) -> None:
    silent = Silent()
    up = await upstream_h2(silent.script)
    one = await mesh(policy(up.port))
    client = await h2_client(one)
    for value in ("900m", "3S"):
        client.request(PATH, *GRPC, ("grpc-timeout", value), method="POST", end=False)
    await until(lambda: len(silent.halves) == 2)
    near, far = sorted(one.proxy.live, key=lambda exchange: exchange.call.timeout_s)
    assert near._timer is not None
    assert far._timer is None
    one.expire(2.2)
    assert far._timer is not None or far.is_done
    client.close()
    await one.idle()
    assert near._timer is None
    assert far._timer is None


async def test_a_reply_that_has_begun_ends_with_the_status(mesh: Any, serve: Any, h2_client: Any) -> None:
    server = await serve()
    one = await mesh(policy(server.port))
    client = await h2_client(one)
    ask = pb.StreamingOutputCallRequest(response_parameters=[*output(100), *output(5, interval_us=60_000_000)])
    body = ask.SerializeToString()
    id = client.request(
        "/up/grpc.testing.TestService/StreamingOutputCall", *GRPC, ("grpc-timeout", "300m"), method="POST", end=False
    )
    client.send(id, b"\0" + len(body).to_bytes(4, "big") + body, end=True)
    half = await client.ended(id)
    assert len(half.body) > 100
    assert half.trailers is not None
    assert half.trailers["grpc-status"] == "4"
    assert half.reset is None
    await until(lambda: server.servicer.cancelled)


async def test_a_deadline_passes_while_a_rule_holds_the_call(mesh: Any, serve: Any, h2_client: Any) -> None:
    server = await serve()
    one = await mesh(policy(server.port))
    gate = one.per_call.hold()
    client = await h2_client(one)
    half = await client.ask(PATH, *GRPC, ("grpc-timeout", "20m"), method="POST", body=b"")
    assert half.fields["grpc-status"] == "4"
    # What the rule takes all the same is paid back, which the data plane's end checks.
    gate.set_result("ticket")
    await until(lambda: one.calls and one.calls[-1].outcomes)
    assert server.servicer.calls == 0


async def test_a_deadline_that_is_over_never_goes_out(mesh: Any, serve: Any, h2_client: Any) -> None:
    server = await serve()
    one = await mesh(policy(server.port))
    half = await (await h2_client(one)).ask(PATH, *GRPC, ("grpc-timeout", "0n"), method="POST", body=b"")
    assert half.fields["grpc-status"] == "4"
    assert server.servicer.calls == 0


@pytest.mark.parametrize("value", ["", "5", "S", "-1S", "1.5S", "123456789m", "5s", "5 S", "1S ,2S", "٣S"])
async def test_a_malformed_timeout_is_refused(mesh: Any, serve: Any, h2_client: Any, value: str) -> None:
    server = await serve()
    one = await mesh(policy(server.port))
    client = await h2_client(one)
    half = await client.ask(PATH, *GRPC, ("grpc-timeout", value), method="POST", body=b"")
    assert (half.status, half.fields["grpc-status"], half.fields["x-meshd-reason"]) == (200, "3", "malformed")
    twice = [("grpc-timeout", "5S"), ("grpc-timeout", "9S")]
    assert (await client.ask(PATH, *GRPC, *twice, method="POST", body=b"")).fields["grpc-status"] == "3"
    assert server.servicer.calls == 0


async def test_the_upstream_of_a_real_client_has_less_time(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    one = await mesh(policy(server.port))
    made = stub(one.port)
    await made.EmptyCall(pb.Empty(), timeout=60)
    # gRPC's client sends it in tenths of a second, rounded up: 60.1 at most, of which some has passed.
    assert 0 < server.servicer.time_left_s[0] < 60.1
    await made.EmptyCall(pb.Empty())
    assert server.servicer.time_left_s[1] is None
    token = server.servicer.metadata[0][codec.HEADER_CONTEXT.decode()]
    ring = one.proxy.chain.context._keys.ring
    deadline_s = codec.verify(token.encode(), ring, now_s=time.time()).context.deadline_s
    assert deadline_s is not None
    assert 0 < deadline_s - time.time() <= 60


async def test_calls_that_follow_one_another_share_a_token_whose_deadline_is_no_later(
    mesh: Any, upstream_h2: Any, h2_client: Any
) -> None:
    silent = Silent()
    up = await upstream_h2(silent.script)
    one = await mesh(policy(up.port))
    client = await h2_client(one)
    fields = (*GRPC, ("x-meshd-workflow", "task-1"))
    # A named workflow's calls have the sidecar's own field beside the timeout, and are narrowed all the same.
    one.proxy.wall_clock = lambda: 1_790_000_000.01
    for _ in range(3):
        client.request(PATH, *fields, ("grpc-timeout", "10S"), method="POST", end=False)
    client.request(PATH, *fields, ("grpc-timeout", "20S"), method="POST", end=False)
    client.request(PATH, *fields, method="POST", end=False)
    await until(lambda: len(silent.halves) == 5)
    tokens = [half.fields["x-meshd-context"] for half in silent.halves]
    assert len(set(tokens)) == 3
    assert tokens[0] == tokens[1] == tokens[2]
    ring = one.proxy.chain.context._keys.ring
    found = [codec.verify(token.encode(), ring, now_s=1_790_000_000).context.deadline_s for token in tokens[2:]]
    assert found[2] is None
    for deadline_s, timeout_s in zip(found, (10, 20), strict=False):
        assert timeout_s * 0.97 <= deadline_s - 1_790_000_000.01 <= timeout_s


async def test_a_real_client_and_a_sleeping_server(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    one = await mesh(policy(server.port))
    ask = pb.StreamingOutputCallRequest(response_parameters=output(5, interval_us=60_000_000))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub(one.port).StreamingOutputCall(ask, timeout=0.2):
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: server.servicer.cancelled or not server.servicer.calls)
    await asyncio.wait_for(one.idle(), 30)
