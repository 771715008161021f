"""Deferring: a caller that is told of a task, in place of being held for as long as a person takes.

The second half of Approval. A call of MCP or A2A whose client understands tasks is held for a moment only; then it is
written down, and its client is given a task that it may ask for. Whoever asks once the call was allowed has it carried
out, with the credentials of that request and the rules of that moment. A task is its caller's alone: an id that is not
ours, or not this caller's, goes on to the upstream untouched.
"""

from __future__ import annotations

import hmac
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.approvals.deciding import Declined
from meshd.approvals.held_calls import ASKED, BODY_BYTES_MAX, ENDED, HeldCall, HeldCalls, Kept, count_of, new_task
from meshd.approvals.record import read_id
from meshd.approvals.state import State
from meshd.call import OURS, Direction, Reply
from meshd.claims.keys import principal_of, workflow_of
from meshd.dialects import a2a_bindings, a2a_tasks, mcp_tasks
from meshd.dialects.a2a_tasks import is_old
from meshd.dialects.held_task import PREFIX, HeldTask, Stage, decoded, rpc_answer, rpc_error
from meshd.dialects.jsonrpc import event
from meshd.engines.port import StoreError
from meshd.filters.deferred import Deferred
from meshd.filters.following import Following
from meshd.refusal import Reason, Refused
from meshd_sdk import context as codec

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.approvals.carrying import Answer, Carrying
    from meshd.approvals.desk import Desk
    from meshd.approvals.holding import Holding
    from meshd.approvals.record import Approval
    from meshd.call import Call, Headers, Rpc
    from meshd.mesh_key import MeshKeys

HOLD_S: Final = 2.5
"""For which a caller is held that takes a task: what is decided at once is answered at once. Below the first sign of
life, and below the 5 s after which clients of A2A give up."""
SHOWN_S: Final = 5.0
"""A stream that is held for less is answered with its task: it would see no sign of life."""
WAIT_S: Final = 2.0
"""For which whoever asks for a task waits while its call is carried out."""
LASTS_S: Final = 86_400.0
"""For which a task's answer can be fetched, beyond the time to decide in and to use."""
SLACK_S: Final = 60.0
"""Beyond the time for which a token is needed: clocks differ, and a request takes its time."""
MISSING_CAPABILITY: Final = -32021

_INBOUND: Final = Direction.INBOUND
_KEPT: Final = frozenset({b"accept", b"a2a-version", b"a2a-extensions", b"idempotency-key"})
"""Fields that an approval does not bind, and without which the call would be another."""
_DROPPED: Final = frozenset(
    {
        b"host", b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"content-length", b"expect",
        b"upgrade", b"origin", b"accept-encoding", b"last-event-id", b"grpc-timeout",
    }
)  # fmt: skip
_ASKED_FOR: Final = mcp_tasks.METHODS | a2a_tasks.GETS
"""Methods whose answers are short, and are given under the id that their caller knows."""
_CANCELS: Final = a2a_tasks.CANCELS | {mcp_tasks.CANCEL}
_TASK_PART: Final = len(PREFIX) + 15
"""Where, in the id of a task, what is random begins: behind the id of its approval."""


def takes_task(call: Call) -> bool:
    """Say whether a call's client takes a task for an answer, and the call can be made again later."""
    rpc, upstream = call.rpc, call.upstream
    if (
        rpc is None
        or not a2a_bindings.takes_tasks(rpc)
        or call.resumes is not None
        or call.agent.startswith(OURS)
        or call.direction is _INBOUND
    ):
        return False
    if upstream is None or not upstream.is_dialect_told or len(call.body or b"") > BODY_BYTES_MAX:
        return False
    return bool(rpc.takes_task)


def hold_s(call: Call) -> float:
    """Return the seconds for which a caller is held before there is a task: a stream is held on with one."""
    rpc = call.rpc
    return 0.0 if is_streamed(call) or (rpc is not None and rpc.is_impatient) else HOLD_S


def is_streamed(call: Call) -> bool:
    """Say whether a call that takes a task is answered with a stream of events, in which its caller is shown one."""
    rpc = call.rpc
    return rpc is not None and rpc.protocol == "a2a" and rpc.is_stream and rpc.binding == a2a_bindings.JSONRPC


class Deferring:
    """What Approval asks where a call may be answered with a task."""

    __slots__ = ("_bound", "_carrying", "_deferred", "_desk", "_held", "_keys", "_nonce", "_unbound")

    def __init__(
        self,
        desk: Desk,
        carrying: Carrying,
        keys: MeshKeys,
        nonce: Callable[[], bytes],
        *,
        bound: Callable[[Call], tuple[tuple[bytes, bytes], ...]],
        unbound: Callable[[bytes], bool],
        waiting_words: Callable[[Approval], str],
    ) -> None:
        """`bound` and `unbound` say for which header fields an approval holds; `nonce` returns 8 random bytes."""
        self._desk = desk
        self._carrying = carrying
        self._held: HeldCalls = carrying.held
        self._keys = keys
        self._nonce = nonce
        self._bound = bound
        self._unbound = unbound
        self._deferred = Deferred(desk, carrying, waiting_words)

    # ------------------------------------------------------------------ the call itself

    async def defer(self, call: Call, approval: Approval) -> Reply | None:
        """Write a call down and answer it with its task; None where that cannot be done. Raises StoreError."""
        rpc = call.rpc
        assert rpc is not None
        kept = await self._written(call, rpc, approval)
        if kept is None:
            return None
        task = self._deferred.waiting(kept.call, approval)
        if rpc.protocol == "mcp":
            return _reply(call, mcp_tasks.created(rpc.id, task))
        return self._told(call, rpc, kept, task)

    async def hold(self, call: Call, approval: Approval, holding: Holding) -> str:
        """Write a call down whose caller waits for a stream, so that it can be shown a task in it. Return the id under
        which it is to be let go; empty where it is held without. Raises StoreError."""
        rpc = call.rpc
        assert rpc is not None
        kept = await self._written(call, rpc, approval)
        if kept is None or not await self._carrying.hold(kept):
            return ""
        holding.task = self._deferred.waiting(kept.call, approval)
        holding.over = partial(self._carrying.over, approval.id)
        return approval.id

    def let_go(self, id: str, *, is_free: bool) -> None:
        """The caller of such a stream waits no more. `is_free`: its call never went out."""
        self._carrying.let_go(id, is_free=is_free)

    async def _written(self, call: Call, rpc: Rpc, approval: Approval) -> Kept | None:
        try:
            token = self._token(call, 2 * approval.lasts_s + SLACK_S)
        except (codec.TokenTooLongError, ValueError):
            return None
        path, is_query_hidden = self._path_kept(call)
        if not path:
            return None
        now_s, body = self._desk.clock(), call.body or b""
        made = HeldCall(
            id=approval.id,
            task=new_task(PREFIX, approval.id),
            principal=principal_of(call),
            target=call.target.name,
            protocol=rpc.protocol,
            method=rpc.method,
            path=path,
            is_query_hidden=is_query_hidden,
            workflow=workflow_of(call),
            asked_s=now_s,
            changed_s=now_s,
            ttl_s=2 * approval.lasts_s + LASTS_S,
            pieces=count_of(body),
            fields=self._fields_kept(call),
            token=token,
            context_id=rpc.context_id,
            binding=rpc.binding,
        )
        kept = await self._held.add(made, body)
        return kept if kept.call.principal == made.principal else None

    def _path_kept(self, call: Call) -> tuple[str, bool]:
        """Return the path of a call as it is written down, and whether a secret in its query was left out of that;
        empty where one stands elsewhere."""
        path = f"/{call.target.name}{call.path}"
        if not self._is_secret("", path):
            return path, False
        path = path.partition("?")[0]
        return ("" if self._is_secret("", path) else path), True

    def _token(self, call: Call, lasts_s: float) -> str:
        """Return what ties a call that is made for a task to the workflow of this one, for so long."""
        context = call.context
        if context is None:
            return ""
        expires_s = int(self._desk.clock() + lasts_s)
        ring = self._keys.ring
        token = codec.mint(context, ring, audience=codec.Audience.LOCAL, expires_s=expires_s, nonce=self._nonce())
        return token.decode()

    def _fields_kept(self, call: Call) -> tuple[tuple[str, str], ...]:
        """Return the fields that make the call what it is. What looks like a secret is not written down."""
        kept = list(self._bound(call))
        kept += [one for one in call.headers if one[0] in _KEPT or (one[0][:4] == b"mcp-" and b"session" not in one[0])]
        texts = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in kept if name not in _DROPPED]
        return tuple([one for one in texts if not self._is_secret(*one)])

    def _is_secret(self, name: str, value: str) -> bool:
        return self._desk.clean(name, value) != value

    # ------------------------------------------------------------------ whoever asks for a task

    async def answer(self, call: Call) -> Reply | None:
        """Answer a request that names a task of ours; None where it is to go on to the upstream, whose it is then."""
        rpc = call.rpc
        assert rpc is not None
        try:
            kept = await self._known(call, rpc)
            return None if kept is None else await self._answer(call, rpc, kept)
        except Declined:
            return None  # Its approval is long forgotten, and so is the task.
        except StoreError as error:
            raise Refused(Reason.STORE_UNAVAILABLE, f"The task cannot be looked up: {error}.") from error

    async def _known(self, call: Call, rpc: Rpc) -> Kept | None:
        """Return the call of a task that is this caller's."""
        id = read_id(rpc.task[len(PREFIX) : _TASK_PART - 1])
        kept = await self._held.read(id) if id else None
        if kept is None:
            return None
        held = kept.call
        is_theirs = hmac.compare_digest(held.task.encode(), rpc.task.encode("utf-8", "replace"))
        if is_theirs and call.passage is not None:
            call.passage.held_at(call, held.target)  # It came by the MCP gateway, which cannot know.
        # What 0.3 says of a task is not what 1.0 says: by another binding only those of one version ask for it.
        is_theirs = is_theirs and (held.binding == rpc.binding or not (is_old(held.method) or is_old(rpc.method)))
        where = (principal_of(call), call.target.name, rpc.protocol)
        # Who came back after a crash may belong to no workflow any more; who belongs to another one is another.
        workflow = workflow_of(call) or held.workflow
        is_theirs = is_theirs and call.direction is not _INBOUND and workflow == (held.workflow or workflow)
        return kept if is_theirs and where == (held.principal, held.target, held.protocol) else None

    async def _answer(self, call: Call, rpc: Rpc, kept: Kept) -> Reply | None:
        is_mcp = rpc.protocol == "mcp"
        if is_mcp and not rpc.declares_tasks:
            error = rpc_error(rpc.id, MISSING_CAPABILITY, f"Missing required client capability: {mcp_tasks.EXTENSION}")
            return _reply(call, error)
        if kept.call.other:
            return await self._of_other(call, rpc, kept.call)
        if rpc.method in a2a_tasks.SENDS:
            return None
        if rpc.method in _CANCELS:
            task = await self._cancelled(call, kept)
            if not is_mcp and task.stage not in (Stage.CANCELLED, Stage.DENIED):
                words = "The task cannot be cancelled: it is being carried out, or is over."
                return a2a_bindings.failed(call, a2a_tasks.NOT_CANCELABLE, words)
        else:
            task = await self._looked_at(call, kept)
            if task.stage is Stage.ENDED and not task.answer:
                # Its upstream made a task of its own just now.
                return await self._answer(call, rpc, await self._held.read(kept.call.id) or kept)
        if is_mcp:
            return _reply(call, mcp_tasks.answered(rpc.id, rpc.method, task))
        return self._told(call, rpc, kept, task)

    def _told(self, call: Call, rpc: Rpc, kept: Kept, task: HeldTask) -> Reply:
        """Return the answer that shows a task; that of a stream goes on until the task is over."""
        reply = a2a_bindings.reply(call, a2a_tasks.answered(rpc.method, task))
        # A stream of JSON-RPC that could be held is; of one that could not its caller asks for the task.
        is_followed = rpc.method in a2a_tasks.SUBSCRIBES or rpc.binding != a2a_bindings.JSONRPC
        if is_followed and rpc.method in a2a_tasks.STREAMED and task.stage in (Stage.WAITING, Stage.RUNNING):
            reply.rest, reply.size = self._following(call, kept, task), None
            if call.claim is not None:
                call.claim.withdraw()
        return reply

    async def _looked_at(self, call: Call, kept: Kept) -> HeldTask:
        """Return where a task stands; carry its call out where it was allowed."""
        held = kept.call
        approval = await self._desk.show(held.id)
        state = approval.state_at(self._desk.clock())
        is_free = held.state == ASKED or (held.state != ENDED and await self._carrying.is_lost(held))
        if state is State.APPROVED and is_free:
            path = held.path + ("?" + call.path.partition("?")[2] if held.is_query_hidden else "")
            await self._carrying.carry_out(kept, path, self._fields(call, held), reader_of(held), WAIT_S)
            kept = await self._held.read(held.id) or kept
            approval = await self._desk.show(held.id)
        return await self._deferred.stands(kept.call, approval)

    def _following(self, call: Call, kept: Kept, task: HeldTask) -> Following:
        """Return what tells a subscriber of a task from here on."""
        rpc: Any = call.rpc
        id, old = kept.call.id, is_old(rpc.method)

        async def now() -> Kept:
            return await self._held.read(id) or kept

        async def peek() -> HeldTask:
            return await self._deferred.stands((await now()).call, await self._desk.show(id))

        async def look() -> HeldTask:
            return await self._looked_at(call, await now())

        def say(task: HeldTask) -> bytes:
            return b"".join([a2a_bindings.piece(rpc, one) for one in a2a_tasks.followed(task, is_old=old)])

        life = a2a_bindings.life(rpc)
        return Following(self._desk.line, id, task.stage, peek=peek, look=look, say=say, life=life)

    async def _cancelled(self, call: Call, kept: Kept) -> HeldTask:
        held = kept.call
        approval = await self._desk.show(held.id)
        if held.state == ASKED or approval.state is State.PENDING:
            try:
                await self._desk.cancel(held.id, f"{call.agent} cancelled its task")
            except Declined:
                # Decided meanwhile: what it says now is the answer.
                pass
        return await self._deferred.stands(held, await self._desk.show(held.id))

    # ------------------------------------------------------------------ a task of the upstream's own

    async def _of_other(self, call: Call, rpc: Rpc, held: HeldCall) -> Reply | None:
        """Ask the upstream for the task that it made of the call, and answer under the id that the caller knows."""
        path, body = a2a_bindings.renamed_request(call, held.task, held.other)
        if rpc.method not in _ASKED_FOR:
            # A stream, another message of the same task, or its end: it goes on as any call and is judged as one, for
            # the task as it is called there.
            call.path, call.body = path, body
            if call.passage is not None:
                call.passage.body = body
            return None
        send = self._carrying.send
        assert send is not None
        fields = [
            (b"mcp-name", held.other.encode()) if one[0] == b"mcp-name" else one
            for one in call.headers
            if one[0] not in _DROPPED and not one[0].startswith(codec.HEADER_PREFIX)
        ]
        fields.append((codec.HEADER_CONTEXT, self._token(call, SLACK_S).encode()))
        answer = await send(f"/{call.target.name}{path}", fields, body, "")
        found = a2a_bindings.heard(rpc.binding, rpc.method, answer)
        if not found:
            raise Refused(Reason.UPSTREAM_UNREACHABLE, f"{call.target.name} answered with something else than a task")
        result = found[-1].get("result")
        if not isinstance(result, dict) and rpc.binding != a2a_bindings.JSONRPC:
            words = _error(found[-1])["error"].get("message", "no result")
            raise Refused(Reason.UPSTREAM_UNREACHABLE, f"{call.target.name} answered: {words}")
        if not isinstance(result, dict):
            return _reply(call, msgspec.json.encode({"jsonrpc": "2.0", "id": decoded(rpc.id), **_error(found[-1])}))
        if rpc.protocol == "mcp":
            if "taskId" in result:
                result["taskId"] = held.task
            return _reply(call, rpc_answer(rpc.id, result))
        return a2a_bindings.reply(call, a2a_tasks.under(result, held.task))

    def _fields(self, call: Call, held: HeldCall) -> Headers:
        """Return the fields with which a call is made again: its own, and the credentials of who asks for its task."""
        fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in held.fields]
        names = {name for name, _ in fields} | _DROPPED | _KEPT
        for name, value in call.headers:
            if name in names or name.startswith(b"x-meshd-"):
                continue
            is_unbound = name == b"mcp-session-id" or (name[:4] != b"mcp-" and self._unbound(name))
            if is_unbound or self._is_secret(name.decode("latin-1"), value.decode("latin-1")):
                fields.append((name, value))
        if held.token:
            fields.append((codec.HEADER_CONTEXT, held.token.encode()))
        return fields


def reader_of(held: HeldCall) -> Callable[[Answer], tuple[bytes, str]]:
    """Return what reads the answer to a call."""
    if held.protocol == "mcp":
        return lambda answer: mcp_tasks.outcome_of(answer.body, is_stream=answer.is_stream)
    return lambda answer: a2a_tasks.outcome_of(a2a_bindings.heard(held.binding, held.method, answer))


def _error(message: dict[str, Any]) -> dict[str, Any]:
    error = message.get("error")
    return {"error": error if isinstance(error, dict) else {"code": -32603, "message": "no result"}}


def _reply(call: Call, message: bytes) -> Reply:
    rpc = call.rpc
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store"), *call.reply_headers]
    if rpc is not None and rpc.is_stream and (rpc.method in a2a_tasks.STREAMED or not rpc.is_json_taken):
        headers[0] = (b"content-type", b"text/event-stream")
        return Reply(200, headers, event(message))
    return Reply(200, headers, message)
