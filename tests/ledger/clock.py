"""Timers that run when a test says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Timer:
    """What `Timers.later` returns."""

    def __init__(self, at_s: float, call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.at_s = at_s
        self.call = call
        self.arguments = arguments
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Timers:
    """A clock that stands still until `advance`."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.pending: list[Timer] = []

    def later(self, delay_s: float, call: Callable[..., None], *arguments: Any) -> Timer:
        timer = Timer(self.now_s + delay_s, call, arguments)
        self.pending.append(timer)
        return timer

    def advance(self, by_s: float) -> None:
        self.now_s += by_s
        due = sorted((one for one in self.pending if one.at_s <= self.now_s), key=lambda one: one.at_s)
        self.pending = [one for one in self.pending if one.at_s > self.now_s]
        for timer in due:
            if not timer.is_cancelled:
                timer.call(*timer.arguments)
