"""Going down a chain: what takes the place of a target that no attempt is left at, and what is passed over.

Only before the first byte of a reply has left, and only after what another target may do better: never after the
caller's own mistakes, a content filter, or what a rule of ours refused. What costs nothing (a kept answer, a program, a
text) is all that is left once a budget is used up, or once a request that may change something may have arrived.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshd.call import Kind, Target
from meshd.dialects.canned import can_answer
from meshd.filters.answers import Answers, are_kept, key_of
from meshd.filters.substitution import (
    CACHED,
    MODEL,
    UPSTREAM,
    Standing,
    Substitution,
    is_too_long,
    kind_of,
    name_of,
    stand_in,
)
from meshd.outcome import Fault
from meshd.refusal import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call
    from meshd.filters.allow_list_settings import AllowSettings
    from meshd.filters.chain_settings import ChainSettings, Substitute
    from meshd.outcome import Outcome

# Bound here: looking a member up on its enum takes 0.1 us on Python 3.11.
_LLM: Final = Kind.LLM
_NO_FAULT: Final = Fault.NONE

_ELSEWHERE: Final = (UPSTREAM, MODEL)
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
_CAUSE: Final[dict[Fault, str]] = {
    Fault.CONNECT: "connect",
    Fault.CONNECT_TIMEOUT: "connect",
    Fault.REFUSED_STREAM: "connect",
    Fault.TLS: "connect",
    Fault.RESET: "reset",
    Fault.TRUNCATED: "reset",
    Fault.GARBAGE: "reset",
    Fault.FIRST_BYTE_TIMEOUT: "timeout",
    Fault.FIRST_TOKEN_TIMEOUT: "timeout",
    Fault.GAP_TIMEOUT: "timeout",
    Fault.POOL_FULL: "overloaded",
}
_REASON: Final[dict[Reason, str]] = {
    Reason.CIRCUIT_OPEN: "open",
    Reason.OVERLOADED: "overloaded",
    Reason.BUDGET_EXHAUSTED: "budget",
    Reason.BUDGET_BUSY: "budget",
}
"""Our own refusals after which something else may serve the call; after all others nothing may."""
_REJECTED: Final = "rejected"
_THEIR_OWN: Final = frozenset({401, 402, 403, 404})
"""What a substitute answers because of itself (its key, its models); other 4xx are about the request, and no other
upstream is asked about that."""
SERVED_BY: Final = b"x-meshd-served-by"
"""Reply header: what served the call where its first choice did not."""
_OF_BUDGET: Final = b"x-meshd-budget-"

_OURS: Final = {"open": "breaker open", "budget": "no budget", "context": "request too long"}


class Next(NamedTuple):
    """The attempt to make next, or what is to answer in its place."""

    target: Target
    delay_s: float
    link: Substitute | None = None
    """The link of the chain; None for the same target again."""
    standing: Standing | None = None
    """Whom the attempt is for; None where meshd answers itself, with `link`."""
    kept: Any = None
    """`meshd.filters.answers.Kept`: the answer, where it is one that the same request got before."""


class Substituting:
    """Decides what takes the place of a target."""

    __slots__ = ("_judge", "answers")

    def __init__(self, judge: Callable[[Call, AllowSettings], None] | None) -> None:
        """See `Fallback`."""
        self._judge = judge
        self.answers = Answers()
        """What requests got, for links that say `cached`."""

    def down(self, call: Call, outcome: Outcome) -> Next | None:
        """Go down the chain, past what cannot serve the call."""
        if outcome.is_answered:
            return None
        chain: ChainSettings | None = call.plan.chain
        cause = link_cause(call, outcome)
        if cause is None:
            return None
        substitution: Substitution | None = call.substitution
        if substitution is None:
            if chain is None or cause not in chain.on:
                return None
            substitution = Substitution(call)
            substitution.add(chain, call.target)
            # An attempt before this one may have arrived, whatever became of this.
            substitution.is_free_only = call.is_forwarded and not _may_be_sent_again(call)
        else:
            substitution.tried.append(f"{substitution.served_by} ({_words(cause, outcome)})")
            if chain is not None and cause in chain.on:
                substitution.add(chain, call.target)
        if _is_free_only(call, cause, outcome):
            substitution.is_free_only = True
        return self._further(call, substitution, outcome.now_s)

    def repeated(self, call: Call, outcome: Outcome) -> None:
        """Take note that a substitute is tried again after an attempt that ended so."""
        if call.substitution is not None and _has_arrived(call, outcome):
            call.substitution.is_free_only = True

    def further(self, call: Call, now_s: float) -> Next | None:
        """Return what follows a link that gave no answer; None where nothing does. `substitution.why` says why."""
        substitution: Substitution = call.substitution
        substitution.tried.append(f"{substitution.served_by} ({substitution.why or 'no answer'})")
        return self._further(call, substitution, now_s)

    def _further(self, call: Call, substitution: Substitution, now_s: float) -> Next | None:
        origin, tried = substitution.origin, substitution.tried
        while substitution.links:
            link, of = substitution.links.pop(0)
            kind, name = kind_of(link), name_of(link)
            if kind in _ELSEWHERE:
                if substitution.is_free_only:
                    tried.append(f"{name} (not sent to)")
                    continue
                made = stand_in(call, origin, link, of, self._judge)
                if isinstance(made, str):
                    tried.append(f"{name} ({made.rstrip('.')})")
                    continue
                if made.target in substitution.taken:
                    continue
                call.substitution = substitution
                return Next(made.target, 0.0, link, made)
            if kind == CACHED:
                key = key_of(call, origin) if are_kept(call) else b""
                kept = self.answers.find(key, now_s, link.cached or 0.0)
                if kept is None:
                    tried.append(f"{name} (nothing that is new enough)")
                    continue
                call.substitution = substitution
                return Next(origin.target, 0.0, link, None, kept)
            if not can_answer(origin.dialect, origin.ask, getattr(call, "rpc", None)):
                tried.append(f"{name} (cannot answer this)")
                continue
            call.substitution = substitution
            return Next(origin.target, 0.0, link)
        substitution.kind = ""
        return None

    def take(self, call: Call, following: Next) -> None:
        """Let what `next` returned take the target's place: from here on the call is its."""
        substitution: Substitution = call.substitution
        link, standing = following.link, following.standing
        assert link is not None
        substitution.kind = kind_of(link)
        substitution.standing = standing
        substitution.is_local = standing is None
        substitution.attempts_before = call.attempt
        substitution.request = None
        substitution.why = ""
        if standing is None:
            substitution.served_by = name_of(link)
            substitution.origin.put(call)
        else:
            target = standing.target
            substitution.served_by = f"{target.name}/{target.model}" if target.model else target.name
            substitution.taken.add(target)
            standing.put(call)
            call.plan.hit()
        call.reply_headers[:] = [field for field in call.reply_headers if not field[0].startswith(_OF_BUDGET)]
        forget(call)
        call.reply_headers.append((SERVED_BY, substitution.served_by.encode("latin-1", "replace")))

    def before(self, call: Call, outcome: Outcome) -> Next | None:
        """Return what serves a request that is too long for its model, before that is asked; None to ask it."""
        chain: ChainSettings | None = call.plan.chain
        ask = call.ask
        if chain is None or "context" not in chain.on or ask is None or not is_too_long(ask, ask.model_sent):
            return None
        outcome.is_too_long = True
        return self.down(call, outcome)

    def explain(self, call: Call, chain: ChainSettings) -> str:
        """Say what the chain comes to for this call."""
        origin = Standing(call)
        links = []
        for link in chain.to:
            kind, name = kind_of(link), name_of(link)
            if kind in _ELSEWHERE:
                made = stand_in(call, origin, link, call.target, self._judge)
                if isinstance(made, str):
                    name += f" (passed over: {made.rstrip('.')})"
                elif made.target == call.target:
                    name += " (passed over: the target itself)"
                elif made.translation is not None:
                    name += f" (translated into {made.dialect.name})"
            elif kind == CACHED:
                name += f" (an answer of at most {link.cached:g} s)"
            elif not can_answer(origin.dialect, origin.ask, getattr(call, "rpc", None)):
                name += " (passed over: cannot answer this)"
            links.append(name)
        return f"then, after {', '.join(chain.on)} (rule {chain.rule}): {', '.join(links)}"


def tries(call: Call) -> int:
    """Return how many attempts the present target has had."""
    substitution: Substitution | None = call.substitution
    return call.attempt if substitution is None else call.attempt - substitution.attempts_before


def forget(call: Call) -> None:
    """Take back what the reply was to say of who serves the call."""
    call.reply_headers[:] = [field for field in call.reply_headers if field[0] != SERVED_BY]


def link_cause(call: Call, outcome: Outcome) -> str | None:
    """Return what went wrong, in the words of `fallback.on`; None for all after which nothing else may serve the call.
    Of a substitute, a refusal of the upstream's is a failure too."""
    if outcome.reason is not None:
        return _REASON.get(outcome.reason)
    if outcome.fault is not _NO_FAULT:
        return _CAUSE.get(outcome.fault)
    if outcome.is_too_long:
        return "context"
    if outcome.is_unpaid:
        return "backpressure"
    status = outcome.status
    if status >= 500:
        return "5xx"
    if status == 429:
        return "backpressure"
    return _REJECTED if status >= 400 and call.substitution is not None else None


def _words(cause: str, outcome: Outcome) -> str:
    if outcome.status >= 400 and outcome.fault is _NO_FAULT:
        return str(outcome.status)
    return outcome.fault._value_.replace("_", " ") if outcome.fault is not _NO_FAULT else _OURS.get(cause, cause)


def _is_free_only(call: Call, cause: str, outcome: Outcome) -> bool:
    """Say whether no other upstream may be asked after this: the budget is used up, the request itself was found
    wanting, or it may have arrived and must not be done twice."""
    if cause == "budget" or (cause == _REJECTED and outcome.status not in _THEIR_OWN):
        return True
    return _has_arrived(call, outcome)


def _has_arrived(call: Call, outcome: Outcome) -> bool:
    """Say whether a request may have been carried out that must not be twice."""
    return outcome.is_forwarded and outcome.status != 429 and not _may_be_sent_again(call)


def _may_be_sent_again(call: Call) -> bool:
    """Say whether a request that may have arrived can be shown to another upstream: a model's answer, and what changes
    nothing or the same thing again."""
    if call.target.kind is _LLM or call.method in _SAFE:
        return True
    rpc: Any = getattr(call, "rpc", None)
    return rpc is not None and bool(rpc.is_read_only)
