"""The log as a start finds it: locked, named, recovered to its last whole record, and begun anew with another epoch.

Nothing of an earlier run is changed. Each start writes a segment of its own, whose first record says what was found:
how far the log went, how far the file `head` says that it had gone, and whether the host was started meanwhile.
"""

from __future__ import annotations

import logging
import secrets
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.clocks import ClockMalformed
from meshd.engines.port import StoreError
from meshd.ledger.directory import Directory, boot_id
from meshd.ledger.journal import told
from meshd.trace import kinds
from meshd.trace.knowledge import Knowledge
from meshd.trace.log import Log, said_head
from meshd.trace.reading import Segment, open_segment, segment_paths
from meshd.trace.record import payloads_of
from meshd.trace.recorder import Recorder
from meshd.trace.retention import KEEP_BYTES, KEEP_S, Retention, number_of
from meshd.trace.segment import BEGINNING, FRAME_BYTES, HEAD_BYTES, SEGMENT_BYTES, Head
from meshd.trace.texts import Texts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from meshd.mesh_key import MeshKeys

log = logging.getLogger("meshd.trace")

DIRECTORY: Final = "trace"
"""In the state directory."""
RECALLED_SEGMENTS: Final = 2
"""Of an earlier run, from which is recalled what others had done in its workflows."""
SKIPPED: Final = 2**20
"""After a crash of the host: peers may know of events that did not reach the disk, and no sequence is used twice."""
NAME_FILE: Final = "sidecar"
"""Has the sidecar's id."""
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz234567"
_ID_LETTERS: Final = 8


class Found(NamedTuple):
    """What an earlier run has left."""

    epoch: int = 0
    segment: int = 0
    """Number of the last one; 0 where there is none."""
    sequence: int = 0
    head: bytes = BEGINNING
    boot_id: str = ""
    hlc_us: int = 0
    torn_bytes: int = 0
    """Behind the last whole record."""


def open_trace(
    home: Path,
    *,
    keys: MeshKeys | None = None,
    version: str = "",
    is_durable: bool = False,
    keep_s: float = KEEP_S,
    keep_bytes: int = KEEP_BYTES,
    wall_clock: Callable[[], float] = time.time,
    clean: Callable[[str], str] = str,
    boot: Callable[[], str] = boot_id,
    segment_bytes: int = SEGMENT_BYTES,
) -> Recorder:
    """Open the trace of a state directory. Raises StoreError: locked by another meshd, full, read only, or newer."""
    directory = Directory(home / DIRECTORY)
    try:
        sidecar = _named(directory)
        knowledge = Knowledge(sidecar)
        entries: dict[str, list[tuple[str, bytes, int]]] = {}
        found = recover(directory.path, knowledge, entries)
        said = said_head(directory.path)
        # It is made ahead of the first record: where it says nothing of records that are there, somebody took it.
        said_sequence = said[1] if said is not None else -1 if found.sequence else 0
        here = boot()
        is_same_boot = bool(here) and here == found.boot_id
        sequence = max(found.sequence, said_sequence)
        if found.epoch and not is_same_boot:
            sequence += SKIPPED
        made = Log(
            directory.path,
            sidecar=sidecar,
            epoch=max(found.epoch, said[0] if said is not None else 0) + 1,
            boot_id=here,
            segment=found.segment + 1,
            sequence=sequence,
            head=found.head,
            segment_bytes=segment_bytes,
        )
    except BaseException:
        directory.close()
        raise
    lost = max(said_sequence - found.sequence, 0)
    _tell(directory.path, found, lost, is_said=said_sequence >= 0)
    recorder = Recorder(
        made,
        knowledge,
        keys=keys,
        wall_clock=wall_clock,
        clean=clean,
        texts=Texts(),
        retention=Retention(directory.path, keep_s=keep_s, keep_bytes=keep_bytes),
        is_durable=is_durable,
        hlc_us=found.hlc_us,
    )
    recorder.note(kinds.OPENED, "", (version, here, found.sequence, said_sequence, lost, is_same_boot))
    made.on_segment = recorder.tick
    recorder.tick()
    recorder.entries, recorder.release = entries, directory.close
    return recorder


def _named(directory: Directory) -> str:
    """Return the sidecar's id, made when it is first asked for. Raises StoreError."""
    damage: StoreError | None = None
    try:
        sidecar = directory.recall(NAME_FILE)
    except StoreError as error:
        sidecar, damage = "", error
    if _is_id(sidecar):
        return sidecar
    sidecar = _id_of(directory.path)
    if sidecar:
        # Another one would make two logs of this directory, of which none is whole.
        log.warning("%s was lost or damaged: the log says that it is %s", directory.path / NAME_FILE, sidecar)
    elif damage is not None:
        raise damage
    else:
        sidecar = "".join(secrets.choice(_LETTERS) for _ in range(_ID_LETTERS))
    directory.remember(NAME_FILE, sidecar)
    return sidecar


def _is_id(text: str) -> bool:
    return len(text) == _ID_LETTERS and not set(text) - set(_LETTERS)


def _id_of(directory: Path) -> str:
    """Return the id that the newest segment says which can be read; empty where none does. Raises StoreError."""
    try:
        paths = segment_paths(directory)
    except OSError as error:
        raise told(error, directory) from error
    for path in reversed(paths):
        segment = open_segment(path)
        if isinstance(segment, Segment):
            segment.close()
            if _is_id(segment.head.sidecar):
                return segment.head.sidecar
    return ""


def recover(directory: Path, knowledge: Knowledge, entries: dict[str, list[tuple[str, bytes, int]]]) -> Found:
    """Find the end of an earlier run's log, and recall what its last segments know. Raises StoreError."""
    try:
        paths = segment_paths(directory)
    except OSError as error:
        raise told(error, directory) from error
    found = Found()
    for path in paths[-RECALLED_SEGMENTS:]:
        segment = open_segment(path)
        if segment is None:
            continue
        if not isinstance(segment, Segment):
            if segment.is_newer:
                raise StoreError(f"{path}: {segment.why}; run that version, or start with another state directory")
            log.error("%s cannot be read: %s; `meshd trace --verify` says more", path, segment.why)
            found = found._replace(segment=max(number_of(path), found.segment))
            continue
        try:
            found = _walk(segment, found, knowledge, entries)
        finally:
            segment.close()
    return found


def _walk(
    segment: Segment, found: Found, knowledge: Knowledge, entries: dict[str, list[tuple[str, bytes, int]]]
) -> Found:
    head: Head = segment.head
    sequence, before, hlc_us, end = head.first - 1, head.before, found.hlc_us, HEAD_BYTES
    for frame in segment.frames():
        sequence = frame.last
        end = frame.at + FRAME_BYTES + len(frame.payload)
        before = frame.head
        for number, payload in enumerate(payloads_of(frame.payload), frame.sequence):
            if payload is None:
                continue
            hlc_us = max(hlc_us, payload.hlc_us)
            if payload.clock:
                try:
                    knowledge.recall(payload.workflow, payload.clock)
                except ClockMalformed:
                    continue
            if kinds.STEP <= payload.kind <= kinds.NOTE and payload.facts:
                entries.setdefault(payload.workflow, []).append((str(payload.facts[0]), payload.span, number))
    torn = len(bytes(segment.data[end:]).rstrip(b"\0"))
    return Found(head.epoch, head.segment, sequence, before, head.boot_id, hlc_us, torn)


def _tell(directory: Path, found: Found, lost: int, *, is_said: bool) -> None:
    if found.torn_bytes:
        log.warning(
            "the trace in %s ended within a record (%d bytes): it is whole up to event %d",
            directory,
            found.torn_bytes,
            found.sequence,
        )
    if lost:
        log.error(
            "the trace in %s lacks its last %d events, up to %d: a crash of the host, or another hand",
            directory,
            lost,
            found.sequence + lost,
        )
    if not is_said:
        log.error(
            "the file head of the trace in %s is missing or damaged: what followed event %d may have been cut off",
            directory,
            found.sequence,
        )
