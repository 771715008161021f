"""Idempotency: a call that is made again gets the answer of the first, and is not carried out twice.

By what a call is known, in this order: its `Idempotency-Key` (header or gRPC metadata), the key in its message (A2A's
`messageId`, a key in `_meta`), the model's tool call that it names, and, for a completion, what it says, where its
client says how often it has tried.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from meshd.call import NEED_BODY, Kind, Wait
from meshd.claims import words
from meshd.claims.book import Book
from meshd.claims.keys import (
    TOOL_CALL,
    checked,
    derived_key,
    fingerprint_of,
    identity_of,
    key_in,
    retry_count_in,
    value_of,
)
from meshd.claims.retries import Retries

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call
    from meshd.filters.idempotency_settings import IdempotencySettings
    from meshd.filters.plan import Plan
    from meshd.ledger import Ledger

# Bound once: reading a member from its enum costs 0.17 us on Python 3.11, and every call reads dozens.
_LLM: Final = Kind.LLM

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "CONNECT"})
"""Methods that change nothing (RFC 9110, section 9.2.1), and the one that opens a tunnel."""


class Idempotency:
    """Claims calls that can be known again, and answers those that are."""

    __slots__ = ("book", "retries")

    name = "idempotency"

    def __init__(
        self, ledger: Ledger, *, wall_clock: Callable[[], float], nonce: Callable[[], str], spill: Callable[[], Any]
    ) -> None:
        """`nonce` returns a text that no other claim has; `spill` opens a file for an answer that is long."""
        self.book = Book(wall_clock=wall_clock, nonce=nonce, spill=spill)
        self.retries = Retries(self.book.results, spill)
        self.book.keep(ledger)

    def keep_books(self, ledger: Ledger) -> None:
        """Keep claims where other books are kept."""
        self.book.keep(ledger)

    def admit(self, call: Call) -> Any:
        """See `Filter.admit`. Raises Refused for what is no key, and where a key is missing that must be there."""
        plan: Plan = call.plan
        settings = plan.idempotency
        if settings is None or call.method in _SAFE:
            return None
        rpc: Any = None if call.target.kind is _LLM else getattr(call, "rpc", None)
        if not call.keyed and rpc is None and not settings.required:
            return None
        return self._known(call, settings, rpc)

    def _known(self, call: Call, settings: IdempotencySettings, rpc: Any) -> Any:
        key, sort = key_in(call.keyed) if call.keyed else "", "key"
        if not key and rpc is not None and rpc.key:
            key, sort = checked(rpc.key, "key in the message (messageId, or in _meta)"), "message"
            if rpc.protocol == "a2a":
                # A messageId is no key that anybody chose to be one: clients exist that give it to other messages too.
                key += f" {sha256(rpc.arguments).hexdigest()}"
        tool_call = "" if key or not settings.derived else self._tool_call(call, rpc)
        if not key and not tool_call:
            return self._unkeyed(call, settings, rpc)
        if rpc is not None and rpc.is_read_only:
            return None
        if call.body is None:
            return NEED_BODY
        if tool_call:
            key, sort = derived_key(call, tool_call), "derived"
        return Wait(self.book.claim(call, settings, identity_of(call, sort, key), fingerprint_of(call)))

    @staticmethod
    def _tool_call(call: Call, rpc: Any) -> str:
        if call.target.kind is _LLM:
            return ""
        value = value_of(call.keyed, TOOL_CALL)
        named = value.decode("latin-1") if value is not None else rpc.tool_call_id if rpc is not None else ""
        return checked(named, "id of the tool call") if named else ""

    def _unkeyed(self, call: Call, settings: IdempotencySettings, rpc: Any) -> Any:
        if call.ask is not None:
            count = retry_count_in(call.keyed) if settings.derived else -1
            return None if count < 0 else self.retries.admit(call, settings, count)
        if settings.required and call.target.kind is not _LLM and _may_change(rpc):
            raise words.missing(settings.rule)
        return None

    def explain(self, call: Call) -> str:
        """See `Filter.explain`."""
        settings: IdempotencySettings | None = call.plan.idempotency
        if settings is None:
            return "no call is known again"
        claim = call.claim
        if claim is not None and claim.identity:
            waits = "waits for its answer" if settings.in_flight == "join" else "is told so (409)"
            return (
                f"known by its key for {settings.keep:g} s, and carried out once; the same call made meanwhile {waits}"
            )
        if claim is not None:
            return "known by what it says: if its client hangs up and tries again, the retry gets this one's answer"
        if call.method in _SAFE:
            return f"{call.method} changes nothing, so it needs no key"
        return "it has no key, and does not say how often it was tried: made again, it is carried out again"


def _may_change(rpc: Any) -> bool:
    """Say whether a call that is no completion may change something, as far as it shows."""
    return rpc is None or (not rpc.is_read_only and rpc.method in _CARRIES_OUT)


_CARRIES_OUT: Final = frozenset({"tools/call", "message/send", "message/stream", "SendMessage", "SendStreamingMessage"})
"""Of MCP and A2A, the methods that do something; the others open sessions, list and look."""
