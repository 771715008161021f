"""One call to several agents at once: each is told the same, and what they answer comes back together.

Each part is a call of its own, judged, sent and counted as if the caller had made it: what binds one binds each, and
one that is refused or fails harms no other. Each gets its part of the caller's tokens by the delegation that is there
(guarantees, part 1, rule 9), so that all together can spend no more than one, and what a part leaves flows back.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.call import Call, Direction, Reply
from meshd.dialects.scatter import Scatter
from meshd.engines.port import StoreError
from meshd.filters.delegation import TOKENS_MAX, Delegation, asked_tokens
from meshd.filters.purse import CEILING, UNATTRIBUTED, account_of
from meshd.outcome import Outcome, Verdict
from meshd.proxy.errand import for_caller
from meshd.refusal import Reason, Refused
from meshd.wire.fields import HOP_BY_HOP
from meshd_sdk import context as codec

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.ledger import Ledger
    from meshd.proxy.errand import Answered
    from meshd.proxy.incoming import Incoming
    from meshd.proxy.proxy import Proxy

INTENT_FIELD: Final = b"x-meshd-intent"
FAN_OUT_FIELD: Final = b"x-meshd-fan-out"
_OWN: Final = HOP_BY_HOP | {
    INTENT_FIELD, FAN_OUT_FIELD, codec.HEADER_DELEGATE, b"host", b"content-length", b"transfer-encoding", b"expect",
    b"accept-encoding", b"traceparent",
}  # fmt: skip
"""What no part is told: what is of the connection, what has been done with the call itself, and codings of an answer
that is to stand within another."""


class Scattering:
    """The parts of one call."""

    __slots__ = ("_body", "_call", "_is_cancelled", "_path", "_proxy", "_targets", "_task")

    def __init__(self, exchange: Incoming, body: bytes) -> None:
        self._call: Call = exchange.call
        self._proxy: Proxy = exchange.proxy
        self._body = body
        dialect: Any = exchange.call.dialect
        assert isinstance(dialect, Scatter)
        self._targets = dialect.targets
        self._path = dialect.path
        self._task: asyncio.Future[Any] | None = None
        self._is_cancelled = False

    def cancel(self) -> None:
        """Nobody waits for the answers any more."""
        self._is_cancelled = True
        if self._task is not None:
            self._task.cancel()

    async def run(self) -> Reply:
        """Make the calls, and return what is answered. Raises Refused where the call itself is malformed."""
        fields = await self._fields()
        if self._is_cancelled:
            raise _unwanted()
        self._task = asyncio.gather(*(self._part(target, fields) for target in self._targets))
        try:
            answers = await self._task
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise _unwanted() from None
        body = msgspec.json.encode({"answers": answers})
        headers: Headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
        statuses = [answer["status"] for answer in answers]
        # One answer is an answer; where there is none, the best one's failure is what the caller is told.
        status = 200 if any(status < 400 for status in statuses) else statuses[0]
        return Reply(status, headers + self._call.reply_headers, body)

    async def _part(self, target: str, fields: Headers) -> dict[str, Any]:
        run = f"/w/{self._call.run_token}" if self._call.run_token else ""
        path = f"{run}/{target}{self._path}"
        try:
            answered = await for_caller(self._call, self._proxy, path, fields, self._body)
        except Refused as refused:
            told = {"reason": refused.reason.value, "message": refused.message}
            return {"agent": target, "status": refused.status, "refused": told}
        return {"agent": target, "status": answered.status} | _shown(answered)

    async def _fields(self) -> Headers:
        call = self._call
        fields = [field for field in call.headers if field[0].lower() not in _OWN]
        tokens = await self._tokens()
        if tokens is not None:
            # Nobody can be given less than one: of two tokens, two have a part.
            self._targets = self._targets[: max(1, tokens)]
            fields.append((codec.HEADER_DELEGATE, b"%d" % max(1, tokens // len(self._targets))))
        parent = call.span.traceparent if call.span is not None else ""
        if parent:
            fields.append((b"traceparent", parent.encode("ascii")))
        return fields

    async def _tokens(self) -> int | None:
        """Return the tokens that all parts may have together; None where nothing limits them. Raises Refused."""
        call, chain = self._call, self._proxy.chain
        asked = asked_tokens(call)
        if asked is not None:
            return asked
        seen = Call("", Direction.OUTBOUND, call.method, call.path, "", call.headers, call.now_s, call.wall_s)
        seen.governed, seen.policy, seen.run_token = call.governed, call.policy, call.run_token
        seen.agent = chain.context.speaker(call)
        ticket = chain.context.admit(seen)
        if ticket is not None:
            ticket.settle(Outcome(Verdict.NEUTRAL, call.now_s))
        account, limit = account_of(seen, CEILING)
        if call.policy.workflow_tokens is not None and not account.startswith(UNATTRIBUTED):
            limit = min(limit, call.policy.workflow_tokens)
        if limit >= TOKENS_MAX:
            return None
        ledger = next(one.ledger for one in chain.per_call if isinstance(one, Delegation))
        try:
            return await _left(ledger, account, limit)
        except StoreError:
            return limit  # The parts are refused in the words of the ledger.


async def _left(ledger: Ledger, account: str, limit: int) -> int:
    """Return what an account has left under a limit: neither spent, nor held, nor given away. Raises StoreError."""
    owner = await ledger.orders.books(account)
    entry = ledger.accounts.get(account)
    own = entry.holder if entry is not None else None
    taken = owner.settled + owner.delegated + (own.reserved if own is not None else 0)
    for name, stake in owner.stakes.items():
        is_own = name == ledger.holder and own is not None and own.epoch == stake.epoch
        # What this sidecar has on lease is free but for what it has spent; another's may be in use there.
        taken += max(0, own.spent - stake.spent) if is_own and own is not None else stake.outstanding
    total = owner.total if owner.parent else limit + owner.extra
    return max(0, total - taken)


def _unwanted() -> Refused:
    return Refused(Reason.DRAINING, "Nobody waits for the answers any more")


def _shown(answered: Answered) -> dict[str, Any]:
    """Return the body as it is read: JSON as JSON, all else as text."""
    content_type = answered.field(b"content-type")
    body: Any = answered.body.decode("utf-8", "replace")
    if content_type.partition(";")[0].strip().lower().endswith(("/json", "+json")):
        try:
            body = msgspec.Raw(msgspec.json.encode(msgspec.json.decode(answered.body)))
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            pass
    return {"content_type": content_type, "body": body}
