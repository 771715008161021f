"""How a demo ends: with the count of its claims, or early and tidily."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

from demo.processes import ProcessError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from demo.checks import Checks
    from demo.screen import Screen


def verdict(screen: Screen, checks: Checks, took_s: float) -> int:
    """Say what held and what did not; return the exit code."""
    screen.title(f"{checks.held} claims held, {len(checks.broken)} did not; {took_s:.0f} s; nothing is left running")
    for text in checks.broken:
        screen.bad(text)
    return 1 if checks.broken else 0


async def until_signalled(play: Coroutine[Any, Any, int], screen: Screen, *, is_kept: bool = False) -> int:
    """Play, and stop early and tidily on SIGINT, SIGTERM or SIGHUP: 128 and the signal's number then.

    With `is_kept` Ctrl-C is the way to end it, and no failure.
    """
    loop = asyncio.get_running_loop()
    playing = asyncio.ensure_future(play)
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        if len(received) == 1:  # a second one would interrupt the tidying up
            playing.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop, number)
    try:
        return await playing
    except asyncio.CancelledError:
        is_asked_for = is_kept and received[:1] == [signal.SIGINT]
        return 0 if is_asked_for else 128 + (received[0] if received else signal.SIGTERM)
    except ProcessError as error:
        screen.bad(str(error))
        return 1
