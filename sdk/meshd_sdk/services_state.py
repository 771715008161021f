"""Shared state: what `Services` asks of StateService. Imports grpcio and protobuf."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from meshd_sdk.backoff import delay_s
from meshd_sdk.messages import duration, failure_of, given_of
from meshd_sdk.messages_state import lease_of, state_of, wish_of, written_of
from meshd_sdk.services import Services
from meshd_sdk.statuses import failure_of_rpc
from meshd_sdk.v1 import state_pb2, state_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from meshd_sdk.link import Given
    from meshd_sdk.state_values import Lease, State, Wish, Written

STUB: Final = state_pb2_grpc.StateServiceStub
METHODS: Final = {"commit": "Commit", "delete": "DeleteState", "shadow": "WriteShadow", "promote": "Promote"}


class StateServices(Services):
    """See the module."""

    async def remember(self, token: str, references: list[str]) -> Given:
        """Return a context that holds these references too."""
        request = state_pb2.RememberRequest(token=token, references=references)
        return given_of((await self._ask(lambda on: STUB(on).Remember, request)).context)

    async def state_get(self, token: str, key: str, version: int, reads_shadow: bool) -> State:
        """Read an object; version 0 where there is none."""
        request = state_pb2.GetStateRequest(token=token, key=key, version=version, reads_shadow=reads_shadow)
        return state_of((await self._ask(lambda on: STUB(on).GetState, request)).object)

    async def state_write(self, token: str, wish: Wish) -> Written:
        """Make a change, once for its id."""
        answer = await self._ask(lambda on: getattr(STUB(on), METHODS[wish.kind]), wish_of(token, wish))
        return written_of(answer if wish.kind == "commit" else answer.commit)

    async def state_check_out(self, token: str, key: str, id: str, lease_s: float) -> tuple[State, Lease | None]:
        """Check an object out, or renew that; return it, and the lease of another one who has it."""
        request = state_pb2.CheckoutRequest(token=token, key=key, lease_id=id, lease=duration(lease_s))
        answer = await self._ask(lambda on: STUB(on).Checkout, request)
        return state_of(answer.object), None if answer.lease_id else lease_of(answer.lease)

    async def state_release(self, token: str, key: str, id: str) -> bool:
        """Give it back; return whether it was still checked out under this id."""
        request = state_pb2.ReleaseRequest(token=token, key=key, lease_id=id)
        return bool((await self._ask(lambda on: STUB(on).Release, request)).is_released)

    async def state_history(self, token: str, key: str) -> list[State]:
        """List the versions that are kept, newest first."""
        answer = await self._ask(lambda on: STUB(on).History, state_pb2.HistoryRequest(token=token, key=key))
        return [state_of(one) for one in answer.versions]

    async def state_drop(self, token: str, key: str) -> bool:
        """Drop tentative versions; return whether there were any."""
        request = state_pb2.DropShadowRequest(token=token, key=key)
        return bool((await self._ask(lambda on: STUB(on).DropShadow, request)).is_dropped)

    async def state_watch(self, token: str, key: str, known: int) -> AsyncIterator[State]:
        """Yield an object and its changes, over broken connections, drains and restarts of the sidecar."""
        failed = 0
        while True:
            channel = await self.channel()
            request = state_pb2.WatchStateRequest(token=token, key=key, known_version=known)
            call: Any = STUB(channel).WatchState(request)
            try:
                async for answer in call:
                    failed = 0
                    if answer.HasField("end"):
                        failure = failure_of(answer.end)
                        if not failure.is_retryable:
                            raise failure
                        break
                    if answer.HasField("object"):
                        known = answer.object.version
                        yield state_of(answer.object)
            except grpc.aio.AioRpcError as error:
                failure = failure_of_rpc(error)
                is_broken = error.code() is grpc.StatusCode.UNAVAILABLE and not failure.reason
                if not is_broken and not failure.is_retryable:
                    raise failure from error
            except grpc.aio.UsageError:
                pass  # the channel was closed in the meantime
            except asyncio.CancelledError:
                # gRPC ends the calls of a channel that is closed so; whoever cancels this task means it.
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
            finally:
                call.cancel()
            await asyncio.sleep(delay_s(failed, random.random()))  # noqa: S311 - jitter is no secret
            failed += 1
