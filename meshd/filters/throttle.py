"""How many attempts may be under way for one key of a provider. Pure: time and chance are handed in.

The limit begins at its most, so that whoever is never told to slow down never is slowed down. It falls by a twentieth
where the upstream says 429 or 529, once for each round trip: what was sent before it fell says nothing new, but where a
round trip is refused for the most part it falls to half. It grows by one for each round trip in which somebody found no
room, slowly where it is near to what was too much the last time, faster beyond that, and doubles once nothing was
refused for a while: a provider's quota is counted by the minute, and what held then need not hold now.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from meshd.outcome import Verdict

if TYPE_CHECKING:
    from meshd.filters.concurrency_settings import ConcurrencySettings
    from meshd.outcome import Outcome

HELD_S_MAX: Final = 60.0
"""Longest that a Retry-After is taken at its word: then it is tried again, in case that it was nonsense."""
CUT: Final = 0.95
"""What is left of the limit after a refusal, and the least after a round trip of nothing but refusals."""
CUT_MOST: Final = 0.5
CALM_S: Final = 30.0
CALM_TRIPS: Final = 4.0
"""After this without a refusal, in seconds and in round trips, what was too much is forgotten."""
NEAR_TRIPS: Final = 4.0
"""Round trips in which the limit grows by one where the next one was too much the last time."""
TOO_MANY_REQUESTS: Final = 429
UNAVAILABLE: Final = 503
"""What gRPC's statuses of the same meaning are taken for."""
PAST_SHARE: Final = 0.5
"""Of how far the limit is past what was too much the last time, added to each round trip's growth."""
OVERLOADED_STATUS: Final = 529

_UNLIMITED: Final = 1 << 60
_JITTER: Final = 0.1
# As for the retransmission timer of RFC 6298.
_MEAN_GAIN: Final = 0.125
_DEVIATION_GAIN: Final = 0.25

# Bound here: looking a member up on its enum takes 0.1 us on Python 3.11.
_BACKPRESSURE: Final = Verdict.BACKPRESSURE
_SUCCESS: Final = Verdict.SUCCESS


class Throttle:
    """The attempts under way for one upstream, model and credential, and those that wait for their turn."""

    __slots__ = (
        "_calm_from_s", "_ceiling", "_deviation_s", "_floor", "_mean_s", "_pressed", "epoch", "held_status",
        "held_until_s", "in_flight", "is_strained", "limit", "room", "settings", "timer", "waiting",
    )  # fmt: skip

    def __init__(self, settings: ConcurrencySettings | None) -> None:
        """`settings` is None where nothing is limited."""
        self.settings = settings
        self.limit = float(_UNLIMITED if settings is None else settings.max)
        self.in_flight = 0
        """Attempts that were admitted and are not settled."""
        self.room = int(self.limit)
        """As many may be under way now: the limit, or none while the upstream is left alone."""
        self.waiting: deque[Any] = deque()
        """Those who wait, first come first served."""
        self.is_strained = False
        """The limit is below its most, somebody waits, or the upstream is left alone: an attempt's end matters."""
        self.epoch = 0
        """Raised when the limit falls: what was admitted before is of the round trip that is over."""
        self.held_until_s = 0.0
        """Until when the upstream has asked to be left alone; 0 where it has not."""
        self.held_status = 0
        """The HTTP status with which it has asked."""
        self.timer: Any = None
        """Of whoever keeps this, while those who wait are to be looked at again."""
        self._ceiling = 0.0
        self._floor = 0.0
        self._calm_from_s = 0.0
        self._mean_s = self._deviation_s = 0.0
        self._pressed = 0
        """Successes that may still raise the limit, since somebody has found no room."""

    def adopt(self, settings: ConcurrencySettings | None) -> None:
        """Go by the settings of another policy, keeping what was learnt where they allow it."""
        before, self.settings = self.settings, settings
        if settings is None:
            self.limit = float(_UNLIMITED)
        elif before is None or not settings.adaptive or self.limit >= before.max:
            self.limit = float(settings.max)
        else:
            self.limit = min(max(self.limit, float(settings.min)), float(settings.max))
        self.look()

    def wakes(self, now_s: float) -> bool:
        """Say whether another may go now, with a hold forgotten that is over."""
        if self.held_until_s and now_s >= self.held_until_s:
            self.held_until_s = 0.0
            self.look()
        return self.in_flight < self.room

    def ended(self, epoch: int, outcome: Outcome, chance: float) -> None:
        """Take an attempt's end into account; `in_flight` no longer counts it.

        `epoch` is that of its admission. `chance` is from 0 to 1: sidecars that were held together do not come back
        together.
        """
        settings, now_s = self.settings, outcome.now_s
        if settings is None:
            return
        if outcome.verdict is _SUCCESS:
            self._time(outcome.taken_s)
            if self.waiting:
                self.press()
            if self._pressed > 0 and self.limit < settings.max:
                self._pressed -= 1
                self._grow(settings, now_s)
        elif settings.adaptive and (
            outcome.verdict is _BACKPRESSURE or OVERLOADED_STATUS in (outcome.status, outcome.error_status)
        ):
            self._shrink(settings, epoch, now_s)
        asked_s = outcome.retry_after_s
        # Not a number is not greater than zero either.
        if asked_s is not None and asked_s > 0.0:
            status = TOO_MANY_REQUESTS if outcome.verdict is _BACKPRESSURE else max(outcome.status, UNAVAILABLE)
            self.hold(now_s + min(asked_s, HELD_S_MAX) * (1.0 + _JITTER * chance), status)
        self.look()

    def press(self) -> None:
        """Somebody has found no room: for a round trip the limit is in use. Where nobody does, none need grow."""
        self._pressed = int(self.limit)

    def hold(self, until_s: float, status: int) -> None:
        """Leave the upstream alone until then."""
        if until_s > self.held_until_s:
            self.held_until_s, self.held_status = until_s, status
            self.look()

    @property
    def least_s(self) -> float:
        """Seconds that an attempt takes at the least, as far as is known: the mean, less twice its deviation."""
        return max(self._mean_s - 2.0 * self._deviation_s, 0.0)

    def wait_s(self, now_s: float) -> float:
        """Return how long whoever comes now will have to wait, as far as is known."""
        ahead = len(self.waiting) + 1 + self.in_flight - int(self.limit)
        held_s = max(self.held_until_s - now_s, 0.0)
        return held_s + max(ahead, 0) * self._mean_s / max(self.limit, 1.0)

    def _time(self, taken_s: float) -> None:
        if not taken_s > 0.0:
            return
        if self._mean_s:
            away_s = taken_s - self._mean_s
            self._deviation_s += _DEVIATION_GAIN * (abs(away_s) - self._deviation_s)
            self._mean_s += _MEAN_GAIN * away_s
        else:
            self._mean_s, self._deviation_s = taken_s, taken_s / 2.0

    def _shrink(self, settings: ConcurrencySettings, epoch: int, now_s: float) -> None:
        least = float(settings.min)
        if epoch == self.epoch:
            # What was out, not what might have been: a limit far above that says nothing.
            out = min(self.limit, self.in_flight + 1.0)
            self._ceiling, self._floor = out, max(out * CUT_MOST, least)
            self.limit = max(out * CUT, least)
            self.epoch += 1
        elif epoch == self.epoch - 1:
            # Another one of the same round trip: there was one more too many.
            self.limit = min(self.limit, max(self.limit - 1.0, self._floor))
        self._calm_from_s = now_s + max(CALM_S, CALM_TRIPS * self._mean_s)

    def _grow(self, settings: ConcurrencySettings, now_s: float) -> None:
        limit = self.limit
        if now_s >= self._calm_from_s:
            step = 1.0
        elif self._ceiling - 1.0 <= limit < self._ceiling + 0.5:
            step = 1.0 / (limit * NEAR_TRIPS)
        else:
            # Past it there is room, nobody knows how much: the further, the faster.
            step = (1.0 + max(limit - self._ceiling, 0.0) * PAST_SHARE) / limit
        self.limit = min(limit + step, float(settings.max))

    def look(self) -> None:
        """Work out `room` and `is_strained` anew: the limit is another, or somebody has come to wait or has gone."""
        settings = self.settings
        is_held = self.held_until_s > 0.0
        self.room = 0 if is_held else int(self.limit)
        is_cut = settings is not None and self.limit < settings.max
        self.is_strained = is_held or is_cut or len(self.waiting) > 0
