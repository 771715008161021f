"""The state of one breaker: a table of states, and the counts that move it. Pure: time and chance are handed in."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshd.filters.throttle import Throttle
from meshd.outcome import Fault, Verdict

if TYPE_CHECKING:
    from meshd.filters.breaker_settings import BreakerSettings
    from meshd.outcome import Outcome

PROBE_OVERDUE_S: Final = 60.0
"""After this another probe may go out beside one that has no result yet: a lost probe must not keep it half-open."""

_BUCKETS: Final = 10
_JITTER: Final = 0.2


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


STATES: Final[dict[tuple[State, Sign], State]] = {
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

# Bound here: looking a member up on its enum takes 0.1 us on Python 3.11.
_CLOSED: Final = State.CLOSED
_OPEN: Final = State.OPEN
_HALF_OPEN: Final = State.HALF_OPEN
_SUCCESS: Final = Verdict.SUCCESS
_FAILURE: Final = Verdict.FAILURE
_NO_FAULT: Final = Fault.NONE


class Failure(NamedTuple):
    """How an attempt failed."""

    at_s: float
    status: int
    fault: Fault


class Circuit:
    """One breaker's state. Pure: time and chance are handed in."""

    __slots__ = (
        "_bucket",
        "_bucket_until_s",
        "_failures",
        "_in_a_row",
        "_index",
        "_latest_s",
        "_opened_in_a_row",
        "_passed",
        "_probe_sent_s",
        "_probes_out",
        "_results",
        "_until_s",
        "failure",
        "key",
        "round",
        "settings",
        "since_s",
        "state",
        "throttle",
    )  # fmt: skip

    def __init__(
        self, settings: BreakerSettings, now_s: float, key: Any = None, throttle: Throttle | None = None
    ) -> None:
        self.key = key
        """Whose it is, for those that keep it."""
        self.throttle = Throttle(None) if throttle is None else throttle
        """How many attempts may be under way: kept here, so that one look-up finds both."""
        self.failure: Failure | None = None
        """The last one, None where there was none."""
        self.settings = settings
        self.state = _CLOSED
        self.since_s = now_s
        self.round = 0
        """Raised with each change of state: a result counts only in the round that its attempt was admitted in."""
        self._in_a_row = 0
        self._forget(now_s)
        self._until_s = 0.0
        self._latest_s = now_s
        self._opened_in_a_row = 0
        self._probes_out = 0
        self._probe_sent_s = 0.0
        self._passed = 0

    def admit(self, settings: BreakerSettings, now_s: float) -> int:
        """Return the round that admits an attempt now, or -1: then `wait_s` says for how long."""
        if settings is not self.settings:
            self._adopt(settings, now_s)
        if self.state is _CLOSED:
            return self.round
        # A call's second attempt comes with the time at which the call began.
        now_s = max(now_s, self._latest_s)
        if self.state is _OPEN:
            if now_s < self._until_s:
                return -1
            self._move(Sign.COOLED, now_s)
        room = self.settings.probes if self._passed else 1
        if self._probes_out >= room and now_s - self._probe_sent_s < PROBE_OVERDUE_S:
            return -1
        self._probes_out += 1
        self._probe_sent_s = now_s
        return self.round

    def postpone(self, until_s: float) -> None:
        """Let no probe through before then, since the upstream has asked so."""
        if self.state is _OPEN and until_s > self._until_s:
            self._until_s = until_s

    def error_share(self, now_s: float) -> float:
        """Return the failed share, from 0 to 1, of the attempts that ended within the window."""
        if now_s > self._latest_s:
            self._turn(now_s)
        return sum(self._failures) / max(sum(self._results), 1)

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until a probe is let through; while one is out, that may be any moment: 1."""
        return max(self._until_s - max(now_s, self._latest_s), 0.0) if self.state is _OPEN else 1.0

    def succeed(self, round_admitted: int, now_s: float) -> None:
        """Do what `record` does with a success while it is closed: the usual case, and the quick one."""
        if round_admitted != self.round:
            return
        if now_s > self._latest_s:
            self._latest_s = now_s
        else:
            now_s = self._latest_s
        self._in_a_row = 0
        self._results[self._index if now_s < self._bucket_until_s else self._turn(now_s)] += 1

    def record(self, round_admitted: int, outcome: Outcome, chance: float) -> None:
        """Take an attempt's result into account. `chance` is from 0 to 1, for the jitter of opening."""
        if round_admitted != self.round:
            return
        verdict, now_s = outcome.verdict, max(outcome.now_s, self._latest_s)
        self._latest_s = now_s
        if verdict is _FAILURE:
            self.failure = Failure(now_s, outcome.error_status or outcome.status, outcome.fault)
        if self.state is _HALF_OPEN:
            self._probes_out -= 1
            self._record_probe(outcome, now_s, chance)
        elif verdict is _SUCCESS:
            self.succeed(round_admitted, now_s)
        elif verdict is _FAILURE:
            self._in_a_row += 1
            index = self._turn(now_s)
            self._results[index] += 1
            self._failures[index] += 1
            self._move(Sign.TRIPPED if self._is_too_much() else Sign.FAILED, now_s, chance)

    def _record_probe(self, outcome: Outcome, now_s: float, chance: float) -> None:
        if outcome.verdict is _FAILURE:
            self._move(Sign.FAILED, now_s, chance)
        elif (
            outcome.verdict is _SUCCESS
            or 400 <= (outcome.error_status or outcome.status) < 500
            or _is_refused_by_grpc(outcome)
        ):
            # A 4xx is no success of the call, but an answer: whoever gives one is there again.
            self._passed += 1
            self._move(Sign.RECOVERED if self._passed > self.settings.probes else Sign.PASSED, now_s)

    def _is_too_much(self) -> bool:
        if self._in_a_row >= self.settings.consecutive:
            return True
        results = sum(self._results)
        return results >= self.settings.volume and sum(self._failures) >= self.settings.ratio * results

    def _move(self, sign: Sign, now_s: float, chance: float = 0.0) -> None:
        state = STATES[self.state, sign]
        if state is self.state:
            return
        self.state, self.since_s = state, now_s
        self.round += 1
        self._in_a_row = self._probes_out = self._passed = 0
        if state is _OPEN:
            settings = self.settings
            doubled_s = settings.open_s * 2.0 ** min(self._opened_in_a_row, 40)
            longest_s = settings.open_max_s * (1 - _JITTER + _JITTER * chance)
            self._until_s = now_s + min(doubled_s * (1 - _JITTER / 2 + _JITTER * chance), longest_s)
            self._opened_in_a_row += 1
        elif state is _CLOSED:
            self._opened_in_a_row = 0
            self._forget(now_s)

    def _bucket_at(self, now_s: float) -> int:
        return int(now_s * _BUCKETS / self.settings.window_s)

    def _turn(self, now_s: float) -> int:
        """Return the index of the bucket of `now_s`, with the buckets since the last result emptied."""
        bucket = self._bucket_at(now_s)
        gone = bucket - self._bucket
        if gone > 0:
            for step in range(min(gone, _BUCKETS)):
                self._results[(bucket - step) % _BUCKETS] = self._failures[(bucket - step) % _BUCKETS] = 0
            self._begin(bucket)
        return self._index

    def _begin(self, bucket: int) -> None:
        self._bucket = bucket
        self._bucket_until_s = (bucket + 1) * self.settings.window_s / _BUCKETS
        self._index = bucket % _BUCKETS

    def _adopt(self, settings: BreakerSettings, now_s: float) -> None:
        is_window_new = settings.window_s != self.settings.window_s
        self.settings = settings
        if is_window_new:
            self._forget(now_s)

    def _forget(self, now_s: float) -> None:
        self._results = [0] * _BUCKETS
        self._failures = [0] * _BUCKETS
        self._begin(self._bucket_at(now_s))


def _is_refused_by_grpc(outcome: Outcome) -> bool:
    """Say whether the upstream itself has said in a gRPC status that the call was the caller's mistake."""
    return outcome.grpc_status > 0 and outcome.fault is _NO_FAULT and outcome.verdict is not _FAILURE
