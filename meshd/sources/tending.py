"""One source, tended: asked, waited for, asked again with back-off, and given up once its lease is over.

A source that fails is unhealthy at once and stays in the catalogue until its lease ends; then what it offered falls
out. It is asked on all the same, and is back with its first answer.
"""

from __future__ import annotations

import asyncio
import logging
import random
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.sources.asking import Failed

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.sources.admitting import Admitting
    from meshd.sources.asking import Look, Source

log = logging.getLogger("meshd.discovery")


class Terms(NamedTuple):
    """How often, and how long."""

    look_s: float = 60.0
    """Between two looks at a source that says nothing of changes."""
    heard_look_s: float = 600.0
    """The same where it does."""
    notice_gap_s: float = 1.0
    """Between two looks for its notices, however many come."""
    heard_min_s: float = 10.0
    """A stream for notices that ends sooner is none: its server is asked as if it told no changes."""
    backoff_s: float = 1.0
    """To the second try after a failure; doubled with each."""
    backoff_max_s: float = 60.0
    lease_s: float = 180.0
    """What a source offers stays for so long after its last answer."""
    whole_s: float = 60.0
    """One look, with all of its pages."""


TERMS: Final = Terms()


class State(str, Enum):
    """How a source stands."""

    NEW = "new"
    """It has not answered yet."""
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    """It did not answer the last time, and what it offered still stands."""
    GONE = "gone"
    """Its lease is over."""


class Tending:
    """One source. `run` is its task; everything else may be read at any time."""

    def __init__(
        self, owner: str, source: Source, admitting: Admitting, *, terms: Terms = TERMS, clock: Callable[[], float]
    ) -> None:
        """`clock` returns monotonic seconds."""
        self.owner = owner
        self.source = source
        self._admitting = admitting
        self._terms = terms
        self._clock = clock
        self._wake = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self.state = State.NEW
        self.why = ""
        """Why it did not answer the last time; empty where it did."""
        self.answered_s: float | None = None
        """Monotonic seconds of its last answer."""
        self.about: Look | None = None
        """What it said last, without its entries."""
        self.looks = 0
        self.results: dict[str, int] = {}
        """How looks ended, by a word."""

    async def run(self) -> None:
        """Look, wait, look again: until it is cancelled."""
        fails = 0
        try:
            while True:
                fails = 0 if await self.look() else fails + 1
                await self._pause(fails)
        finally:
            if self._listening is not None:
                self._listening.cancel()

    async def look(self) -> bool:
        """Look once, whatever comes of it; say whether it answered."""
        what, why = "ok", ""
        try:
            async with asyncio.timeout(self._terms.whole_s):
                found = await self.source.look()
                await self._admitting.take(self.owner, self.source.origin, found.entries)
        except Failed as failed:
            what, why = failed.what, str(failed)
        except TimeoutError:
            what, why = "upstream_timeout", f"it did not say all within {self._terms.whole_s:g} s"
        except Exception as error:  # whatever a server sends, its source must go on
            log.exception("looking at %s failed", self.owner)
            what, why = "internal", f"meshd failed at this: {error}"
        self.looks += 1
        self.results[what] = self.results.get(what, 0) + 1
        if why:
            self._failed(why)
            return False
        self._answered(found)
        return True

    def poke(self) -> None:
        """Look again soon."""
        self._wake.set()

    @property
    def is_listening(self) -> bool:
        """A stream is open in which it says what changes."""
        return self._listening is not None and not self._listening.done()

    # ------------------------------------------------------------------ within

    def _answered(self, found: Look) -> None:
        if self.state is not State.HEALTHY:
            log.info("%s offers %d entries (%s)", self.owner, len(found.entries), self.source.origin.value)
        self.state, self.why, self.answered_s = State.HEALTHY, "", self._clock()
        self.about = found._replace(entries=[])
        if found.tells_changes and not self.is_listening:
            self._listening = asyncio.get_running_loop().create_task(self._listen())

    def _failed(self, why: str) -> None:
        if why != self.why:
            log.warning("%s does not say what it offers: %s", self.owner, why)
        self.why = why
        if self.answered_s is None:
            return
        if self._clock() - self.answered_s > self._terms.lease_s:
            if self.state is not State.GONE:
                log.warning("%s has not answered for %g s: what it offered is gone", self.owner, self._terms.lease_s)
                self.state = State.GONE
                self._admitting.drop(self.owner, self.source.origin)
        elif self.state is State.HEALTHY:
            self.state = State.UNHEALTHY

    async def _listen(self) -> None:
        began_s = self._clock()
        try:
            await self.source.listen(self._wake.set)
        except Failed as failed:
            log.debug("%s is not heard any more: %s", self.owner, failed)
        if self._clock() - began_s >= self._terms.heard_min_s:
            self._wake.set()  # What it said since is missed: look, and listen again.

    async def _pause(self, fails: int) -> None:
        terms = self._terms
        if fails:
            wait_s = min(terms.backoff_max_s, terms.backoff_s * 2 ** min(fails - 1, 16))
        else:
            # What changed while it was looked at is looked at again, and a flood of notices is one.
            await asyncio.sleep(terms.notice_gap_s)
            wait_s = terms.heard_look_s if self.is_listening else terms.look_s
        try:
            # Not all at once: sidecars that began together would ask together for ever.
            async with asyncio.timeout(wait_s * random.uniform(0.75, 1.0)):  # noqa: S311 - no secret
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()
