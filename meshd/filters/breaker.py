"""Breaker: stop calling an upstream that fails, and find out when it is well again.

Closed admits, open refuses, half-open lets probes through: one, and when that has succeeded as many more at a time as
`probes` says; when all have succeeded it is closed. One breaker for each upstream, model and credential, since a
provider limits and loses these apart from one another. A credential is known by a keyed hash, never by itself.

What a result means is not decided here but by `meshd.outcome.classify`: back-pressure (429), other 4xx, the caller's
hanging up and our own refusals are no failures.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.filters.circuit import Circuit, State
from meshd.outcome import Verdict
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call
    from meshd.filters.breaker_settings import BreakerSettings
    from meshd.outcome import Outcome

BREAKERS_MAX: Final = 4096
SOON_S: Final = 2.0
"""A refusal is worth retrying where the breaker lets a probe through within this time."""
CREDENTIAL_FIELDS: Final = frozenset({b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"})

_EVICTION_SCAN: Final = 64

# Bound here: looking a member up on its enum takes 0.1 us on Python 3.11.
_CLOSED: Final = State.CLOSED
_SUCCESS: Final = Verdict.SUCCESS


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
    credential: str = ""
    """First hex digits of the keyed hash; empty where there is none. Of no use in another process."""


class Permit:
    """The ticket of an admitted attempt: hands its result to the breaker that admitted it, once."""

    __slots__ = ("_breaker", "_circuit", "_round")

    def __init__(self, breaker: Breaker, circuit: Circuit, round_admitted: int) -> None:
        self._breaker = breaker
        self._circuit = circuit
        self._round = round_admitted

    def settle(self, outcome: Outcome) -> None:
        """Record the result; a second call changes nothing."""
        round_admitted = self._round
        if round_admitted < 0:
            return
        self._round = -1
        circuit = self._circuit
        if circuit.state is _CLOSED and outcome.verdict is _SUCCESS:
            circuit.succeed(round_admitted, outcome.now_s)
        else:
            self._breaker.record(circuit, round_admitted, outcome)


class Breaker:
    """Refuses attempts on an upstream that fails; innermost of all filters."""

    __slots__ = ("_chance", "_changed", "_circuits", "_digests", "_hash_key")

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
        self._circuits: dict[tuple[str, str, bytes], Circuit] = {}
        self._digests: dict[int, bytes] = {}
        """By Python's own hash of a credential, which is keyed too: the credential itself is kept nowhere."""

    def admit(self, call: Call) -> Permit | None:
        """Return the permit, or raise Refused(CIRCUIT_OPEN). None where no breaker is set."""
        settings: BreakerSettings | None = call.plan.breaker
        if settings is None:
            return None
        value = _credential_of(call)
        credential = b"" if value is None else self._digests.get(hash(value)) or self._digest(value)
        _, upstream, model = call.target
        circuit = self._circuits.get((upstream, model, credential))
        if circuit is None:
            circuit = self._new(BreakerKey(upstream, model, credential), settings, call.now_s)
        if circuit.state is _CLOSED and circuit.settings is settings:
            return Permit(self, circuit, circuit.round)
        state = circuit.state
        admitted = circuit.admit(settings, call.now_s)
        if circuit.state is not state and self._changed is not None:
            self._changed(circuit.key, state, circuit.state)
        if admitted < 0:
            raise _refused(circuit.key, circuit, settings, circuit.wait_s(call.now_s))
        return Permit(self, circuit, admitted)

    def record(self, circuit: Circuit, round_admitted: int, outcome: Outcome) -> None:
        """Take a permit's result; called by the permit."""
        state = circuit.state
        circuit.record(round_admitted, outcome, self._chance())
        if circuit.state is not state and self._changed is not None:
            self._changed(circuit.key, state, circuit.state)

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
            BreakerView(key.upstream, key.model, circuit.state, circuit.since_s, key.credential.hex()[:8])
            for key, circuit in ((circuit.key, circuit) for circuit in self._circuits.values())
        ]

    def _key(self, call: Call) -> BreakerKey:
        value = _credential_of(call)
        return BreakerKey(call.target.name, call.target.model, b"" if value is None else self._digest(value))

    def _digest(self, value: bytes) -> bytes:
        if len(self._digests) >= BREAKERS_MAX:
            self._digests.clear()
        digest = blake2b(value, digest_size=8, key=self._hash_key).digest()
        self._digests[hash(value)] = digest
        return digest

    def _new(self, key: BreakerKey, settings: BreakerSettings, now_s: float) -> Circuit:
        if len(self._circuits) >= BREAKERS_MAX:
            self._evict()
        circuit = self._circuits[key] = Circuit(settings, now_s, key)
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


def _credential_of(call: Call) -> bytes | None:
    """Return the key that the call carries; None where there is none, or meshd attaches the upstream's own."""
    if call.upstream is None or call.upstream.key_header is None:
        for name, value in call.credentials:
            if name in CREDENTIAL_FIELDS:
                return value
    return None


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
