"""How long and how much a bus keeps, how often it tries, what time it is: numbers and a clock, handed in."""

from __future__ import annotations

import asyncio
import os
import random
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from meshd.engines.bus_port import ATTEMPTS_MAX, DEAD_KEEP_S, GROUPS_MAX, KEEP_BYTES, KEEP_S, REPEAT_S

if TYPE_CHECKING:
    from collections.abc import Callable

RETRY_FIRST_S: Final = 1.0
"""Bound of the wait after the first attempt; it doubles with each further one."""
RETRY_MOST_S: Final = 300.0
EVENT_BYTES: Final = 128
"""What an event costs beside its own bytes, as far as `keep_bytes` counts it."""

_BOOT_TIME: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Timer(Protocol):
    """What ends a call that is planned."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """What time it is, and how something is done later."""

    def now_s(self) -> float:
        """Return Unix seconds, which never run backwards."""
        ...

    def wall_ns(self) -> int:
        """Return Unix nanoseconds as the machine says them now, for an event's `time`."""
        ...

    def at(self, when_s: float, call: Callable[[], None]) -> Timer:
        """Call on this loop once it is `when_s`."""
        ...


class SteadyClock:
    """The machine's clock as it stood when this was made, and from then on one that nobody sets."""

    __slots__ = ("_ahead_s",)

    def __init__(self) -> None:
        self._ahead_s = time.time() - _running_s()

    def now_s(self) -> float:
        return time.clock_gettime(_BOOT_TIME) + self._ahead_s

    def wall_ns(self) -> int:
        return time.time_ns()

    def at(self, when_s: float, call: Callable[[], None]) -> Timer:
        return asyncio.get_running_loop().call_later(max(0.0, when_s - self.now_s()), call)


def _running_s() -> float:
    # Where there is one, the clock that goes on while the machine sleeps: a handler's time does, too.
    return time.clock_gettime(_BOOT_TIME)


class Terms(NamedTuple):
    """A bus's numbers; `docs/events.md` says what follows from them."""

    keep_s: float = KEEP_S
    keep_bytes: int = KEEP_BYTES
    repeat_s: float = REPEAT_S
    dead_keep_s: float = DEAD_KEEP_S
    attempts_max: int = ATTEMPTS_MAX
    groups_max: int = GROUPS_MAX
    retry_first_s: float = RETRY_FIRST_S
    retry_most_s: float = RETRY_MOST_S
    chance: Callable[[], float] = random.random
    """A number from 0 to 1."""
    random_bytes: Callable[[int], bytes] = os.urandom

    def new_id(self) -> str:
        """Return an id for an event that came without one."""
        return self.random_bytes(16).hex()

    def retry_s(self, attempt: int) -> float:
        """Return how long to wait after a failed attempt: exponential back-off with full jitter.

        https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        """
        # Beyond 2^30 every bound is the greatest one: no overflow, whatever `attempts_max` is.
        return self.chance() * min(self.retry_most_s, self.retry_first_s * 2.0 ** min(attempt - 1, 30))
