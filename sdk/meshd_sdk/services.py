"""Contexts, budgets and approvals: the API's services that answer once, over a channel of the session's."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from meshd_sdk.backoff import delay_s
from meshd_sdk.errors import CallFailed, Failure, Malformed, NoSidecar
from meshd_sdk.link import Balance, Charged, Given, Opening, Usage
from meshd_sdk.messages import approval_of, ask_of, balance_of, duration, given_of, open_of, state_of
from meshd_sdk.statuses import failure_of_rpc
from meshd_sdk.v1 import (
    approvals_pb2,
    approvals_pb2_grpc,
    budget_pb2,
    budget_pb2_grpc,
    context_pb2,
    context_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd_sdk.approvals import Approval, Wish

REQUEST_BYTES_MAX: Final = 4 * 2**20
"""What the sidecar reads of one message."""
ATTEMPTS_MAX: Final = 5
"""More than a sidecar breaks that is started anew three times in a row. All that is asked here may be asked again: each
request carries an id of its own, or changes nothing that counts."""
ANSWER_S: Final = 30.0
WAIT_S: Final = 20.0
"""For how long one request waits for people to decide; then the next one does."""
AWAY_S: Final = 60.0
"""For how long a sidecar that is away, or cannot answer, is asked again while people decide."""


class Services:
    """See the module; `Session` says which channel is open now."""

    is_leaving: bool
    """The agent is about to leave its session."""

    async def channel(self) -> grpc.aio.Channel:
        """Return the channel that is open, or wait for one."""
        raise NotImplementedError

    async def open(self, opening: Opening) -> Given:
        """Open a workflow."""
        answer = await self._ask(lambda on: context_pb2_grpc.ContextServiceStub(on).Open, open_of(opening))
        return given_of(answer.context)

    async def read(self, token: str) -> Given:
        """Say what a token says."""
        request = context_pb2.ReadRequest(token=token)
        answer = await self._ask(lambda on: context_pb2_grpc.ContextServiceStub(on).Read, request)
        return given_of(answer.context)

    async def narrow(self, token: str, limits: Opening) -> Given:
        """Return a context that allows less than the token's: of `limits`, the time and the ceilings are read."""
        request = context_pb2.NarrowRequest(
            token=token,
            timeout=None if limits.timeout_s is None else duration(limits.timeout_s),
            ceiling_tokens=limits.tokens,
            ceiling_microdollars=limits.microdollars,
        )
        answer = await self._ask(lambda on: context_pb2_grpc.ContextServiceStub(on).Narrow, request)
        return given_of(answer.context)

    async def delegate(self, token: str, id: str, tokens: int) -> Given:
        """Set a part aside; return the context that is charged to it."""
        request = budget_pb2.DelegateRequest(token=token, delegation_id=id, tokens=tokens)
        answer = await self._ask(lambda on: budget_pb2_grpc.BudgetServiceStub(on).Delegate, request)
        return given_of(answer.context)

    async def reclaim(self, token: str, id: str) -> tuple[int, int]:
        """End a part; return the tokens of it that were spent, and that flowed back."""
        request = budget_pb2.ReclaimRequest(token=token, delegation_id=id)
        answer = await self._ask(lambda on: budget_pb2_grpc.BudgetServiceStub(on).Reclaim, request)
        return answer.spent_tokens, answer.returned_tokens

    async def balance(self, token: str) -> list[Balance]:
        """Say what is left."""
        request = budget_pb2.GetBalanceRequest(token=token)
        answer = await self._ask(lambda on: budget_pb2_grpc.BudgetServiceStub(on).GetBalance, request)
        return [balance_of(one) for one in answer.balances]

    async def report_usage(self, token: str, id: str, usage: Usage) -> Charged:
        """Charge what was used."""
        request = budget_pb2.ReportUsageRequest(token=token, report_id=id, **usage._asdict())
        answer = await self._ask(lambda on: budget_pb2_grpc.BudgetServiceStub(on).ReportUsage, request)
        return Charged(answer.charged_tokens, answer.is_exhausted)

    async def ask_approval(self, token: str, wish: Wish) -> Approval:
        """Ask people; return the approval that is in force for it."""
        stub = approvals_pb2_grpc.ApprovalServiceStub
        answer = await self._ask(lambda on: stub(on).AskApproval, ask_of(token, wish))
        return approval_of(answer.approval)

    async def wait_for_approval(
        self, token: str, id: str, use_id: str, timeout_s: float | None
    ) -> tuple[Approval, bool]:
        """Wait for the decision, over restarts of the sidecar; return the approval as it stands when it is there, or
        after `timeout_s` seconds, and whether it is used under `use_id` now."""
        stub, loop = approvals_pb2_grpc.ApprovalServiceStub, asyncio.get_running_loop()
        ends_s = None if timeout_s is None else loop.time() + timeout_s
        failed, since_s = 0, 0.0
        while True:
            wait_s = WAIT_S if ends_s is None else max(0.001, min(WAIT_S, ends_s - loop.time()))
            request = approvals_pb2.WaitForApprovalRequest(
                token=token, approval_id=id, timeout=duration(wait_s), use_id=use_id
            )
            try:
                answer = await self._ask(lambda on: stub(on).WaitForApproval, request)
            except (Failure, NoSidecar) as error:
                now_s = loop.time()
                since_s = since_s if failed else now_s
                is_passing = error.is_retryable if isinstance(error, Failure) else not self.is_leaving
                if not is_passing or now_s >= since_s + AWAY_S or (ends_s is not None and now_s >= ends_s):
                    raise
                await asyncio.sleep(delay_s(failed, random.random()))  # noqa: S311 - jitter is no secret
                failed += 1
                continue
            found = approval_of(answer.approval)
            if answer.is_granted or found.state != "pending" or (ends_s is not None and loop.time() >= ends_s):
                return found, answer.is_granted
            failed = 0

    async def approvals(self, token: str, state: str) -> list[Approval]:
        """List those of the workflow, in a state; in any where that is empty."""
        stub = approvals_pb2_grpc.ApprovalServiceStub
        request = approvals_pb2.ListApprovalsRequest(token=token, state=state_of(state))
        answer = await self._ask(lambda on: stub(on).ListApprovals, request)
        return [approval_of(one) for one in answer.approvals]

    async def _ask(self, method: Callable[[grpc.aio.Channel], Any], request: Any) -> Any:
        """Ask, again where the connection broke; raise what the sidecar says, NoSidecar where it stays away."""
        last: grpc.aio.AioRpcError | None = None
        if (size := request.ByteSize()) > REQUEST_BYTES_MAX:
            words = (
                f"the request has {size} bytes, and a sidecar takes {REQUEST_BYTES_MAX}: keep large things elsewhere"
            )
            raise Malformed(f"{words}, and send where they are", code="RESOURCE_EXHAUSTED", reason="too_large")
        for _ in range(ATTEMPTS_MAX):
            try:
                async with asyncio.timeout(ANSWER_S):
                    channel = await self.channel()
            except TimeoutError as error:
                raise NoSidecar(f"the sidecar has been away for {ANSWER_S:.0f} s") from (last or error)
            try:
                return await method(channel)(request, timeout=ANSWER_S)
            except grpc.aio.AioRpcError as error:
                failure = failure_of_rpc(error)
                is_broken = error.code() is grpc.StatusCode.UNAVAILABLE and not failure.reason
                if error.code() is grpc.StatusCode.UNIMPLEMENTED and not failure.reason:
                    asked = type(request).__name__.removesuffix("Request")
                    words = f"the sidecar does not know {asked}: it is older than this SDK, bring it up to date"
                    raise CallFailed(words, code="UNIMPLEMENTED") from error
                if not is_broken:
                    raise failure from error
                last = error
            except grpc.aio.UsageError:
                continue  # the channel was closed in the meantime
            except asyncio.CancelledError:
                # gRPC ends the calls of a channel that is closed so; whoever cancels this task means it.
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
        raise NoSidecar("the connection to the sidecar broke again and again") from last
