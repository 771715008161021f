"""Writes events into a log: one after the other, later than all before, and never twice.

What cannot be written is counted, and said once it can be again: the trace never grows a gap that nobody sees.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.engines.port import StoreError
from meshd.refusal import Reason, Refused
from meshd.trace import kinds
from meshd.trace.texts import SUFFIX

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.mesh_key import MeshKeys
    from meshd.trace.knowledge import Knowledge
    from meshd.trace.log import Log
    from meshd.trace.retention import Retention
    from meshd.trace.texts import Texts

_log = logging.getLogger("meshd.trace")

MESSAGE_CHARACTERS_MAX: Final = 500
TEXT_CHARACTERS_MAX: Final = 200
SHOWN_MAX: Final = 4096
"""Texts whose form without secrets is remembered."""

_encode: Final = msgspec.msgpack.Encoder().encode


class Writer:
    """One log's only writer."""

    __slots__ = (
        "_arrivals", "_hlc_us", "_keys", "_missed", "_shown", "_why", "clean", "entries", "has_collector",
        "is_durable", "knowledge", "log", "missed", "prefix", "release", "retention", "texts", "wall_clock",
    )  # fmt: skip

    def __init__(
        self,
        log: Log,
        knowledge: Knowledge,
        *,
        keys: MeshKeys | None = None,
        wall_clock: Callable[[], float],
        clean: Callable[[str], str] = str,
        texts: Texts | None = None,
        retention: Retention | None = None,
        is_durable: bool = False,
        hlc_us: int = 0,
    ) -> None:
        """`keys` sign clocks that travel, None for none; `clean` takes secrets out of a text; `hlc_us` is the time of
        the last event of an earlier run."""
        self.log = log
        self.knowledge = knowledge
        self.texts = texts
        self.wall_clock = wall_clock
        self.is_durable = is_durable
        self.has_collector = False
        """Spans of what fails are kept, whatever was drawn for them."""
        self.prefix = f"{log.sidecar}-{log.epoch}-"
        """Of the ids of events of this run."""
        self.missed = 0
        """Events that could not be written."""
        self._missed = 0
        self._why = ""
        self._keys = keys
        self.clean = clean
        """Takes secrets out of a text."""
        self._shown: dict[str, str] = {}
        self.retention = retention
        self.entries: dict[str, list[tuple[str, bytes, int]]] = {}
        """By workflow: ids of what agents said in an earlier run, with spans and sequences, as far as it was
        recalled."""
        self.release: Callable[[], None] | None = None
        """Lets others have the directory."""
        self._hlc_us = hlc_us
        self._arrivals: dict[tuple[str, str], int] = {}

    def shown(self, text: str) -> str:
        """Return a text that callers write, cut to length and without secrets."""
        found = self._shown.get(text)
        if found is None:
            found = self.clean(text[:TEXT_CHARACTERS_MAX])
            if len(self._shown) >= SHOWN_MAX:
                self._shown.clear()
            if len(text) <= TEXT_CHARACTERS_MAX:
                self._shown[text] = found
        return found

    def note(
        self,
        kind: int,
        workflow: str,
        facts: tuple[Any, ...],
        *,
        agent: str = "",
        target: str = "",
        call: str = "",
        causes: tuple[int | str, ...] | None = None,
        span: bytes = b"",
        digest: bytes = b"",
    ) -> int:
        """Write an event of another kind, with the facts that `kinds.FACTS` names; return its sequence, 0 where it
        could not be written. Without `causes` it follows from what its agent serves. It is a record of its own, and
        stored on return. Never raises."""
        if causes is None:
            causes = self.serving(workflow, agent)
        self.log.commit()
        event = self._write(kind, self.wall_clock(), workflow, call, agent, target, causes, span, digest, facts)
        self.log.commit()
        return event

    def serving(self, workflow: str, agent: str) -> tuple[int, ...]:
        """Return the event that an agent came to act in a workflow by last; none where nothing is known of that."""
        arrival = self._arrivals.get((workflow, agent))
        return () if arrival is None else (arrival,)

    def entry(
        self,
        kind: int,
        workflow: str,
        agent: str,
        text: bytes,
        facts: tuple[str, str, int, int, bool],
        *,
        causes: tuple[int | str, ...] = (),
        span: bytes = b"",
    ) -> int:
        """Write what an agent says of itself: `text` goes beside the log, its digest into it. `facts` are its id, its
        parent's id, when it began and ended in Unix nanoseconds, and whether it failed. Returns the event's sequence.

        Raises StoreError where either could not be written: then the event is missing, and is counted so."""
        digest, segment, at = b"", "", 0
        if self.texts is not None:
            try:
                if self.texts.is_full(self.log.path.with_suffix(SUFFIX)):
                    self.log.turn()
                path = self.log.path.with_suffix(SUFFIX)
                digest, at = self.texts.append(path, text)
                segment = path.stem
            except StoreError as error:
                self._miss(error)
                raise
        whole = (facts[0], facts[1], facts[2], facts[3], segment, at, facts[4])
        event = self.note(kind, workflow, whole, agent=agent, causes=causes or None, span=span, digest=digest)
        if not event:
            raise StoreError(self._why)
        return event

    def tick(self) -> None:
        """Let go what is too old or too much. Never raises."""
        if self.retention is not None:
            self.retention.apply(self)

    def close(self) -> None:
        """End the log."""
        self.log.close()
        if self.texts is not None:
            self.texts.close()
        release, self.release = self.release, None
        if release is not None:
            release()

    async def whole(self) -> None:
        """Return once all that was written is on disk. Raises Refused(STORE_UNAVAILABLE)."""
        try:
            await self.log.whole()
        except StoreError as error:
            raise unwritten(str(error)) from error

    def _write(
        self,
        kind: int,
        wall_s: float,
        workflow: str,
        call: str,
        agent: str,
        target: str,
        causes: tuple[int | str, ...],
        span: bytes,
        digest: bytes,
        facts: tuple[Any, ...],
    ) -> int:
        hlc_us = int(wall_s * 1e6)
        if hlc_us <= self._hlc_us:
            hlc_us = self._hlc_us + 1
        self._hlc_us = hlc_us
        fields = (kind, hlc_us, workflow, call, agent, target, self.knowledge.of(workflow), causes, span, digest, facts)
        try:
            if self._missed:
                self._tell_missed()
            return self.log.append(_encode(fields))
        except (StoreError, UnicodeEncodeError) as error:
            self._miss(error)
            return 0

    def _miss(self, error: Exception) -> None:
        self.missed += 1
        if not self._missed:
            _log.error("the trace cannot be written, and goes on without: %s", error)
        self._missed += 1
        self._why = str(error)

    def _tell_missed(self) -> None:
        facts = (self._missed, self._why[:MESSAGE_CHARACTERS_MAX])
        self.log.append(_encode((kinds.MISSED, self._hlc_us, "", "", "", "", b"", (), b"", b"", facts)))
        _log.warning("the trace is written again; %d events are missing in it", self._missed)
        self._missed = 0


def unwritten(why: str) -> Refused:
    return Refused(Reason.STORE_UNAVAILABLE, f"The trace cannot be written, and by MESHD_TRACE it must be: {why}")
