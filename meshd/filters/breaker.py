"""Breaker: stop calling an upstream that fails, and find out when it is well again.

Closed admits, open refuses, half-open lets probes through: one, and when that has succeeded as many more at a time as
`probes` says; when all have succeeded it is closed. One breaker for each upstream, model and credential, since a
provider limits and loses these apart from one another. A credential is known by a keyed hash, never by itself.

What a result means is not decided here but by `meshd.call.classify`: back-pressure (429), other 4xx, the caller's
hanging up and our own refusals are no failures.
"""

from __future__ import annotations

from enum import Enum
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from meshd.call import Verdict
from meshd.filters.contract import Settings
from meshd.filters.units import Duration  # noqa: TC001 - pydantic reads it at run time
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call, Outcome

BREAKERS_MAX = 4096
SOON_S = 2.0
"""A refusal is worth retrying where the breaker lets a probe through within this time."""
CREDENTIAL_FIELDS = frozenset({b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"})

PROBE_OVERDUE_S = 60.0
"""After this another probe may go out beside one that has no result yet: a lost probe must not keep it half-open."""

_BUCKETS = 10
_EVICTION_SCAN = 64
_JITTER = 0.2


class BreakerSettings(Settings):
    """When a breaker opens, and how it closes again (numbers: guarantees, part 4)."""

    consecutive: int = Field(5, ge=1, le=1000)
    """Failures in a row that open it."""
    ratio: float = Field(0.5, gt=0, le=1)
    """Share of failed attempts within the window that opens it."""
    volume: int = Field(20, ge=1, le=100_000)
    """Attempts within the window below which the ratio says nothing."""
    window_s: Duration = Field(30.0, alias="window", gt=0, le=3600)
    """Seconds that the ratio looks back."""
    open_s: Duration = Field(15.0, alias="open", gt=0, le=3600)
    """Seconds that it stays open the first time; doubled each time that a probe fails."""
    open_max_s: Duration = Field(300.0, alias="open_max", gt=0, le=86_400)
    """Most seconds that it stays open."""
    probes: int = Field(3, ge=1, le=100)
    """Successes after the first probe's that close it."""


class State(Enum):
    """Of one breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Sign(Enum):
    """What moves a breaker."""

    PASSED = "passed"
    """An attempt succeeded."""
    FAILED = "failed"
    """An attempt failed, and that alone is no reason to open."""
    TRIPPED = "tripped"
    """An attempt failed, and the failures are now too many."""
    COOLED = "cooled"
    """The time that it stays open is over, and a call has come."""
    RECOVERED = "recovered"
    """An attempt succeeded, and the probes are now enough."""


STATES: dict[tuple[State, Sign], State] = {
    (State.CLOSED, Sign.PASSED): State.CLOSED,
    (State.CLOSED, Sign.FAILED): State.CLOSED,
    (State.CLOSED, Sign.TRIPPED): State.OPEN,
    # Never from closed to half-open: a breaker that admits everything has nothing to probe.
    (State.CLOSED, Sign.COOLED): State.CLOSED,
    (State.CLOSED, Sign.RECOVERED): State.CLOSED,
    # While open only time moves it: what ends now was sent before it opened.
    (State.OPEN, Sign.PASSED): State.OPEN,
    (State.OPEN, Sign.FAILED): State.OPEN,
    (State.OPEN, Sign.TRIPPED): State.OPEN,
    (State.OPEN, Sign.COOLED): State.HALF_OPEN,
    (State.OPEN, Sign.RECOVERED): State.OPEN,
    (State.HALF_OPEN, Sign.PASSED): State.HALF_OPEN,
    # One failed probe is enough.
    (State.HALF_OPEN, Sign.FAILED): State.OPEN,
    (State.HALF_OPEN, Sign.TRIPPED): State.OPEN,
    (State.HALF_OPEN, Sign.COOLED): State.HALF_OPEN,
    (State.HALF_OPEN, Sign.RECOVERED): State.CLOSED,
}


class BreakerKey(NamedTuple):
    """Whose failures are counted together."""

    upstream: str
    model: str
    credential: bytes
    """Keyed hash; empty where the call carries none, or meshd attaches the upstream's own."""


class BreakerView(NamedTuple):
    """One breaker, for metrics, the admin API and the terminal."""

    upstream: str
    model: str
    state: State
    since_s: float
    """Monotonic seconds at which it came into this state."""


class Circuit:
    """One breaker's state. Pure: time and chance are handed in."""

    __slots__ = (
        "_bucket",
        "_failures",
        "_in_a_row",
        "_opened_in_a_row",
        "_passed",
        "_probe_sent_s",
        "_probes_out",
        "_results",
        "_round",
        "_settings",
        "_until_s",
        "since_s",
        "state",
    )  # fmt: skip

    def __init__(self, settings: BreakerSettings, now_s: float) -> None:
        self._settings = settings
        self.state = State.CLOSED
        self.since_s = now_s
        self._round = 0
        """Raised with each change of state: a result counts only in the round that its attempt was admitted in."""
        self._in_a_row = 0
        self._results = [0] * _BUCKETS
        self._failures = [0] * _BUCKETS
        self._bucket = self._bucket_at(now_s)
        self._until_s = 0.0
        self._latest_s = now_s
        self._opened_in_a_row = 0
        self._probes_out = 0
        self._probe_sent_s = 0.0
        self._passed = 0

    def admit(self, settings: BreakerSettings, now_s: float) -> int:
        """Return the round that admits an attempt now, or -1: then `wait_s` says for how long."""
        if settings is not self._settings:
            self._adopt(settings, now_s)
        if self.state is State.CLOSED:
            return self._round
        # A call's second attempt comes with the time at which the call began.
        now_s = max(now_s, self._latest_s)
        if self.state is State.OPEN:
            if now_s < self._until_s:
                return -1
            self._move(Sign.COOLED, now_s)
        room = self._settings.probes if self._passed else 1
        if self._probes_out >= room and now_s - self._probe_sent_s < PROBE_OVERDUE_S:
            return -1
        self._probes_out += 1
        self._probe_sent_s = now_s
        return self._round

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until a probe is let through; while one is out, that may be any moment: 1."""
        return max(self._until_s - max(now_s, self._latest_s), 0.0) if self.state is State.OPEN else 1.0

    def record(self, round_admitted: int, outcome: Outcome, chance: float) -> None:
        """Take an attempt's result into account. `chance` is from 0 to 1, for the jitter of opening."""
        if round_admitted != self._round:
            return
        verdict, now_s = outcome.verdict, max(outcome.now_s, self._latest_s)
        self._latest_s = now_s
        if self.state is State.HALF_OPEN:
            self._probes_out -= 1
            self._record_probe(outcome, now_s, chance)
        elif verdict is Verdict.SUCCESS:
            self._in_a_row = 0
            self._results[self._turn(now_s)] += 1
        elif verdict is Verdict.FAILURE:
            self._in_a_row += 1
            index = self._turn(now_s)
            self._results[index] += 1
            self._failures[index] += 1
            self._move(Sign.TRIPPED if self._is_too_much() else Sign.FAILED, now_s, chance)

    def _record_probe(self, outcome: Outcome, now_s: float, chance: float) -> None:
        if outcome.verdict is Verdict.FAILURE:
            self._move(Sign.FAILED, now_s, chance)
        elif outcome.verdict is Verdict.SUCCESS or 400 <= outcome.status < 500:
            # A 4xx is no success of the call, but an answer: whoever gives one is there again.
            self._passed += 1
            self._move(Sign.RECOVERED if self._passed > self._settings.probes else Sign.PASSED, now_s)

    def _is_too_much(self) -> bool:
        if self._in_a_row >= self._settings.consecutive:
            return True
        results = sum(self._results)
        return results >= self._settings.volume and sum(self._failures) >= self._settings.ratio * results

    def _move(self, sign: Sign, now_s: float, chance: float = 0.0) -> None:
        state = STATES[self.state, sign]
        if state is self.state:
            return
        self.state, self.since_s = state, now_s
        self._round += 1
        self._in_a_row = self._probes_out = self._passed = 0
        if state is State.OPEN:
            settings = self._settings
            doubled_s = settings.open_s * 2.0 ** min(self._opened_in_a_row, 40)
            self._until_s = now_s + min(doubled_s * (1 - _JITTER / 2 + _JITTER * chance), settings.open_max_s)
            self._opened_in_a_row += 1
        elif state is State.CLOSED:
            self._opened_in_a_row = 0
            self._forget(now_s)

    def _bucket_at(self, now_s: float) -> int:
        return int(now_s * _BUCKETS / self._settings.window_s)

    def _turn(self, now_s: float) -> int:
        """Return the index of the bucket of `now_s`, with the buckets since the last result emptied."""
        bucket = self._bucket_at(now_s)
        gone = bucket - self._bucket
        if gone > 0:
            for step in range(min(gone, _BUCKETS)):
                self._results[(bucket - step) % _BUCKETS] = self._failures[(bucket - step) % _BUCKETS] = 0
            self._bucket = bucket
        return self._bucket % _BUCKETS

    def _adopt(self, settings: BreakerSettings, now_s: float) -> None:
        is_window_new = settings.window_s != self._settings.window_s
        self._settings = settings
        if is_window_new:
            self._forget(now_s)

    def _forget(self, now_s: float) -> None:
        self._results = [0] * _BUCKETS
        self._failures = [0] * _BUCKETS
        self._bucket = self._bucket_at(now_s)


class Permit:
    """The ticket of an admitted attempt: hands its result to the breaker that admitted it, once."""

    __slots__ = ("_breaker", "_circuit", "_key", "_round")

    def __init__(self, breaker: Breaker, key: BreakerKey, circuit: Circuit, round_admitted: int) -> None:
        self._breaker = breaker
        self._key = key
        self._circuit = circuit
        self._round = round_admitted

    def settle(self, outcome: Outcome) -> None:
        """Record the result; a second call changes nothing."""
        round_admitted, self._round = self._round, -1
        if round_admitted >= 0:
            self._breaker.record(self._key, self._circuit, round_admitted, outcome)


class Breaker:
    """Refuses attempts on an upstream that fails; innermost of all filters."""

    __slots__ = ("_chance", "_changed", "_circuits", "_hash_key")

    name = "breaker"

    def __init__(
        self,
        chance: Callable[[], float],
        hash_key: bytes,
        changed: Callable[[BreakerKey, State, State], None] | None = None,
    ) -> None:
        """`chance()` returns a float from 0 to 1; `hash_key` is 16 to 64 random bytes of this process.

        `changed` is told each change of state: whose, from which, to which.
        """
        self._chance = chance
        self._hash_key = hash_key
        self._changed = changed
        self._circuits: dict[BreakerKey, Circuit] = {}

    def admit(self, call: Call) -> Permit | None:
        """Return the permit, or raise Refused(CIRCUIT_OPEN). None where no breaker is set."""
        settings: BreakerSettings | None = call.plan.breaker
        if settings is None:
            return None
        key = self._key(call)
        circuit = self._circuits.get(key)
        if circuit is None:
            circuit = self._new(key, settings, call.now_s)
        state = circuit.state
        admitted = circuit.admit(settings, call.now_s)
        if circuit.state is not state and self._changed is not None:
            self._changed(key, state, circuit.state)
        if admitted < 0:
            raise _refused(key, circuit, settings, circuit.wait_s(call.now_s))
        return Permit(self, key, circuit, admitted)

    def record(self, key: BreakerKey, circuit: Circuit, round_admitted: int, outcome: Outcome) -> None:
        """Take a permit's result; called by the permit."""
        state = circuit.state
        circuit.record(round_admitted, outcome, self._chance())
        if circuit.state is not state and self._changed is not None:
            self._changed(key, state, circuit.state)

    def explain(self, call: Call) -> str:
        """Say in which state this call's breaker is."""
        if call.plan.breaker is None:
            return "no breaker is set"
        circuit = self._circuits.get(self._key(call))
        state = State.CLOSED if circuit is None else circuit.state
        return f"the breaker of {_whose(self._key(call))} is {state.value}"

    def snapshot(self) -> list[BreakerView]:
        """Return every breaker that is kept; those that were never needed or long idle are not."""
        return [
            BreakerView(key.upstream, key.model, circuit.state, circuit.since_s)
            for key, circuit in self._circuits.items()
        ]

    def _key(self, call: Call) -> BreakerKey:
        credential = b""
        if call.upstream is None or call.upstream.key_header is None:
            for name, value in call.headers:
                if name in CREDENTIAL_FIELDS:
                    credential = blake2b(value, digest_size=8, key=self._hash_key).digest()
                    break
        return BreakerKey(call.target.name, call.target.model, credential)

    def _new(self, key: BreakerKey, settings: BreakerSettings, now_s: float) -> Circuit:
        if len(self._circuits) >= BREAKERS_MAX:
            self._evict()
        circuit = self._circuits[key] = Circuit(settings, now_s)
        return circuit

    def _evict(self) -> None:
        """Forget one breaker: the oldest closed one near the end, which costs the least to learn again."""
        oldest = None
        for scanned, (key, circuit) in enumerate(self._circuits.items()):
            if oldest is None:
                oldest = key
            if circuit.state is State.CLOSED:
                oldest = key
                break
            if scanned >= _EVICTION_SCAN:
                break
        if oldest is not None:
            del self._circuits[oldest]


def _whose(key: BreakerKey) -> str:
    return f"{key.upstream} ({key.model[:128]})" if key.model else key.upstream


def _refused(key: BreakerKey, circuit: Circuit, settings: BreakerSettings, wait_s: float) -> Refused:
    is_soon = wait_s <= SOON_S
    if circuit.state is State.HALF_OPEN:
        then = "is being probed; other calls are refused until that has succeeded"
    else:
        then = f"failed too often; the next try is let through in {wait_s:.0f} s"
    return Refused(
        Reason.CIRCUIT_OPEN,
        f"The breaker is {circuit.state.value}: {_whose(key)} {then}. Try again later, or use another upstream.",
        rule=settings.rule,
        retry_after_s=max(1, round(wait_s)) if is_soon else None,
        is_retryable=is_soon,
    )
