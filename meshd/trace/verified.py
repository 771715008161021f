"""What a walk over a log has found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Problem(NamedTuple):
    """What is wrong, and where it begins."""

    record: str
    """Id of the first record that is bad; empty where a whole file is."""
    file: str
    at: int
    """Offset in the file; -1 where it is not there at all."""
    what: str

    def __str__(self) -> str:
        where = self.file if self.at < 0 else f"{self.file} at byte {self.at}"
        return f"{self.record or 'a file'}: {self.what} ({where})"


@dataclass(slots=True)
class Verified:
    """What was found."""

    sidecar: str = ""
    records: int = 0
    segments: int = 0
    bytes: int = 0
    heads_held: int = 0
    """Records of which a peer holds the hash, and it is the same."""
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a crash may leave, and no hand need have done."""

    @property
    def is_sound(self) -> bool:
        """Nothing is wrong with it."""
        return not self.problems
