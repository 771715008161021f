"""Names matched against the patterns of a policy: `*` any run, `?` one character, all else stands for itself."""

from __future__ import annotations

import re
from functools import lru_cache


class Names:
    """Compiled patterns: literal ones are looked up, the rest is one expression."""

    __slots__ = ("_expression", "_literals")

    def __init__(self, globs: tuple[str, ...]) -> None:
        wild = tuple(glob for glob in globs if "*" in glob or "?" in glob)
        self._literals = frozenset(globs).difference(wild)
        source = "|".join([_source(glob) for glob in wild])
        self._expression = re.compile(f"(?:{source})", re.DOTALL).fullmatch if wild else None

    def admits(self, name: str) -> bool:
        """Say whether any pattern fits the whole name. Linear in the name, which a caller writes."""
        if name in self._literals:
            return True
        return self._expression is not None and self._expression(name) is not None

    def first_foreign(self, names: tuple[str, ...]) -> str | None:
        """Return the first of `names` that no pattern fits, or None."""
        for name in names:
            if name not in self._literals and not self.admits(name):
                return name
        return None


@lru_cache(maxsize=1024)
def names(globs: tuple[str, ...]) -> Names:
    """Return the compiled patterns, made once for each list of a policy."""
    return Names(globs)


def _source(glob: str) -> str:
    """Return the expression of one pattern. What lies between two stars is found at its first place and kept."""
    first, *rest = ["".join("." if c == "?" else re.escape(c) for c in part) for part in re.split(r"\*+", glob)]
    if not rest:
        return first
    *middle, last = rest
    return first + "".join([f"(?>.*?{part})" for part in middle]) + ".*" + last
