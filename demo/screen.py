"""What the demo writes: colours and a live line on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Sequence

_BOLD, _DIM, _GREEN, _RED, _END = "\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[31m", "\x1b[0m"
_WIDTH = 100
_CLEAR_LINE = "\r\x1b[2K"


class Screen:
    """Writes to one stream; decides once whether that is a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self.is_live = self._stream.isatty()
        self._has_open_line = False

    def title(self, text: str) -> None:
        """Begin a part."""
        self._line("")
        self._line(text, _BOLD)

    def step(self, text: str) -> None:
        """Say what just happened."""
        self._line("  " + text)

    def quote(self, text: str) -> None:
        """Say something in the words of another, over as many lines as it takes."""
        for line in textwrap.wrap(text, _WIDTH, break_long_words=False):
            self._line("    " + line, _DIM)

    def log_of(self, name: str, text: str) -> None:
        """Show the end of what a process wrote, for whoever must find out why a claim did not hold."""
        for line in text.splitlines():
            self._line(f"  {name}: {line}", _DIM)

    def live(self, text: str) -> None:
        """Show a passing state: one line that the next one replaces; nothing where lines stay."""
        if self.is_live:
            self._stream.write(f"{_CLEAR_LINE}  {_DIM}{text}{_END}")
            self._stream.flush()
            self._has_open_line = True

    def good(self, text: str) -> None:
        """A claim that was checked and holds."""
        self._line(f"  ok    {text}", _GREEN)

    def bad(self, text: str) -> None:
        """A claim that was checked and does not hold."""
        self._line(f"  FAIL  {text}", _RED)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Write aligned columns; numbers to the right."""
        cells = [[str(cell) if not isinstance(cell, int) else f"{cell:,}" for cell in row] for row in rows]
        widths = [max(len(row[column]) for row in [list(head), *cells]) for column in range(len(head))]
        is_number = [bool(rows) and all(isinstance(row[column], int) for row in rows) for column in range(len(head))]
        for index, row in enumerate([list(head), *cells]):
            texts = [
                text.rjust(width) if right else text.ljust(width)
                for text, width, right in zip(row, widths, is_number, strict=True)
            ]
            self._line(("  " + "  ".join(texts)).rstrip(), _DIM if index == 0 else "")

    def _line(self, text: str, style: str = "") -> None:
        if self._has_open_line:
            self._stream.write(_CLEAR_LINE)
            self._has_open_line = False
        self._stream.write((f"{style}{text}{_END}" if style and self.is_live and text else text) + "\n")
        self._stream.flush()
