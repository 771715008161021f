"""gRPC through real daemons: what agents report is in the books, the trace has it, two sidecars count an edge once."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from click.testing import CliRunner

from meshd.cli import main
from meshd.mesh_key import MeshKeys
from meshd_sdk import context as codec
from tests.end_to_end.sidecar import Sidecar, until
from tests.end_to_end.test_telemetry import Collector, collector
from tests.grpc import testing_pb2 as pb
from tests.grpc import testing_pb2_grpc as rpc
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["collector"]

RULES = "rules:\n  - {name: purse, match: {kind: agent}, budget: {tokens: 10000}}\n"


class Agent(rpc.TestServiceServicer):
    """An agent that reports what it has spent, and remembers who called."""

    def __init__(self, port: int, tokens: int = 120) -> None:
        self.seen: list[dict[str, Any]] = []
        self._tokens = tokens
        self.server = grpc.server(ThreadPoolExecutor(4))
        rpc.add_TestServiceServicer_to_server(self, self.server)
        assert self.server.add_insecure_port(f"127.0.0.1:{port}") == port
        self.server.start()

    def EmptyCall(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        self.seen.append(dict(context.invocation_metadata()))
        context.set_trailing_metadata(
            [("x-meshd-usage-input-tokens", str(self._tokens)), ("x-meshd-usage-output-tokens", "5")]
        )
        return pb.Empty()


@pytest.fixture
def agents() -> Iterator[Callable[[int], Agent]]:
    """Return a function that starts an agent on a port: after the daemons, which are processes of their own."""
    made: list[Agent] = []

    def start(port: int) -> Agent:
        made.append(Agent(port))
        return made[-1]

    yield start
    for one in made:
        one.server.stop(None)


def ask(port: int, metadata: Any = (), authority: str = "writer.mesh") -> tuple[Any, dict[str, Any]]:
    """Make one call; return its status and trailers."""
    return asked(port, metadata, authority)[:2]


def asked(port: int, metadata: Any = (), authority: str = "writer.mesh") -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Make one call; return its status, its trailers and its initial metadata."""
    target = f"127.0.0.1:{port}"
    with grpc.insecure_channel(target, options=[("grpc.default_authority", authority)]) as channel:
        stub: Any = rpc.TestServiceStub(channel)
        call = stub.EmptyCall.future(pb.Empty(), metadata=metadata, timeout=30)
        return call.code(), dict(call.trailing_metadata()), dict(call.initial_metadata())


def budget(home: Path, *arguments: str) -> Any:
    unset = dict.fromkeys([name for name in os.environ if name.startswith("MESHD_")])
    found = CliRunner(env=unset | {"MESHD_HOME": str(home)}).invoke(main, ["budget", *arguments, "--json"])
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def test_what_an_agent_reports_is_in_the_books_and_the_trace(
    sidecar: Sidecar, agents: Callable[[int], Agent], collector: Collector
) -> None:
    port = free_port()
    document = f'agent: manager\nupstreams:\n  writer: {{url: "http://127.0.0.1:{port}", kind: agent}}\n{RULES}'
    sidecar.start(document, MESHD_OTLP_ENDPOINT=collector.url, MESHD_SAMPLE_RATIO="1")
    agents(port)
    calls = []
    for _ in range(3):
        code, trailers, initial = asked(sidecar.port, (("x-meshd-workflow", "task-1"),))
        assert code is grpc.StatusCode.OK
        calls.append(initial["x-meshd-call"])
        assert not any(name.startswith("x-meshd-usage") for name in trailers)
    until(lambda: sidecar.accounts().get("workflow/task-1") == (10_000, 375, 0), "the charge")
    assert {one["id"]: one["used"] for one in budget(sidecar.home)["accounts"]} == {"workflow/task-1": 375}
    (attempt,) = budget(sidecar.home, "call", calls[0])["attempts"]
    assert (attempt["charged_tokens"], attempt["input_tokens"], attempt["output_tokens"]) == (125, 120, 5)
    assert sidecar.metric("meshd_budget_spent_tokens_total") == 375
    assert sidecar.metric("meshd_grpc_calls_total", target="writer", grpc_status="OK") == 3
    assert ask(sidecar.port, authority="nobody.mesh")[0] is grpc.StatusCode.NOT_FOUND
    assert sidecar.metric("meshd_grpc_calls_total", grpc_status="NOT_FOUND") == 1
    # What was charged outlives the daemon.
    assert sidecar.stop() == 0
    ended = [one for one in collector.spans() if not one.get("meshd.reason")]
    assert [(one["rpc.method"], one["rpc.grpc.status_code"]) for one in ended] == [("EmptyCall", 0)] * 3
    refused = until(lambda: [one for one in collector.spans() if one.get("meshd.reason")])[0]
    assert (refused["rpc.system"], refused["rpc.grpc.status_code"]) == ("grpc", 5)
    assert (refused["rpc.service"], refused["rpc.method"]) == ("grpc.testing.TestService", "EmptyCall")
    sidecar.start(document)
    assert sidecar.accounts()["workflow/task-1"] == (10_000, 375, 0)
    assert "Traceback" not in sidecar.log


def test_two_sidecars_carry_one_workflow_in_metadata(
    sidecars: Callable[[str], Sidecar], agents: Callable[[int], Agent]
) -> None:
    near, far = sidecars("alpha"), sidecars("writer")
    port, inbound = free_port(), free_port()
    key = near.home.parent / "shared.key"
    far.start(
        f"agent: writer\n{RULES}upstreams:\n  other: {{url: 'http://127.0.0.1:1', kind: agent}}\n",
        *("--app", f"http://127.0.0.1:{port}", "--mesh-key", str(key)),
        MESHD_INBOUND=f"127.0.0.1:{inbound}",
    )
    near.start(
        f'agent: alpha\nupstreams:\n  writer: {{url: "http://127.0.0.1:{inbound}", kind: agent, peer: true}}\n{RULES}',
        *("--mesh-key", str(key)),
    )
    writer = agents(port)
    assert ask(near.port, (("x-meshd-workflow", "over-two"),))[0] is grpc.StatusCode.OK
    token = writer.seen[0]["x-meshd-context"]
    ring = MeshKeys(key).ring
    context = codec.verify(token.encode(), ring, now_s=time.time()).context
    assert (context.workflow, context.agent, context.hops, context.path) == ("over-two", "writer", 1, ("alpha",))
    assert context.deadline_s is not None
    # Charged where it was reported, and nowhere else.
    until(lambda: far.accounts().get("workflow/over-two", (0, 0, 0))[1] == 125, "the charge")
    assert near.accounts().get("workflow/over-two", (0, 0, 0))[1] == 0
    # What a peer was given is no token for an agent, nor the other way round.
    for where in (near.port, inbound):
        code, trailers = ask(where, (("x-meshd-context", token[:-6] + "AAAAAA"),))
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert trailers["x-meshd-reason"] == "context_invalid"
    code, _ = ask(inbound, (("x-meshd-context", token),))
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert len(writer.seen) == 1


def test_a_channel_comes_back_to_a_sidecar_that_was_started_again(
    sidecar: Sidecar, agents: Callable[[int], Agent]
) -> None:
    port, listen = free_port(), free_port()
    document = f'upstreams:\n  writer: {{url: "http://127.0.0.1:{port}", kind: agent}}\n'
    sidecar.start(document, MESHD_LISTEN=f"127.0.0.1:{listen}")
    agents(port)
    options = [("grpc.default_authority", "writer.mesh"), ("grpc.initial_reconnect_backoff_ms", 100)]
    with grpc.insecure_channel(f"127.0.0.1:{listen}", options=options) as channel:
        stub: Any = rpc.TestServiceStub(channel)
        for _ in range(2):
            assert stub.EmptyCall(pb.Empty(), timeout=30) == pb.Empty()
        assert sidecar.stop() == 0
        with pytest.raises(grpc.RpcError) as caught:
            stub.EmptyCall(pb.Empty(), timeout=30)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        sidecar.start(document, MESHD_LISTEN=f"127.0.0.1:{listen}")
        assert stub.EmptyCall(pb.Empty(), timeout=30, wait_for_ready=True) == pb.Empty()
    assert "Traceback" not in sidecar.log
