"""What an agent does by itself, with a real daemon: asked over gRPC or JSON, decided by command, over kills."""

from __future__ import annotations

import asyncio
import json
import tempfile
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from meshd.approvals.keys import hash_of, new_key
from meshd_sdk.v1 import approvals_pb2 as pb
from meshd_sdk.v1 import approvals_pb2_grpc, context_pb2, context_pb2_grpc, trace_pb2, trace_pb2_grpc
from tests.end_to_end.sidecar import Sidecar, fetch
from tests.end_to_end.test_approvals import decide, listed, meshd
from tests.engines.places import place_of
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

ANA, OLA = new_key(), new_key()
POLICY = (
    "agent: researcher\nowner: ola\napprovers:\n"
    f'  ana: {{key: "sha256:{hash_of(ANA)}"}}\n'
    f'  ola: {{key: "sha256:{hash_of(OLA)}"}}\n'
    "rules: [{name: brief, match: {target: app, operation: brief}, approval: {expires: 1s}}]\n"
)


@pytest.fixture
def sidecar() -> Iterator[Sidecar]:
    with tempfile.TemporaryDirectory(prefix="meshd-") as short:  # a socket's path has at most 107 bytes
        made = Sidecar(Path(short) / "home")
        yield made
        made.kill()


class Agent:
    """A client of the daemon's API, in one workflow."""

    def __init__(self, sidecar: Sidecar, workflow: str = "w1") -> None:
        assert sidecar.running is not None
        self.api = str(sidecar.running["api"])
        self._channel = grpc.insecure_channel(self.api)
        self._stub = approvals_pb2_grpc.ApprovalServiceStub(self._channel)
        opened = context_pb2_grpc.ContextServiceStub(self._channel).Open(context_pb2.OpenRequest(workflow=workflow))
        self.token = opened.context.token

    def ask(self, operation: str = "deploy", payload: bytes = b'{"to": "prod"}', **more: Any) -> pb.Approval:
        request = pb.AskApprovalRequest(token=self.token, operation=operation, payload=payload, **more)
        return self._stub.AskApproval(request).approval

    def wait(self, id: str, use_id: str = "", *, ms: int = 0) -> pb.WaitForApprovalResponse:
        request = pb.WaitForApprovalRequest(token=self.token, approval_id=id, use_id=use_id)
        if ms:
            request.timeout.FromMilliseconds(ms)
        return self._stub.WaitForApproval(request)

    def later(self, id: str, use_id: str) -> Any:
        """Begin to wait."""
        return self._stub.WaitForApproval.future(
            pb.WaitForApprovalRequest(token=self.token, approval_id=id, use_id=use_id)
        )

    def listed(self) -> list[str]:
        return [one.id for one in self._stub.ListApprovals(pb.ListApprovalsRequest(token=self.token)).approvals]

    def trace(self) -> list[str]:
        """What the workflow's trace says of decisions."""
        stub = trace_pb2_grpc.TraceServiceStub(self._channel)
        found = stub.List(trace_pb2.ListRequest(token=self.token)).entries
        return [one.decision.choice for one in found if one.WhichOneof("entry") == "decision"]

    def close(self) -> None:
        self._channel.close()


def test_a_person_allows_it_and_it_is_done_once(sidecar: Sidecar) -> None:
    sidecar.start(POLICY)
    agent = Agent(sidecar)
    asked = agent.ask(summary="the release of today")
    shown = meshd(sidecar, "show", asked.id)
    assert shown.returncode == 0, shown.stderr
    for words in ('"to": "prod"', "w1", "deploy", "the release of today", "1 of ana", "neither sends it nor sees it"):
        assert words in shown.stdout
    assert asked.id in meshd(sidecar).stdout
    waiting = agent.later(asked.id, "u-1")
    refused = meshd(sidecar, "approve", asked.id, key=OLA)
    assert (refused.returncode, "own agent" in refused.stderr) == (1, True)
    assert meshd(sidecar, "approve", asked.id, "--reason", "checked", key=ANA).returncode == 0
    found = waiting.result(30)
    assert (found.is_granted, found.approval.decisions[0].approver) == (True, "ana")
    assert found.approval.decisions[0].reason == "checked"
    assert agent.wait(asked.id, "u-1").is_granted
    assert not agent.wait(asked.id, "u-2").is_granted
    again = agent.ask()
    assert again.id != asked.id
    assert meshd(sidecar, "deny", again.id, "--reason", "once is enough", key=ANA).returncode == 0
    found = agent.wait(again.id, "u-3")
    assert (found.is_granted, found.approval.state) == (False, pb.APPROVAL_STATE_DENIED)
    assert found.approval.decisions[0].reason == "once is enough"
    assert agent.listed() == [asked.id, again.id]
    assert "as u-1" in meshd(sidecar, "show", asked.id).stdout
    assert agent.trace() == ["pending", "approved", "used", "pending", "denied"]
    assert sidecar.metric("meshd_approvals_total", result="used") == 1
    agent.close()


def test_changed_arguments_and_other_workflows_ask_anew(sidecar: Sidecar) -> None:
    sidecar.start(POLICY)
    agent, other = Agent(sidecar), Agent(sidecar, "w2")
    asked = agent.ask(payload=b'{"to": "prod", "n": 1}')
    assert agent.ask(payload=b'{"n":1,"to":"prod"}').id == asked.id
    ids = {agent.ask(payload=b'{"to": "prod", "n": 1.0}').id, agent.ask("destroy").id, other.ask().id, asked.id}
    assert len(ids) == 4
    assert decide(sidecar, asked.id, "approve", ANA)[0] == 200
    with pytest.raises(grpc.RpcError) as caught:
        other.wait(asked.id, "u-1")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert asked.id not in other.listed()
    assert agent.wait(asked.id, "u-1").is_granted
    agent.close()
    other.close()


def test_no_answer_is_a_no(sidecar: Sidecar) -> None:
    sidecar.start(POLICY)
    agent = Agent(sidecar)
    asked = agent.ask("brief")
    found = agent.wait(asked.id, "u-1")
    assert (found.is_granted, found.approval.state) == (False, pb.APPROVAL_STATE_EXPIRED)
    late = meshd(sidecar, "approve", asked.id, key=ANA)
    assert (late.returncode, "has expired" in late.stderr) == (1, True)
    assert agent.ask("brief").id != asked.id
    agent.close()


@pytest.mark.parametrize("engine", ["sqlite", "redis", "nats"])
async def test_a_daemon_that_is_killed_loses_nothing(sidecar: Sidecar, engine: str, tmp_path: Path) -> None:
    async with place_of(engine, tmp_path) as place:
        await asyncio.to_thread(_killed_at_each_step, sidecar, () if engine == "sqlite" else ("--store", place.url))


def _killed_at_each_step(sidecar: Sidecar, store: tuple[str, ...]) -> None:
    api = f"127.0.0.1:{free_port()}"

    def again() -> Agent:
        sidecar.kill()
        sidecar.start(POLICY, *store, MESHD_API=api)
        return Agent(sidecar)

    agent = again()
    asked = agent.ask()
    waiting = agent.later(asked.id, "u-1")
    assert agent.wait(asked.id, ms=50).approval.state == pb.APPROVAL_STATE_PENDING
    token = agent.token
    agent = again()  # between ask and decision, while it is waited for
    assert waiting.exception(30).code() is grpc.StatusCode.UNAVAILABLE
    agent.token = token
    assert agent.ask().id == asked.id, "the token holds, and the question stands"
    assert meshd(sidecar, "approve", asked.id, key=ANA).returncode == 0
    agent = again()  # between decision and use
    assert agent.wait(asked.id, "u-1").is_granted
    agent = again()  # after it was used, and perhaps before that was heard
    assert agent.wait(asked.id, "u-1").is_granted
    assert not agent.wait(asked.id, "u-2").is_granted
    assert agent.ask().id != asked.id
    assert [one["id"] for one in listed(sidecar, "used")] == [asked.id]


def test_json_and_grpc_ask_for_the_same(sidecar: Sidecar) -> None:
    sidecar.start(POLICY)
    agent = Agent(sidecar)

    def post(method: str, body: dict[str, Any]) -> tuple[int, Any]:
        url = f"http://{agent.api}/meshd.v1.ApprovalService/{method}"
        sent = json.dumps({"token": agent.token} | body).encode()
        status, text = fetch(url, "POST", {"content-type": "application/json"}, sent)
        return status, json.loads(text)

    status, said = post("AskApproval", {"operation": "deploy", "payload": b64encode(b'{"to":"prod"}').decode()})
    assert status == 200
    id = said["approval"]["id"]
    assert agent.ask().id == id
    assert decide(sidecar, id, "approve", ANA)[0] == 200
    status, said = post("WaitForApproval", {"approvalId": id, "useId": "u-1"})
    assert (status, said["isGranted"]) == (200, True)
    assert post("WaitForApproval", {"approvalId": id, "useId": "u-2"})[1].get("isGranted") is None
    assert [one["id"] for one in post("ListApprovals", {})[1]["approvals"]] == [id]
    status, said = post("AskApproval", {"operation": "x" * 129})
    assert (status, said["code"]) == (400, "invalid_argument")
    for method in ("Approve", "ApproveApproval", "Decide"):
        assert post(method, {"approvalId": id})[0] == 404
    agent.close()


def test_a_drain_waits_for_nobody_who_waits_for_people(sidecar: Sidecar) -> None:
    sidecar.start(POLICY)
    agent = Agent(sidecar)
    asked = agent.ask()
    waiting = agent.later(asked.id, "u-1")
    assert agent.wait(asked.id, ms=50).approval.state == pb.APPROVAL_STATE_PENDING
    assert sidecar.stop() == 0
    assert waiting.exception(30).code() is grpc.StatusCode.UNAVAILABLE
    assert "deadline" not in sidecar.log, "the drain's time did not pass"
    agent.close()
