"""Semantic versions, and ranges of them as npm and Cargo write these.

After Semantic Versioning 2.0.0 (precedence: section 11) and the grammar of node-semver's ranges. Two liberties with
versions, since cards and servers write such: a `v` in front, and missing numbers (`1.2`), which are zeros.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

TEXT_CHARACTERS_MAX: Final = 256
"""Of a version or of a range. Longer ones are neither."""
ALTERNATIVES_MAX: Final = 16
COMPARATORS_MAX: Final = 16
"""Of one alternative."""

_NUMBER: Final = r"(?:0|[1-9][0-9]{0,15})"
_IDENTIFIER: Final = r"(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_TAIL: Final = rf"(?:-(?P<pre>{_IDENTIFIER}(?:\.{_IDENTIFIER})*))?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
_VERSION: Final = re.compile(rf"[vV]?({_NUMBER})(?:\.({_NUMBER})(?:\.({_NUMBER}){_TAIL})?)?\Z")
_ANY: Final = rf"(?:{_NUMBER}|[xX*])"
_PARTIAL: Final = rf"[vV]?(?P<major>{_ANY})(?:\.(?P<minor>{_ANY})(?:\.(?P<patch>{_ANY}){_TAIL})?)?"
_COMPARATOR: Final = re.compile(rf"(?P<sign>\^|~>?|<=|>=|<|>|=)?\s*{_PARTIAL}(?=\s|,|\Z)")
_HYPHEN: Final = re.compile(r"\s+-\s+")


class Version(NamedTuple):
    """A version, without its build metadata, which says nothing of order."""

    major: int
    minor: int
    patch: int
    pre: tuple[str, ...] = ()
    """What stands behind the dash; empty for a release."""

    @property
    def rank(self) -> tuple[object, ...]:
        """What is compared: the greater, the newer."""
        ranked = tuple((0, int(one), "") if one.isdigit() else (1, 0, one) for one in self.pre)
        # A release is newer than what came before it.
        return self.major, self.minor, self.patch, (0, ranked) if ranked else (1, ())

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}{'-' + '.'.join(self.pre) if self.pre else ''}"


class Comparator(NamedTuple):
    """One bound: a sign of `<`, `<=`, `>`, `>=`, `=`."""

    sign: str
    version: Version

    def admits(self, version: Version) -> bool:
        """Say whether a version is on the right side of it."""
        ours, theirs = version.rank, self.version.rank
        match self.sign:
            case "<":
                return ours < theirs
            case "<=":
                return ours <= theirs
            case ">":
                return ours > theirs
            case ">=":
                return ours >= theirs
            case _:
                return ours == theirs


class Range(NamedTuple):
    """Alternatives, of which one must fit; each is a set of bounds that must all hold."""

    alternatives: tuple[tuple[Comparator, ...], ...]

    def admits(self, version: Version) -> bool:
        """Say whether a version lies in it.

        One that precedes a release does only where a bound names such a version of the same three numbers: `>=1` is no
        wish for `2.0.0-beta`.
        """
        return any(_all_admit(bounds, version) for bounds in self.alternatives)


def _all_admit(bounds: tuple[Comparator, ...], version: Version) -> bool:
    if not all(bound.admits(version) for bound in bounds):
        return False
    return not version.pre or any(bound.version.pre and bound.version[:3] == version[:3] for bound in bounds)


def version_of(text: str) -> Version | None:
    """Return the version that a text is; None for what is none."""
    found = _VERSION.match(text.strip()) if len(text) <= TEXT_CHARACTERS_MAX else None
    if found is None:
        return None
    pre = found["pre"]
    return Version(int(found[1]), int(found[2] or 0), int(found[3] or 0), tuple(pre.split(".")) if pre else ())


@lru_cache(maxsize=256)
def range_of(text: str) -> Range:
    """Return the range that a text is: `^1.2`, `~1.2.3`, `>=1 <2`, `1.x`, `1.2 - 1.4`, `1 || 3`; any for none.

    Raises ValueError, with words for whoever wrote it.
    """
    if len(text) > TEXT_CHARACTERS_MAX:
        raise ValueError(f"a range of versions has at most {TEXT_CHARACTERS_MAX} characters")
    parts = text.split("||")
    if len(parts) > ALTERNATIVES_MAX:
        raise ValueError(f"a range of versions has at most {ALTERNATIVES_MAX} alternatives")
    return Range(tuple(tuple(_alternative(part.strip())) for part in parts))


def matches(version: str, wanted: str) -> bool:
    """Say whether a version, as its owner writes it, lies in a range. An empty range takes whatever there is, also what
    is no version. Raises ValueError for what is no range."""
    if not wanted.strip():
        return True
    found = version_of(version)
    return range_of(wanted).admits(found) if found is not None else False


def _alternative(text: str) -> list[Comparator]:
    ends = _HYPHEN.split(text)
    if len(ends) == 2:
        return [*_read(f">={ends[0]}"), *_read(f"<={ends[1]}")]
    found = _read(text)
    if len(found) > COMPARATORS_MAX:
        raise ValueError(f"a range of versions has at most {COMPARATORS_MAX} bounds")
    return found


def _read(text: str) -> list[Comparator]:
    found: list[Comparator] = []
    at = 0
    while at < len(text):
        match = _COMPARATOR.match(text, at)
        if match is None:
            raise ValueError(f"{text[at : at + 40]!r} is no range of versions, such as ^1.2, ~1.2.3 or >=1 <2")
        found += _bounds(match)
        at = match.end()
        while at < len(text) and (text[at].isspace() or text[at] == ","):
            at += 1
    return found


def _bounds(match: re.Match[str]) -> list[Comparator]:
    sign = match["sign"] or ""
    numbers: list[int] = []
    for part in ("major", "minor", "patch"):
        # What follows an `x` says nothing: `1.x.3` is `1.x`.
        if (number := match[part]) is None or not number.isdigit():
            break
        numbers.append(int(number))
    is_whole = len(numbers) == 3
    pre = tuple(match["pre"].split(".")) if is_whole and match["pre"] else ()
    if not numbers:
        return [Comparator("<", Version(0, 0, 0, ("0",)))] if sign in ("<", ">") else []
    least = Version(*numbers, *[0] * (3 - len(numbers)), pre)  # type: ignore[call-arg,arg-type]
    if sign == "^":
        first = next((at for at, number in enumerate(numbers) if number), len(numbers) - 1)
        return [Comparator(">=", least), Comparator("<", _after(numbers[: first + 1]))]
    if sign in ("~", "~>"):
        return [Comparator(">=", least), Comparator("<", _after(numbers[:2]))]
    if is_whole:
        return [Comparator(sign or "=", least)]
    match sign:
        case ">":
            return [Comparator(">=", _after(numbers)._replace(pre=()))]
        case "<=":
            return [Comparator("<", _after(numbers))]
        case "<":
            return [Comparator("<", least._replace(pre=("0",)))]
        case ">=":
            return [Comparator(">=", least)]
        case _:
            return [Comparator(">=", least), Comparator("<", _after(numbers))]


def _after(numbers: list[int]) -> Version:
    """Return what comes first behind all versions that begin with these numbers, what precedes its release included."""
    raised = [*numbers[:-1], numbers[-1] + 1, 0, 0][:3]
    return Version(raised[0], raised[1], raised[2], ("0",))
