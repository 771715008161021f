"""What a gRPC status says of an upstream, and the services that gRPC itself defines, through a sidecar."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from meshd.dialects.grpc import NAMES, name_of, split_path, verdict_of
from meshd.filters.circuit import State
from meshd.outcome import Verdict
from tests.grpc import testing_pb2 as pb
from tests.grpc.conftest import policy

FAILURES = {"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}


def test_the_names_are_those_of_grpc() -> None:
    assert {code.value[0]: code.name for code in grpc.StatusCode} == dict(enumerate(NAMES))
    assert (name_of(17), name_of(-1), name_of(999)) == ("UNKNOWN",) * 3


@pytest.mark.parametrize("name", NAMES)
async def test_every_status_says_what_it_should_of_its_upstream(mesh: Any, serve: Any, stub: Any, name: str) -> None:
    server = await serve()
    one = await mesh(policy(server.port))
    number = NAMES.index(name)
    call = stub(one.port).UnaryCall(pb.SimpleRequest(response_status=pb.EchoStatus(code=number, message="m")))
    assert (await call.code()).name == name
    await one.idle()
    expected = Verdict.NEUTRAL
    if name == "OK":
        expected = Verdict.SUCCESS
    elif name in FAILURES or name == "DEADLINE_EXCEEDED":
        expected = Verdict.FAILURE
    elif name == "RESOURCE_EXHAUSTED":
        expected = Verdict.BACKPRESSURE
    outcome = one.attempts[0].outcome
    assert (outcome.verdict, outcome.grpc_status, outcome.status) == (expected, number, 200)
    one.telemetry.read_sources()
    shown = one.telemetry.render()[0].decode()
    assert f'meshd_grpc_calls_total{{direction="outbound",grpc_status="{name}",target="up"}} 1.0' in shown


def test_a_deadline_that_the_caller_chose_says_nothing_of_the_upstream() -> None:
    assert verdict_of(4, has_deadline=True) is Verdict.NEUTRAL
    assert verdict_of(4, has_deadline=False) is Verdict.FAILURE
    assert {verdict_of(number, has_deadline=False) for number in (-1, 17, 999)} == {Verdict.FAILURE}


def state_of(one: Any) -> State:
    (view,) = one.proxy.chain.per_attempt[1].snapshot()
    return view.state


async def fail(stub: Any, code: int) -> Any:
    call = stub.UnaryCall(pb.SimpleRequest(response_status=pb.EchoStatus(code=code, message="m")))
    return (await call.code()).name, dict(await call.trailing_metadata())


async def test_a_breaker_opens_by_statuses_and_closes_by_them(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    one = await mesh(policy(server.port, rules="  - {match: {kind: agent}, breaker: {consecutive: 3, probes: 1}}\n"))
    made = stub(one.port)
    for code in (3, 5, 8, 3, 8, 12, 16):
        await fail(made, code)
    assert state_of(one) is State.CLOSED
    for _ in range(3):
        assert (await fail(made, 14))[0] == "UNAVAILABLE"
    await one.idle()
    assert state_of(one) is State.OPEN
    calls = server.servicer.calls
    name, trailers = await fail(made, 0)
    assert (name, trailers["x-meshd-reason"], trailers["grpc-retry-pushback-ms"]) == (
        "UNAVAILABLE", "circuit_open", "-1",
    )  # fmt: skip
    assert server.servicer.calls == calls
    one.ahead_s += 60
    # An answer, though no success: whoever gives one is there again.
    assert (await fail(made, 3))[0] == "INVALID_ARGUMENT"
    assert (await fail(made, 0))[0] == "OK"
    await one.idle()
    assert state_of(one) is State.CLOSED


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("/research.v1.Research/Find", ("research.v1.Research", "Find")),
        ("/base/a.B/C?x=1", ("base/a.B", "C")),
        ("/x", ("", "x")),
        ("/", ("", "")),
        ("", ("", "")),
        ("//", ("", "")),
    ],
)
def test_a_path_is_a_service_and_a_method(path: str, parts: tuple[str, str]) -> None:
    assert split_path(path) == parts


async def test_health_and_reflection_of_an_upstream_pass_through(mesh: Any, channel: Any) -> None:
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    reflection.enable_server_reflection(("grpc.testing.TestService", reflection.SERVICE_NAME), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    one = await mesh(policy(port))
    try:
        await servicer.set("research", health_pb2.HealthCheckResponse.NOT_SERVING)
        stub: Any = health_pb2_grpc.HealthStub(channel(one.port))
        check = health_pb2.HealthCheckRequest(service="research")
        assert (await stub.Check(check)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watching = stub.Watch(check)
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await servicer.set("research", health_pb2.HealthCheckResponse.SERVING)
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        watching.cancel()

        def reflect() -> tuple[Any, list[str]]:
            options = [("grpc.default_authority", "up.mesh")]
            with grpc.insecure_channel(f"127.0.0.1:{one.port}", options=options) as plain:
                database = ProtoReflectionDescriptorDatabase(plain)
                found = database.FindFileContainingSymbol("grpc.testing.TestService")
                return database.get_services(), [service.name for service in found.service]

        services, names = await asyncio.to_thread(reflect)
        assert "grpc.testing.TestService" in services
        assert "TestService" in names
    finally:
        await server.stop(None)
