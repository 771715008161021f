"""What is wrong with a document, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Place(NamedTuple):
    """A place in a file; line and column count from 1."""

    path: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}"


class Problem(NamedTuple):
    """One error, or one warning, at one place."""

    path: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}: {self.message}"


class LoadError(Exception):
    """A document that cannot be used, with every problem that was found, in the order of the text."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(dict.fromkeys(sorted(problems, key=lambda p: p[:3])))
        super().__init__("\n".join(str(problem) for problem in self.problems))


def shown(text: str, characters_max: int = 60) -> str:
    """Return a text in quotes, fit for a one-line message: cut, and with control characters escaped."""
    cut = text if len(text) <= characters_max else text[: characters_max - 3] + "..."
    return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut) + '"'
