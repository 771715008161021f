"""Breaker: stop calling an upstream that fails, find out when it is well again, and send it no more than it can take.

Closed admits, open refuses, half-open lets probes through: one, and when that has succeeded as many more at a time as
`probes` says; when all have succeeded it is closed. One breaker for each upstream, model and credential, since a
provider limits and loses these apart from one another. A credential is known by a keyed hash, never by itself.

What a result means is not decided here but by `meshd.outcome.classify`: back-pressure (429), other 4xx, the caller's
hanging up and our own refusals are no failures.

How many attempts may be under way is kept for the same keys, so one look-up and one ticket do for both: see
`meshd.filters.throttle` for the limit, and `meshd.filters.queueing` for those that wait. An attempt that nobody
throttles pays two comparisons and two additions for it.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshd.call import OWN_PEER, Wait
from meshd.filters.circuit import Circuit, State
from meshd.filters.queueing import Queue
from meshd.filters.throttle import Throttle
from meshd.outcome import Verdict
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call
    from meshd.filters.breaker_settings import BreakerSettings
    from meshd.filters.circuit import Failure
    from meshd.filters.concurrency_settings import ConcurrencySettings
    from meshd.filters.plan import Plan
    from meshd.outcome import Outcome

BREAKERS_MAX: Final = 4096
SOON_S: Final = 2.0
"""A refusal is worth retrying where the breaker lets a probe through within this time."""
CREDENTIAL_FIELDS: Final = frozenset({b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"})

COUNTED_MAX: Final = 1024
"""Upstreams and reasons that are counted apart."""

DISCOVERY: Final = "meshd:discovery"
"""In whose name `meshd.sources` asks servers."""
_EVICTION_SCAN: Final = 64

# Bound here: looking a member up on its enum takes 0.1 us on Python 3.11.
_CLOSED: Final = State.CLOSED
_OPEN: Final = State.OPEN
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
    limit: int | None = None
    """Attempts that may be under way at once; None where no rule says so."""
    in_flight: int = 0
    queued: int = 0
    held_s: float = 0.0
    """Seconds for which the upstream has asked to be left alone."""
    error_share: float = 0.0
    """Of the attempts that ended within the window, from 0 to 1."""
    failure: Failure | None = None
    """The last one."""
    reopens_s: float | None = None
    """Seconds until a probe is let through; None where it is not open."""


class Permit:
    """The ticket of an admitted attempt: hands its result to the breaker that admitted it, once."""

    __slots__ = ("_breaker", "_circuit", "_epoch", "_round")

    def __init__(self, breaker: Breaker, circuit: Circuit, round_admitted: int, epoch: int) -> None:
        self._breaker = breaker
        self._circuit = circuit
        self._round = round_admitted
        self._epoch = epoch

    def settle(self, outcome: Outcome) -> None:
        """Record the result; a second call changes nothing."""
        round_admitted = self._round
        if round_admitted < 0:
            return
        self._round = -1
        circuit = self._circuit
        throttle = circuit.throttle
        throttle.in_flight -= 1
        if circuit.state is _CLOSED and outcome.verdict is _SUCCESS and not throttle.is_strained:
            circuit.succeed(round_admitted, outcome.now_s)
        else:
            self._breaker.record(circuit, round_admitted, self._epoch, outcome)


class Breaker:
    """Refuses attempts on an upstream that fails, and lets those wait that would be too many; innermost of all."""

    __slots__ = ("_chance", "_changed", "_circuits", "_digests", "_hash_key", "clock", "queue", "shed", "turned")

    name = "breaker"

    def __init__(
        self,
        chance: Callable[[], float],
        hash_key: bytes,
        changed: Callable[[BreakerKey, State, State], None] | None = None,
        clock: Callable[[], float] | None = None,
        later: Callable[..., Any] | None = None,
    ) -> None:
        """`chance()` returns a float from 0 to 1; `hash_key` is 16 to 64 random bytes of this process.

        `changed` is told each change of state: whose, from which, to which. `clock` returns monotonic seconds and
        `later` sets a timer as a loop does: the running loop's where None.
        """
        self._chance = chance
        self._hash_key = hash_key
        self._changed = changed
        self._circuits: dict[tuple[str, str, bytes], Circuit] = {}
        self._digests: dict[int, bytes] = {}
        """By Python's own hash of a credential, which is keyed too: the credential itself is kept nowhere."""
        self.clock = clock
        self.shed: dict[tuple[str, str], int] = {}
        """Attempts that were refused because there was no room, by upstream and reason: see `queueing`."""
        self.turned: dict[tuple[str, str], int] = {}
        """Changes of state, by upstream and the state that it came into."""
        self.queue = Queue(clock, later, self._count_shed)

    def admit(self, call: Call) -> Permit | Wait | None:
        """Return the permit, or a wait for one. Raises Refused: circuit_open, or overloaded where nobody may wait.

        None where no breaker is set.
        """
        plan: Plan = call.plan
        settings = plan.breaker
        if settings is None:
            return None
        value = _credential_of(call)
        credential = b"" if value is None else self._digests.get(hash(value)) or self._digest(value)
        _, upstream, model = call.target
        circuit = self._circuits.get((upstream, model, credential))
        if call.peer == OWN_PEER and call.agent == DISCOVERY:
            self._pass_by(circuit)
            return None
        if circuit is None:
            circuit = self._new(BreakerKey(upstream, model, credential), settings, call)
        throttle = circuit.throttle
        if (
            circuit.state is _CLOSED
            and throttle.in_flight < throttle.room
            and circuit.settings is settings
            and throttle.settings is plan.concurrency
        ):
            throttle.in_flight += 1
            return Permit(self, circuit, circuit.round, throttle.epoch)
        return self._admit_slowly(call, circuit, settings)

    def _pass_by(self, circuit: Circuit | None) -> None:
        """meshd looks by itself at what a server offers. It is held to the breaker, but says nothing of agents'
        calls: it asks in another protocol than theirs where a server speaks gRPC alone, and again and again."""
        if circuit is not None and circuit.state is _OPEN:
            wait_s = circuit.wait_s(self.queue.now_s())
            if wait_s > 0.0:
                raise _refused(circuit, wait_s)

    def _admit_slowly(self, call: Call, circuit: Circuit, settings: BreakerSettings) -> Permit | Wait:
        """Do what `admit` does where it is not closed, there is no room, or the policy is another one."""
        throttle = circuit.throttle
        # The call may have begun long ago: it was tried before, or people were asked first.
        now_s = call.now_s if self.clock is None else max(call.now_s, self.clock())
        if throttle.settings is not call.plan.concurrency:
            throttle.adopt(call.plan.concurrency)
            self.queue.pump(throttle, now_s)
        has_room = throttle.wakes(now_s) and not throttle.waiting
        if not has_room and (circuit.state is _CLOSED or throttle.held_until_s) and circuit.state is not _OPEN:
            throttle.press()
            self.queue.check(call, _whose(circuit.key), throttle, now_s)
            return Wait(self._wait(call, circuit, settings))
        # Probes are few enough by themselves.
        throttle.in_flight += 1
        return self._enter(call, circuit, settings, now_s)

    async def _wait(self, call: Call, circuit: Circuit, settings: BreakerSettings) -> Permit:
        await self.queue.wait(call, _whose(circuit.key), circuit.throttle)
        return self._enter(call, circuit, settings, self.queue.now_s())

    def _enter(self, call: Call, circuit: Circuit, settings: BreakerSettings, now_s: float) -> Permit:
        """Return the permit of an attempt whose place is counted already, or give that back and refuse."""
        state = circuit.state
        admitted = circuit.admit(settings, now_s)
        if circuit.state is not state:
            self._turn(circuit, state)
        if admitted < 0:
            circuit.throttle.in_flight -= 1
            self.queue.pump(circuit.throttle, now_s)
            raise _refused(circuit, circuit.wait_s(now_s))
        return Permit(self, circuit, admitted, circuit.throttle.epoch)

    def record(self, circuit: Circuit, round_admitted: int, epoch: int, outcome: Outcome) -> None:
        """Take a permit's result; called by the permit."""
        state, throttle = circuit.state, circuit.throttle
        circuit.record(round_admitted, outcome, self._chance())
        throttle.ended(epoch, outcome, self._chance())
        if circuit.state is not state:
            self._turn(circuit, state)
        if throttle.is_strained:
            self.queue.pump(throttle, outcome.now_s)

    def _turn(self, circuit: Circuit, before: State) -> None:
        """The breaker has come into another state."""
        state, throttle = circuit.state, circuit.throttle
        _count(self.turned, circuit.key.upstream, state.value)
        if state is _OPEN:
            circuit.postpone(throttle.held_until_s)
            if throttle.waiting:
                wait_s = circuit.wait_s(circuit.since_s)
                self.queue.dismiss(throttle, lambda: _refused(circuit, wait_s))
        if self._changed is not None:
            self._changed(circuit.key, before, state)

    def _count_shed(self, upstream: str, why: str) -> None:
        _count(self.shed, upstream, why)

    def explain(self, call: Call) -> str:
        """Say in which state this call's breaker is."""
        if call.plan.breaker is None:
            return "no breaker is set"
        circuit = self._circuits.get(self._key(call))
        state = State.CLOSED if circuit is None else circuit.state
        said = f"the breaker of {_whose(self._key(call))} is {state.value}"
        concurrency: ConcurrencySettings | None = call.plan.concurrency
        if concurrency is None:
            return said
        limit = concurrency.max if circuit is None else int(circuit.throttle.limit)
        under_way = 0 if circuit is None else circuit.throttle.in_flight
        return f"{said}; {under_way} of {limit} attempts are under way, and {concurrency.queue} may wait"

    def snapshot(self, now_s: float = 0.0) -> list[BreakerView]:
        """Return every breaker that is kept; those that were never needed or long idle are not."""
        return [_view(circuit, now_s) for circuit in self._circuits.values()]

    def _key(self, call: Call) -> BreakerKey:
        value = _credential_of(call)
        return BreakerKey(call.target.name, call.target.model, b"" if value is None else self._digest(value))

    def _digest(self, value: bytes) -> bytes:
        if len(self._digests) >= BREAKERS_MAX:
            self._digests.clear()
        digest = blake2b(value, digest_size=8, key=self._hash_key).digest()
        self._digests[hash(value)] = digest
        return digest

    def _new(self, key: BreakerKey, settings: BreakerSettings, call: Call) -> Circuit:
        if len(self._circuits) >= BREAKERS_MAX:
            self._evict()
        circuit = self._circuits[key] = Circuit(settings, call.now_s, key, Throttle(call.plan.concurrency))
        return circuit

    def _evict(self) -> None:
        """Forget one breaker: the oldest closed one near the end, which costs the least to learn again."""
        oldest = None
        for scanned, (key, circuit) in enumerate(self._circuits.items()):
            if oldest is None:
                oldest = key
            if circuit.state is State.CLOSED and not circuit.throttle.in_flight and not circuit.throttle.is_strained:
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


def _view(circuit: Circuit, now_s: float) -> BreakerView:
    key, throttle = circuit.key, circuit.throttle
    return BreakerView(
        key.upstream,
        key.model,
        circuit.state,
        circuit.since_s,
        key.credential.hex()[:8],
        limit=None if throttle.settings is None else int(throttle.limit),
        in_flight=throttle.in_flight,
        queued=len(throttle.waiting),
        held_s=max(throttle.held_until_s - now_s, 0.0),
        error_share=circuit.error_share(now_s),
        failure=circuit.failure,
        reopens_s=circuit.wait_s(now_s) if circuit.state is _OPEN else None,
    )


def _count(counts: dict[tuple[str, str], int], upstream: str, what: str) -> None:
    key = (upstream, what)
    if key not in counts and len(counts) >= COUNTED_MAX:
        key = ("", what)
    counts[key] = counts.get(key, 0) + 1


def _refused(circuit: Circuit, wait_s: float) -> Refused:
    is_soon = wait_s <= SOON_S
    if circuit.state is State.HALF_OPEN:
        then = "is being probed; other calls are refused until that has succeeded"
    else:
        then = f"failed too often; the next try is let through in {wait_s:.0f} s"
    whose = _whose(circuit.key)
    return Refused(
        Reason.CIRCUIT_OPEN,
        f"The breaker is {circuit.state.value}: {whose} {then}. Try again later, or use another upstream.",
        rule=circuit.settings.rule,
        retry_after_s=max(1, round(wait_s)) if is_soon else None,
        is_retryable=is_soon,
    )
