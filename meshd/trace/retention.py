"""What is old, or too much, goes: whole segments, the oldest first, never the one that is written to.

That they went is written down, so that a segment which is missing for another reason shows.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshd.trace import kinds
from meshd.trace.indexing import INDEX_SUFFIX
from meshd.trace.reading import first_of, segment_paths
from meshd.trace.texts import SUFFIX

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("meshd.trace")

KEEP_S: Final = 7 * 86_400.0
KEEP_BYTES: Final = 256 * 2**20


class Size(NamedTuple):
    """A segment with all that belongs to it."""

    path: Path
    bytes: int
    written_s: float
    """Unix seconds at which it was last written to."""


class Retention:
    """One log's rule."""

    __slots__ = ("_directory", "_seen", "keep_bytes", "keep_s", "kept_bytes")

    def __init__(self, directory: Path, *, keep_s: float = KEEP_S, keep_bytes: int = KEEP_BYTES) -> None:
        self._directory = directory
        self.keep_s = keep_s
        self.keep_bytes = keep_bytes
        self.kept_bytes = 0
        """On disk, as of the last look."""

    def apply(self, recorder: Any) -> list[Path]:
        """Remove what may go, and write down that it went. Returns the segments removed; never raises."""
        sizes = self._sizes()
        self.kept_bytes = sum(size.bytes for size in sizes)
        now_s = recorder.wall_clock()
        gone: list[Path] = []
        why = ""
        for size in sizes[:-1]:
            if now_s - size.written_s > self.keep_s:
                why = "age"
            elif self.kept_bytes > self.keep_bytes:
                why = "bytes"
            else:
                break
            gone.append(size.path)
            self.kept_bytes -= size.bytes
        if not gone:
            return gone
        kept = sizes[len(gone)].path
        # First that they go, then they go: whoever is killed between leaves more than it says, never less.
        if not recorder.note(kinds.RETIRED, "", (number_of(kept), first_of(kept) - 1, why)):
            return []
        for path in gone:
            for one in (path, path.with_suffix(INDEX_SUFFIX), path.with_suffix(SUFFIX)):
                try:
                    one.unlink(missing_ok=True)
                except OSError as error:
                    log.warning("%s cannot be removed: %s", one, error.strerror)
        log.info("%d segments of the trace were removed by %s", len(gone), why)
        return gone

    def _sizes(self) -> list[Size]:
        found: list[Size] = []
        try:
            paths = segment_paths(self._directory)
        except OSError as error:
            log.warning("%s cannot be listed: %s", self._directory, error.strerror)
            return found
        for path in paths:
            try:
                told = path.stat()
            except OSError:
                continue
            size = told.st_blocks * 512
            for suffix in (INDEX_SUFFIX, SUFFIX):
                try:
                    size += path.with_suffix(suffix).stat().st_size
                except OSError:
                    pass
            found.append(Size(path, size, told.st_mtime))
        return found


def number_of(path: Path) -> int:
    """Return the number of a segment by its file's name; -1 for what is none."""
    text = path.stem.rsplit("-", 1)[-1]
    return int(text) if text.isascii() and text.isdigit() else -1
