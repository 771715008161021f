"""The queue of attempts for which there is no room: bounded, first come first served, and refused at once in vain.

First come first served, and not the last first as under overload some do: who waits here is an agent in the middle of
a workflow, whose client waits for minutes, so whoever came first is still there; nobody waits longer than the rule
says; and only so can it be known beforehand how long it will be. Whoever could not be done within its deadline is
told so when it comes, while there is still time to do something else.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from meshd.filters.throttle import TOO_MANY_REQUESTS
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call
    from meshd.filters.concurrency_settings import ConcurrencySettings
    from meshd.filters.throttle import Throttle

FULL: Final = "queue_full"
DEADLINE: Final = "deadline"
WAITED: Final = "waited"
RETRY_AFTER: Final = "retry_after"
"""Why an attempt was shed: as many wait as may; its time would be over; it waited for as long as the rule lets it; the
upstream has asked to be left alone for longer than that."""
RETRY_S_MAX: Final = 5.0
"""A client that is told to try again does so within this time: see `Refused.retry_in_s`."""
READ_TIMEOUT: Final = b"x-stainless-read-timeout"
"""In which the official SDKs say how long they wait."""

_FOREVER: Final = float("inf")
_RESOURCE_EXHAUSTED: Final = 8


class Waiter:
    """An attempt that waits."""

    __slots__ = ("future", "is_let_in")

    def __init__(self, future: asyncio.Future[None]) -> None:
        self.future = future
        self.is_let_in = False
        """Its place is counted among those under way."""


class Queue:
    """Keeps the queues of all throttles. Those who wait stand in the throttle itself."""

    __slots__ = ("_clock", "_later", "shed")

    def __init__(
        self, clock: Callable[[], float] | None, later: Callable[..., Any] | None, shed: Callable[[str, str], None]
    ) -> None:
        """`clock` returns monotonic seconds and `later` sets a timer as a loop does: both the loop's where None.

        `shed` is told of each attempt that is refused: for which upstream, and why.
        """
        self._clock = clock
        self._later = later
        self.shed = shed

    def now_s(self) -> float:
        """Return monotonic seconds. Called within the loop."""
        return asyncio.get_running_loop().time() if self._clock is None else self._clock()

    def check(self, call: Call, whose: str, throttle: Throttle, now_s: float) -> None:
        """Raise Refused(OVERLOADED) where waiting would be in vain."""
        settings = throttle.settings
        assert settings is not None
        if len(throttle.waiting) >= settings.queue:
            raise self._refused(
                call,
                FULL,
                f"{self._busy(whose, throttle)}, and {len(throttle.waiting)} more wait for their turn, as many as may",
                throttle,
                now_s,
            )
        wait_s, left_s = throttle.wait_s(now_s), _left_s(call, now_s)
        if throttle.held_until_s - now_s > min(settings.queue_s, left_s):
            raise self._refused(call, RETRY_AFTER, _held(whose, throttle, now_s), throttle, now_s)
        if wait_s + throttle.least_s > left_s:
            raise self._refused(
                call,
                DEADLINE,
                f"{self._busy(whose, throttle)}; its turn would come in about {wait_s:.1f} s, and the call has "
                f"{max(left_s, 0.0):.1f} s left",
                throttle,
                now_s,
            )

    async def wait(self, call: Call, whose: str, throttle: Throttle) -> None:
        """Wait for a place among those under way. Raises Refused(OVERLOADED), and CancelledError once nobody waits for
        the call any more: see `Call.on_gone`."""
        now_s = self.now_s()
        if not throttle.waiting and throttle.wakes(now_s):
            throttle.in_flight += 1
            return
        # Others may have come since it was let in to wait.
        self.check(call, whose, throttle, now_s)
        settings = throttle.settings
        assert settings is not None
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = Waiter(future)
        for_s = min(settings.queue_s, max(_left_s(call, now_s) - throttle.least_s, 0.0))
        timer = self._set(for_s, self._expire, call, whose, throttle, waiter)
        throttle.waiting.append(waiter)
        throttle.look()
        self._set_alarm(throttle, now_s)
        call.on_gone = future.cancel
        try:
            await future
        except BaseException:
            self._withdraw(throttle, waiter)
            raise
        finally:
            call.on_gone = None
            timer.cancel()

    def pump(self, throttle: Throttle, now_s: float) -> None:
        """Let in whoever there is room for."""
        waiting = throttle.waiting
        while waiting and throttle.wakes(now_s):
            waiter: Waiter = waiting.popleft()
            if not waiter.future.done():
                waiter.is_let_in = True
                throttle.in_flight += 1
                waiter.future.set_result(None)
        throttle.look()
        self._set_alarm(throttle, now_s)

    def dismiss(self, throttle: Throttle, refused: Callable[[], Refused]) -> None:
        """Tell all who wait that they wait in vain."""
        waiting = list(throttle.waiting)
        throttle.waiting.clear()
        throttle.look()
        for waiter in waiting:
            if not waiter.future.done():
                waiter.future.set_exception(refused())

    def _set_alarm(self, throttle: Throttle, now_s: float) -> None:
        """See to it that somebody looks when a hold is over: nothing may be under way that would end before."""
        if throttle.waiting and throttle.held_until_s and throttle.timer is None:
            throttle.timer = self._set(max(throttle.held_until_s - now_s, 0.0), self._alarm, throttle)

    def _alarm(self, throttle: Throttle) -> None:
        throttle.timer = None
        self.pump(throttle, self.now_s())

    def _set(self, delay_s: float, callback: Callable[..., None], *arguments: Any) -> Any:
        return (self._later or asyncio.get_running_loop().call_later)(delay_s, callback, *arguments)

    def _expire(self, call: Call, whose: str, throttle: Throttle, waiter: Waiter) -> None:
        if waiter.future.done():
            return
        now_s = self.now_s()
        if throttle.held_until_s > now_s:
            why, message = RETRY_AFTER, _held(whose, throttle, now_s)
        else:
            why, message = WAITED, f"{self._busy(whose, throttle)}, and its turn did not come while it could wait"
        waiter.future.set_exception(self._refused(call, why, message, throttle, now_s))

    def _withdraw(self, throttle: Throttle, waiter: Waiter) -> None:
        """It has ended without its turn, or with a turn that it cannot take any more."""
        if waiter.is_let_in:
            throttle.in_flight -= 1
        elif waiter in throttle.waiting:
            throttle.waiting.remove(waiter)
        self.pump(throttle, self.now_s())

    def _busy(self, whose: str, throttle: Throttle) -> str:
        return (
            f"Overloaded: {throttle.in_flight} attempts on {whose} are under way of {int(throttle.limit)} that may be"
        )

    def _refused(self, call: Call, why: str, message: str, throttle: Throttle, now_s: float) -> Refused:
        self.shed(call.target.name, why)
        settings: ConcurrencySettings | None = throttle.settings
        wait_s = throttle.wait_s(now_s)
        # A client that comes again at once only to hear the same has spent its tries.
        is_retryable = why != DEADLINE and throttle.held_until_s - now_s <= RETRY_S_MAX
        refused = Refused(
            Reason.OVERLOADED,
            f"{message}. Try again later, or use another upstream.",
            rule=settings.rule if settings is not None else "",
            retry_after_s=max(1, round(min(wait_s, RETRY_S_MAX))) if is_retryable else None,
            is_retryable=is_retryable,
            status=TOO_MANY_REQUESTS if why == RETRY_AFTER and throttle.held_status == TOO_MANY_REQUESTS else None,
        )
        if refused.status == TOO_MANY_REQUESTS:
            refused.grpc = _RESOURCE_EXHAUSTED
        return refused


def _held(whose: str, throttle: Throttle, now_s: float) -> str:
    said = f" with status {throttle.held_status}" if throttle.held_status else ""
    return f"Overloaded: {whose} has asked{said} to be left alone for another {throttle.held_until_s - now_s:.1f} s"


def _left_s(call: Call, now_s: float) -> float:
    """Return the seconds until nobody waits for this call any more: its deadline, or its client's own patience."""
    used_s = now_s - call.now_s
    left_s = _FOREVER if call.timeout_s is None else call.timeout_s - used_s
    context = call.context
    if context is not None and context.deadline_s is not None:
        left_s = min(left_s, context.deadline_s - call.wall_s - used_s)
    said = call.header(READ_TIMEOUT)
    if said is not None and len(said) < 12 and said.replace(b".", b"", 1).isdigit():
        left_s = min(left_s, float(said) - used_s)
    return left_s
