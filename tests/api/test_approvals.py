"""ApprovalService: what may be asked and by whom, who is asked by which rule, waiting, listing, and nonsense."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from meshd.api import approvals as service
from meshd.api.services import SERVICES
from meshd.approvals.hands import Whose
from meshd.approvals.keys import hash_of, new_key
from meshd.approvals.state import State
from meshd.engines.port import StoreClosed
from meshd_sdk.v1 import approvals_pb2 as pb
from tests.api.house import House, house, refusal, until

if TYPE_CHECKING:
    from pathlib import Path

KEYS = {name: new_key() for name in ("ada", "ben", "cai", "ola")}
POLICY = "agent: ann\nowner: ola\napprovers:\n" + "".join(
    f'  {name}: {{key: "sha256:{hash_of(key)}"}}\n' for name, key in KEYS.items()
)
RULED = POLICY + (
    "upstreams: {billing: {url: 'http://127.0.0.1:9', kind: tool}}\n"
    "rules:\n"
    "  - {name: grave, match: {target: app, operation: destroy}, approval: {quorum: 2, approvers: [ada, ben, ola],"
    " expires: 60s}}\n"
    "  - {name: trial, shadow: true, match: {target: app, operation: 'try*'}, approval: {quorum: 3}}\n"
    "  - {name: calls, match: {kind: tool}, approval: {quorum: 3}}\n"
)
ITSELF = POLICY.replace("agent: ann", "agent: ada").replace("owner: ola", "owner: ben")
UNKNOWN = "zzzz-zzzz-zzzz"


async def token_of(one: House, workflow: str = "w", **more: Any) -> str:
    return str((await one.open(workflow, **more)).token)


async def ask(one: House, token: str, operation: str = "deploy", **more: Any) -> pb.Approval:
    request = pb.AskApprovalRequest(token=token, operation=operation, **({"payload": b'{"to": 1}'} | more))
    found = await one.approvals.AskApproval(request)
    return found.approval  # type: ignore[no-any-return]


def wait(one: House, token: str, id: str, use_id: str = "", timeout_s: float | None = None) -> Any:
    timeout = None if timeout_s is None else Duration(nanos=round(timeout_s * 1e9))
    return one.approvals.WaitForApproval(
        pb.WaitForApprovalRequest(token=token, approval_id=id, use_id=use_id, timeout=timeout)
    )


async def listed(one: House, token: str, state: Any = pb.APPROVAL_STATE_UNSPECIFIED) -> list[pb.Approval]:
    found = await one.approvals.ListApprovals(pb.ListApprovalsRequest(token=token, state=state))
    return list(found.approvals)


async def decide(one: House, id: str, who: str, *, is_allowed: bool = True) -> None:
    await one.desk.decide(id, KEYS[who], approver="", is_allowed=is_allowed, reason=f"{who} says so")


async def test_what_is_asked_is_waited_for_and_used_once(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        asked = await ask(one, token, summary="to the test site")
        assert (asked.state, asked.kind, asked.operation, asked.agent) == (1, "own", "deploy", "ann")
        assert (asked.workflow, asked.target, asked.quorum, asked.used_by) == ("w", "ann", 1, "")
        assert asked.expires.seconds - asked.asked.seconds == 3600
        assert (await ask(one, token, summary="again", payload=b'{ "to":1 }')).id == asked.id
        waiting = asyncio.ensure_future(wait(one, token, asked.id, "u-1"))
        await until(lambda: len(one.desk.line))
        await decide(one, asked.id, "ada")
        found = await waiting
        assert found.is_granted
        assert (found.approval.state, found.approval.used_by) == (pb.APPROVAL_STATE_USED, "u-1")
        (made,) = found.approval.decisions
        assert (made.approver, made.is_approved, made.reason) == ("ada", True, "ada says so")
        # Sent again, since the answer was lost; then by somebody else.
        assert (await wait(one, token, asked.id, "u-1")).is_granted
        assert not (await wait(one, token, asked.id, "u-2")).is_granted
        assert not (await wait(one, token, asked.id)).is_granted
        assert (await ask(one, token)).id != asked.id
        assert (await ask(one, token, payload=b'{"to": 2}')).id != asked.id
        assert [item.id for item in await listed(one, token, pb.APPROVAL_STATE_USED)] == [asked.id]
        assert len(await listed(one, token)) == 3


async def test_while_an_event_is_handled_it_is_waited_for_no_longer_than_that_may_take(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        hand = one.desk.hands.begin(token.encode(), Whose("ann", "w"), one.wall_clock())
        asked = await ask(one, token)
        assert list(hand.undecided) == [asked.id]
        error = await refusal(wait(one, token, asked.id, "u-1"))
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert asked.id in (error.details() or "")
        await decide(one, asked.id, "ada")
        assert (await ask(one, token)).id == asked.id
        assert not hand.undecided, "whoever fails now fails for another reason"
        assert (await wait(one, token, asked.id, "u-1")).is_granted
        assert not hand.undecided


async def test_people_see_the_arguments_and_the_agents_words_without_secrets(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        payload = b'{"password": "hunter2hunter2", "to": "x"}'
        asked = await ask(one, token, summary="key sk-aaaaaaaaaaaaaaaa", payload=payload)
        seen = await one.desk.show(asked.id)
        assert '"to": "x"' in seen.arguments
        assert "hunter2" not in seen.arguments
        assert (seen.said, seen.hidden, seen.why, seen.evidence) == ("key [redacted]", 1, service.WHY, "token")
        assert "hunter2" not in str(asked)


async def test_a_denial_is_in_force_and_the_end_of_its_time_a_no(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        first = await ask(one, token)
        await decide(one, first.id, "cai", is_allowed=False)
        found = await wait(one, token, first.id, "u-1")
        assert (found.is_granted, found.approval.state) == (False, pb.APPROVAL_STATE_DENIED)
        assert (found.approval.decisions[0].approver, found.approval.decisions[0].is_approved) == ("cai", False)
        assert (await ask(one, token)).id == first.id
        second = await ask(one, token, "other", expires=Duration(seconds=30))
        one.ahead_s = 31.0
        found = await wait(one, token, second.id, "u-1")
        assert (found.is_granted, found.approval.state) == (False, pb.APPROVAL_STATE_EXPIRED)
        assert (await ask(one, token, "other")).id != second.id
        third = await ask(one, token, "third")
        await one.desk.cancel(third.id, "not needed")
        found = await wait(one, token, third.id, "u-1")
        assert (found.approval.state, found.approval.cancelled_for) == (pb.APPROVAL_STATE_CANCELLED, "not needed")


async def test_nobody_decides_over_the_api_and_none_decides_on_their_own(tmp_path: Path) -> None:
    from meshd.approvals.deciding import Declined

    async with house(tmp_path, POLICY) as one:
        asked = await ask(one, await token_of(one))
        with pytest.raises(Declined, match="own agent"):
            await decide(one, asked.id, "ola")
        paths = ("Approve", "Deny", "Decide", "CancelApproval")
        assert [(await one.ask(f"ApprovalService/{path}", {}))[0] for path in paths] == [404] * len(paths)
    async with house(tmp_path, ITSELF) as one:
        asked = await ask(one, await token_of(one))
        seen = await one.desk.show(asked.id)
        assert sorted(seen.approvers) == ["cai", "ola"], "neither the agent that is called ada nor its owner"
        for who in ("ada", "ben"):
            with pytest.raises(Declined, match="own agent"):
                await decide(one, asked.id, who)


async def test_the_rule_that_fits_says_who_and_how_many_and_for_how_long(tmp_path: Path) -> None:
    async with house(tmp_path, RULED) as one:
        token = await token_of(one)
        grave = await ask(one, token, "destroy")
        seen = await one.desk.show(grave.id)
        assert (seen.quorum, seen.approvers, seen.lasts_s, seen.rule) == (2, ("ada", "ben"), 60.0, "grave")
        await decide(one, grave.id, "ada")
        found = await wait(one, token, grave.id, "u-1", 0.001)
        assert (found.is_granted, found.approval.state) == (False, pb.APPROVAL_STATE_PENDING)
        await decide(one, grave.id, "ben")
        assert (await wait(one, token, grave.id, "u-1")).is_granted
        assert one.mesh.policy.hits()["grave"] == 1
        # A rule on trial binds nobody, and one about calls is about calls.
        for operation in ("try-it", "deploy"):
            assert (await one.desk.show((await ask(one, token, operation)).id)).quorum == 1
        more = await ask(one, token, "deploy", quorum=3)
        assert (await one.desk.show(more.id)).quorum == 3
        for fields, words in (
            ({"quorum": 1}, "quorum must be from 2 to 2"),
            ({"quorum": 3}, "quorum must be from 2 to 2"),
            ({"quorum": -1}, "quorum must be"),
            ({"expires": Duration(seconds=61)}, "expires must be no longer than the 60 s of the policy"),
            ({"expires": Duration(seconds=0)}, "expires must be a duration above 0"),
            ({"expires": Duration(seconds=-5)}, "expires must be a duration above 0"),
        ):
            error = await refusal(ask(one, token, "destroy", **fields))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert words in error.details()


async def test_where_nobody_can_be_asked_it_is_refused_at_once(tmp_path: Path) -> None:
    async with house(tmp_path, "agent: ann\n") as one:
        token = await token_of(one)
        error = await refusal(ask(one, token))
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "deploy at the agent ann needs a person's approval" in error.details()
        assert "meshd approvals key NAME" in error.details()
        assert await listed(one, token) == []


async def test_another_workflows_approvals_are_not_there(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        mine, other = await token_of(one), await token_of(one, "other")
        asked = await ask(one, mine)
        assert (await ask(one, other)).id != asked.id
        await decide(one, asked.id, "ada")
        missing = await refusal(wait(one, mine, UNKNOWN, "u-1"))
        foreign = await refusal(wait(one, other, asked.id, "u-1"))
        assert missing.code() is foreign.code() is grpc.StatusCode.NOT_FOUND
        assert missing.details() == foreign.details().replace(asked.id, UNKNOWN), "which of both it is nobody learns"
        assert asked.id not in [item.id for item in await listed(one, other)]
        assert (await wait(one, mine, asked.id, "u-1")).is_granted


async def test_of_one_workflow_each_agent_uses_its_own_and_a_call_its_own(tmp_path: Path) -> None:
    from dataclasses import replace

    from tests.approvals.asking import question

    document = POLICY + "upstreams: {bob: {url: 'http://127.0.0.1:9', kind: agent}}\n"
    async with house(tmp_path, document) as one:
        mine, bobs = await token_of(one), await token_of(one, agent="bob")
        asked = await ask(one, mine)
        error = await refusal(wait(one, bobs, asked.id, "u-1"))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
        assert (await ask(one, bobs)).id != asked.id
        call = (await one.desk.ask(replace(question(workflow="w", agent="ann"), approvers=("ada",)))).approval
        await decide(one, call.id, "ada")
        error = await refusal(wait(one, mine, call.id, "u-1"))
        assert "the call itself uses it" in error.details()
        found = await wait(one, mine, call.id)
        assert (found.approval.state, found.approval.kind) == (pb.APPROVAL_STATE_APPROVED, "tool")
        assert {item.id for item in await listed(one, mine)} >= {call.id, asked.id}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"operation": ""}, "operation must be"),
        ({"operation": "x" * 129}, "operation must be"),
        ({"operation": "DELETE /x"}, "operation must be"),
        ({"operation": "a\nb"}, "operation must be"),
        ({"operation": "größe"}, "operation must be"),
        ({"summary": "x" * 1001}, "summary must be at most 1000"),
        ({"payload": b"x" * (128 * 1024 + 1)}, "payload must be at most 131072 bytes"),
    ],
)
async def test_nonsense_asks_nobody(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        error = await refusal(ask(one, token, **({"operation": "deploy"} | fields)))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert words in error.details()
        assert await listed(one, token) == []


async def test_what_is_just_not_too_much_is_asked(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        for payload in (b"", b"\xff\x00", b"[" * 500, b'{"a":1,"a":2}', b"x" * 128 * 1024):
            asked = await ask(one, token, "~" * 128, payload=payload, summary="\ud7ff" * 1000)
            assert (await one.desk.show(asked.id)).arguments_bytes == len(payload)


async def test_nonsense_waits_for_nothing(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        asked = await ask(one, token)
        wanted: list[tuple[Any, str]] = [
            (wait(one, token, "", "u"), "approval_id must be"),
            (wait(one, token, "../../x", "u"), "approval_id must be"),
            (wait(one, token, asked.id, "x" * 65), "use_id must be"),
            (wait(one, token, asked.id, "a b"), "use_id must be"),
            (wait(one, token, asked.id, "u", 0.0), "timeout must be a duration above 0"),
            (one.approvals.ListApprovals(pb.ListApprovalsRequest(token=token, state=77)), "state must be"),
        ]
        for call, words in wanted:
            error = await refusal(call)
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert words in error.details()
        # As people type it: in capitals, without dashes.
        assert (await wait(one, token, asked.id.upper().replace("-", ""), "", 0.001)).approval.id == asked.id


async def test_without_a_token_that_holds_nothing_is_answered(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        asked = await ask(one, await token_of(one))
        for token in ("", "nonsense", "\u20ac"):
            for call in (ask(one, token), wait(one, token, asked.id), listed(one, token)):
                assert (await refusal(call)).code() is grpc.StatusCode.UNAUTHENTICATED


async def test_after_the_workflows_deadline_nothing_is_asked_or_used(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one, timeout=Duration(seconds=600))
        asked = await ask(one, token)
        await decide(one, asked.id, "ada")
        one.ahead_s = 601.0
        for call in (ask(one, token, "other"), wait(one, token, asked.id, "u-1")):
            assert (await refusal(call)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert (await wait(one, token, asked.id)).approval.state == pb.APPROVAL_STATE_APPROVED
        assert len(await listed(one, token)) == 1


async def test_a_workflow_that_looks_like_a_secret_cannot_be_told_from_another(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one, "sk-aaaaaaaaaaaaaaaa")
        for call in (ask(one, token), wait(one, token, UNKNOWN), listed(one, token)):
            error = await refusal(call)
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "look like a secret" in error.details()


async def test_one_workflow_buries_nobody_elses_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "WAITING_MAX", 3)
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        made = [await ask(one, token, f"op-{at}") for at in range(3)]
        error = await refusal(ask(one, token, "op-3"))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert ("grpc-retry-pushback-ms", "-1") in tuple(error.trailing_metadata())
        assert (await ask(one, token, "op-1")).id == made[1].id, "what was asked is found again"
        assert (await ask(one, await token_of(one, "w2"), "op-3")).id
        await decide(one, made[0].id, "ada")
        assert (await ask(one, token, "op-3")).id
        one.ahead_s = 3601.0
        assert (await ask(one, token, "op-4")).id, "what nobody decided in time waits no more"


async def test_questions_that_nobody_has_time_for_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "WAITING_MAX", 3)
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        for at in range(3):
            await ask(one, token, f"op-{at}", expires=Duration(nanos=1_000_000))
        one.ahead_s = 5.0
        await one.desk.lapse(next(iter([found async for page in one.desk.shelf.all() for _, found in page])))
        assert (await refusal(ask(one, token, "op-3"))).code() is grpc.StatusCode.UNAVAILABLE
        one.ahead_s = 61.0
        assert (await ask(one, token, "op-3")).id


async def test_another_tenants_agent_of_that_name_is_asked_about_anew(tmp_path: Path) -> None:
    async with house(tmp_path, "tenant: one\n" + POLICY) as one, house(tmp_path, "tenant: two\n" + POLICY) as two:
        digests = {(await ask(each, await token_of(each))).digest for each in (one, two)}
    assert len(digests) == 2


async def test_a_store_that_is_away_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        asked = await ask(one, token)
        monkeypatch.setattr(one.desk.shelf, "_store", lambda: None)
        for call in (ask(one, token, "other"), wait(one, token, asked.id, "u"), listed(one, token)):
            error = await refusal(call)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert str(StoreClosed("the store is not open")) in error.details()
        one.mesh.desk = None
        for call in (ask(one, token), wait(one, token, asked.id), listed(one, token)):
            error = await refusal(call)
            assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert "keeps no approvals" in error.details()


async def test_a_drain_lets_those_who_wait_go(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        asked = await ask(one, token)
        waiting = asyncio.ensure_future(wait(one, token, asked.id, "u-1"))
        await until(lambda: len(one.desk.line))
        assert await one.mesh.proxy.drain(20.0)
        error = await refusal(waiting)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert ("grpc-retry-pushback-ms", "1000") in tuple(error.trailing_metadata())
        assert (await one.desk.show(asked.id)).state is State.PENDING
        assert len(one.desk.line) == 0


async def test_a_client_that_leaves_takes_nothing_with_it(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        asked = await ask(one, token)
        waiting = wait(one, token, asked.id, "u-1")
        await until(lambda: len(one.desk.line))
        waiting.cancel()
        await until(lambda: not len(one.desk.line))
        await decide(one, asked.id, "ada")
        assert (await wait(one, token, asked.id, "u-2")).is_granted


async def test_the_face_of_json_says_the_same(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as one:
        token = await token_of(one)
        body = {"token": token, "operation": "deploy", "payload": b64encode(b'{"to":1}').decode(), "summary": "now"}
        status, said = await one.ask("ApprovalService/AskApproval", body)
        asked = said["approval"]
        assert (status, asked["state"], asked["kind"]) == (200, "APPROVAL_STATE_PENDING", "own")
        assert (await ask(one, token)).id == asked["id"], "one object on both faces"
        waits = {"token": token, "approvalId": asked["id"], "useId": "u-1", "timeout": "0.001s"}
        status, said = await one.ask("ApprovalService/WaitForApproval", waits)
        assert (status, said["approval"]["state"], "isGranted" in said) == (200, "APPROVAL_STATE_PENDING", False)
        await decide(one, asked["id"], "ada")
        status, said = await one.ask("ApprovalService/WaitForApproval", waits)
        assert (status, said["isGranted"], said["approval"]["usedBy"]) == (200, True, "u-1")
        status, said = await one.ask("ApprovalService/ListApprovals", {"token": token, "state": "APPROVAL_STATE_USED"})
        assert (status, [item["id"] for item in said["approvals"]]) == (200, [asked["id"]])
        for method, sent, code in (
            ("AskApproval", {"token": token}, 400),
            ("AskApproval", {"token": token, "operation": "x", "payload": 7}, 400),
            ("AskApproval", {"token": token, "operation": "x", "quorum": "many"}, 400),
            ("AskApproval", [], 400),
            ("AskApproval", {"operation": "x"}, 401),
            ("WaitForApproval", {"token": token, "approvalId": UNKNOWN}, 404),
            ("ListApprovals", {"token": token, "state": 77}, 400),
        ):
            status, said = await one.ask(f"ApprovalService/{method}", sent)
            assert (method, status) == (method, code), said


def test_it_is_among_those_that_are_served() -> None:
    assert "meshd.v1.ApprovalService" in [one.name for one in SERVICES]
