"""Fallback: what follows a failed attempt: the same target again, then the chain of its substitutes, or nothing.

An attempt is made again only while nothing of a reply has left for the caller, within a budget that keeps an outage
from multiplying the traffic, and never for a reason that is the caller's or our own. A request that may change
something is made again, and shown to another upstream, only where it cannot have arrived; a model's answer may be
asked for twice, since each attempt has its own reservation.

The chain is gone down from the rule of the target that failed; where a substitute fails too, its own rule's chain
comes first, then what is left. No target is tried twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.call import Kind
from meshd.filters.substituting import Next, Substituting, tries
from meshd.outcome import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call
    from meshd.filters.allow_list_settings import AllowSettings
    from meshd.filters.chain_settings import ChainSettings
    from meshd.filters.fallback_settings import RetryOn, RetrySettings
    from meshd.filters.plan import Plan
    from meshd.outcome import Outcome

RETRY_AFTER_S_MAX: Final = 2.0
"""An upstream that asks for a longer pause is not asked again: the caller decides."""
BUDGETS_MAX: Final = 4096
RESERVE: Final = 2.0
"""Retries that a quiet upstream always has: one call's."""
RESERVE_PER_S: Final = 0.1
"""How fast the reserve fills again."""
SAVED_MAX: Final = 20.0
"""Most retries that calls without trouble save up: those of the last hundred, at a fifth of a retry each."""

_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
_BODILESS: Final = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
_CAUSE: Final[dict[Fault, RetryOn]] = {
    Fault.CONNECT: "connect",
    Fault.CONNECT_TIMEOUT: "connect",
    # RFC 9113 section 8.7: a refused stream was not processed at all.
    Fault.REFUSED_STREAM: "connect",
    Fault.RESET: "reset",
    Fault.TRUNCATED: "reset",
    Fault.FIRST_BYTE_TIMEOUT: "timeout",
    Fault.FIRST_TOKEN_TIMEOUT: "timeout",
}
_TRANSIENT: Final = frozenset({500, 502, 503, 504, 529})
_TRANSIENT_GATEWAY: Final = frozenset({502, 503, 504})
_ON_LLM: Final[frozenset[str]] = frozenset({"connect", "reset", "5xx", "backpressure"})
_ON_IDEMPOTENT: Final[frozenset[str]] = frozenset({"connect", "reset", "5xx"})
_ON_OTHER: Final[frozenset[str]] = frozenset({"connect"})
_NOT_RUN: Final[frozenset[str]] = frozenset({"connect", "backpressure"})
"""After which a call with a claim may be made again: it cannot have been carried out."""

# Bound here: looking a member up on its enum takes 0.1 us on Python 3.11.
_LLM: Final = Kind.LLM
_NO_FAULT: Final = Fault.NONE


class _Purse:
    """The retries that one upstream may still have."""

    __slots__ = ("filled_s", "held")

    def __init__(self, now_s: float) -> None:
        self.held = RESERVE
        self.filled_s = now_s

    def save(self, share: float) -> None:
        """A call's first attempt ended, and adds its share of a retry."""
        self.held = min(self.held + share, SAVED_MAX)

    def spend(self, now_s: float) -> bool:
        """Take one retry, and say whether there was one."""
        if self.held < RESERVE:
            self.held = min(RESERVE, self.held + max(0.0, now_s - self.filled_s) * RESERVE_PER_S)
        self.filled_s = now_s
        if self.held < 1.0:
            return False
        self.held -= 1.0
        return True


class Fallback:
    """Decides what follows a failed attempt, and counts the calls that its retry budget is a share of."""

    __slots__ = ("_chance", "_purses", "chain")

    name = "fallback"

    def __init__(self, chance: Callable[[], float], judge: Callable[[Call, AllowSettings], None] | None = None) -> None:
        """`chance()` returns a float from 0 to 1, for the pause. `judge` raises Refused where a call's request is not
        allowed: what AllowList asks, asked again of a substitute. Without it none that an `allow` is about is taken.
        """
        self._chance = chance
        self._purses: dict[str, _Purse] = {}
        self.chain = Substituting(judge)
        """What takes the place of a target where no attempt at it is left."""

    def next(self, call: Call, outcome: Outcome) -> Next | None:
        """Return the attempt to make, or what is to answer, or None where this outcome stands. Spends from the retry
        budget.

        The caller of this must still be able to send the request's body: where that streamed through, it is gone.
        """
        if outcome.reason is None:
            again = self._again(call, outcome)
            if again is not None:
                self.chain.repeated(call, outcome)
                return again
        if call.substitution is None and call.plan.chain is None:
            return None
        return self.chain.down(call, outcome)

    def _again(self, call: Call, outcome: Outcome) -> Next | None:
        """Return another attempt for the same target."""
        settings: RetrySettings | None = call.plan.retry
        if settings is None:
            return None
        attempt = tries(call)
        purse = self._purse(call.target.name, outcome.now_s)
        if attempt == 1:
            purse.save(settings.budget)
        if attempt > settings.attempts or not is_worth_another(call, outcome, settings):
            return None
        delay_s = self._delay_s(attempt, outcome, settings)
        context = call.context
        if context is not None and context.deadline_s is not None:
            left_s = context.deadline_s - (call.wall_s + outcome.now_s - call.now_s)
            if delay_s >= left_s:
                return None
        return Next(call.target, delay_s) if purse.spend(outcome.now_s) else None

    def succeeded(self, call: Call, now_s: float) -> None:
        """Take note of an attempt that went well: with those that `next` is asked about, these are all calls."""
        plan: Plan = call.plan
        settings = plan.retry
        if settings is not None and tries(call) == 1:
            upstream = call.target[1]
            purse = self._purses.get(upstream) or self._purse(upstream, now_s)
            held = purse.held + settings.budget
            purse.held = held if held < SAVED_MAX else SAVED_MAX

    def explain(self, call: Call) -> str:
        """Say what would be tried again."""
        settings: RetrySettings | None = call.plan.retry
        chain: ChainSettings | None = call.plan.chain
        after = frozenset() if settings is None or not settings.attempts else causes(call, settings)
        if call.claim is not None and call.target.kind is not _LLM:
            after &= _NOT_RUN  # See `Claim.may_repeat`.
        if settings is None or not after:
            said = "no attempt is made again"
        else:
            said = f"up to {settings.attempts} more attempts after {', '.join(sorted(after))}"
        return said if chain is None else f"{said}; {self.chain.explain(call, chain)}"

    def _delay_s(self, attempt: int, outcome: Outcome, settings: RetrySettings) -> float:
        upper_s = min(settings.backoff_max_s, settings.backoff_s * 2.0 ** (attempt - 1))
        return max(upper_s * self._chance(), outcome.retry_after_s or 0.0)

    def _purse(self, upstream: str, now_s: float) -> _Purse:
        purse = self._purses.get(upstream)
        if purse is None:
            if len(self._purses) >= BUDGETS_MAX:
                del self._purses[next(iter(self._purses))]
            purse = self._purses[upstream] = _Purse(now_s)
        return purse


def is_worth_another(call: Call, outcome: Outcome, settings: RetrySettings) -> bool:
    """Say whether the attempt ended in a way after which another may be made."""
    if outcome.is_answered or outcome.is_final or outcome.is_unpaid or outcome.reason is not None:
        return False
    cause = cause_of(outcome)
    if cause is None or cause not in causes(call, settings):
        return False
    if outcome.is_forwarded and call.body is None and call.method not in _BODILESS:
        return False
    if cause == "5xx" and call.target.kind is not _LLM and outcome.status not in _TRANSIENT_GATEWAY:
        return False
    # One that is full and does not say for how long is asked again: the breaker's limit has fallen meanwhile, so the
    # retry may have to wait for its turn first.
    return outcome.retry_after_s is None or outcome.retry_after_s <= RETRY_AFTER_S_MAX


def cause_of(outcome: Outcome) -> RetryOn | None:
    """Return what went wrong, in the words of `retry.on`; None for all that is never tried again."""
    if outcome.fault is not _NO_FAULT:
        return _CAUSE.get(outcome.fault)
    if outcome.status in _TRANSIENT:
        return "5xx"
    return "backpressure" if outcome.status == 429 else None


def causes(call: Call, settings: RetrySettings) -> frozenset[str]:
    """Return what is tried again for this call."""
    if settings.on is not None:
        return frozenset(settings.on)
    if call.target.kind is _LLM:
        return _ON_LLM
    return _ON_IDEMPOTENT if call.method in _IDEMPOTENT else _ON_OTHER
