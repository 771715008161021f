"""What resources are called behind the gateway, and which server a URI is of. Pure.

A URI that one server has stays as it is. One that an earlier server has too, or might have, gets its server's mark:
`note://today` of `mail` is then `mail+note://today`, a URI whose scheme says whose it is. A mark can always be written
and always means its server, so a server's own URI that looks marked gets one as well: what is read, subscribed to or
completed goes to one server, and what that says of it comes back under the name by which the client knows it.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.discovery.entry import Entry, Origin, Sort

if TYPE_CHECKING:
    from collections.abc import Iterable

_EXPRESSION: Final = re.compile(r"\{([^{}]{0,256})\}")
_LONG: Final = ("+", "#", "/", "?", "&", ";", ".")
_SEGMENT_ENDS: Final = frozenset("/?#")
_SCHEME_FOREIGN: Final = re.compile(r"[^a-z0-9.-]")
_DIGEST_CHARACTERS: Final = 8
COMPARED_MAX: Final = 64
"""Templates of one server that are held against what others have: servers write them, and would cost all of the time.
Further ones are marked unseen."""
WEB: Final = ("https:", "http:")
"""What a client may load from the web by itself: a link to it is left alone."""


class Place(NamedTuple):
    """Where something is that is called by a name."""

    server: str
    name: str
    """As the server calls it."""
    entry: Entry


class Template(NamedTuple):
    """What fits the URIs that a template (RFC 6570) stands for. Servers write them and clients the URIs, so it is found
    out in one pass: a pattern that can be read in many ways would be a way to stop the sidecar."""

    literals: tuple[str, ...]
    """What stands between its expressions, before the first and behind the last."""
    are_long: tuple[bool, ...]
    """Of each expression: whether it may stand for several segments."""

    def fits(self, uri: str) -> bool:
        """Say whether it stands for a URI: each expression for as little as the next literal lets it."""
        first, last = self.literals[0], self.literals[-1]
        if not uri.startswith(first) or not uri.endswith(last) or len(uri) < len(first) + len(last):
            return False
        at, end = len(first), len(uri) - len(last)
        for literal, is_long in zip(self.literals[1:-1], self.are_long, strict=False):
            found = uri.find(literal, at, end)
            if found < 0 or not (is_long or _SEGMENT_ENDS.isdisjoint(uri[at:found])):
                return False
            at = found + len(literal)
        return self.are_long[-1] or _SEGMENT_ENDS.isdisjoint(uri[at:end])

    def may_meet(self, other: Template) -> bool:
        """Say whether there may be a URI for which both stand; False only where there is none."""
        mine, theirs = self.literals, other.literals
        if not (mine[0].startswith(theirs[0]) or theirs[0].startswith(mine[0])):
            return False
        if not (mine[-1].endswith(theirs[-1]) or theirs[-1].endswith(mine[-1])):
            return False
        # Where no expression stands for more than one segment, both have as many as their literals say.
        return any(self.are_long) or any(other.are_long) or _segments(mine) == _segments(theirs)


def _segments(literals: tuple[str, ...]) -> int:
    return sum(literal.count(end) for literal in literals for end in _SEGMENT_ENDS)


def template(pattern: str) -> Template | None:
    """Read a template; None for what has no expression."""
    literals, are_long, end = [], [], 0
    for found in _EXPRESSION.finditer(pattern):
        literals.append(pattern[end : found.start()])
        are_long.append(found[1][:1] in _LONG or found[1].endswith("*"))
        end = found.end()
    literals.append(pattern[end:])
    return Template(tuple(literals), tuple(are_long)) if are_long else None


def marks_of(servers: Iterable[str]) -> dict[str, str]:
    """Return what marks the URIs of each server: the beginning of a scheme (RFC 3986, section 3.1), and a plus sign.
    There is none where there is but one server."""
    found: dict[str, str] = {}
    for server in servers:
        mark = _SCHEME_FOREIGN.sub("-", server)
        mark = mark if mark[:1].isalpha() else f"x{mark}"
        if f"{mark}+" in found.values():
            mark += f"-{sha256(server.encode()).hexdigest()[:_DIGEST_CHARACTERS]}"
        found[server] = f"{mark}+"
    return found if len(found) > 1 else {}


class Uris:
    """All resources and templates of one moment, taken in the order of the servers."""

    __slots__ = ("_marks", "_own", "_owners", "_taken", "listed", "templates")

    def __init__(self, servers: Iterable[str]) -> None:
        self._marks = marks_of(servers)
        self._owners = {mark: server for server, mark in self._marks.items()}
        self.listed: dict[str, Place] = {}
        """Resources that have a URI of their own, by what they are called here."""
        self.templates: dict[str, Place] = {}
        """The same of templates."""
        self._taken: list[tuple[str, Template]] = []
        """Those that stand here without a mark, and their servers."""
        self._own: dict[tuple[str, str], tuple[str, Place]] = {}
        """By the server and its own name, everything that is listed: what it is called here, and where it is."""

    def take(self, server: str, entries: Iterable[Entry]) -> None:
        """Take the resources and templates of one server; those of earlier ones were taken before."""
        uris: list[Entry] = []
        made: list[tuple[Template, Entry]] = []
        for entry in entries:
            found = template(entry.name)
            if found is None:
                uris.append(entry)
            else:
                made.append((found, entry))
        others, taken = list(self.listed), tuple(self._taken)
        for entry in uris:
            self._put(self.listed, entry, is_other=any(one.fits(entry.name) for _, one in taken))
        for number, (found, entry) in enumerate(made):
            is_other = (
                entry.name in self.templates
                or (number >= COMPARED_MAX and bool(self._marks))
                or any(found.may_meet(one) for _, one in taken)
                or any(found.fits(uri) for uri in others)
            )
            if self._put(self.templates, entry, is_other=is_other) == entry.name:
                self._taken.append((server, found))

    def _put(self, held: dict[str, Place], entry: Entry, *, is_other: bool) -> str:
        place, name = Place(entry.owner, entry.name, entry), entry.name
        if (entry.owner, name) in self._own:
            return ""
        taken = held.get(name)
        if (is_other or taken is not None or self._marked(name) is not None) and self._marks:
            name = self._marks[entry.owner] + name
        held[name] = place
        self._own[entry.owner, entry.name] = name, place
        return name

    def _marked(self, uri: str) -> tuple[str, str] | None:
        """Return the server that a URI is marked with, and the rest."""
        scheme, colon, _ = uri.partition(":")
        mark, plus, _ = scheme.partition("+")
        server = self._owners.get(f"{mark}+") if colon and plus else None
        return None if server is None else (server, uri[len(mark) + 1 :])

    def find(self, uri: str) -> Place | None:
        """Return where a URI, or a template, is that is listed, fits a template, or says whose it is."""
        found = self.listed.get(uri) or self.templates.get(uri)
        if found is not None:
            return found
        marked = self._marked(uri)
        if marked is not None:
            server, own = marked
            known = self._own.get((server, own))
            # What nobody lists may be there all the same: its server knows.
            return known[1] if known is not None else _unlisted(server, own)
        for server, pattern in self._taken:
            if pattern.fits(uri):
                return _unlisted(server, uri)
        return None

    def known_as(self, server: str, uri: str) -> str:
        """Return by which URI something is known here that a server calls by `uri`, listed or not."""
        mark = self._marks.get(server)
        if mark is None:
            return uri
        known = self._own.get((server, uri))
        if known is not None:
            return known[0]
        place = self.find(uri)
        return uri if place is not None and place.server == server and place.name == uri else mark + uri


def _unlisted(server: str, uri: str) -> Place:
    return Place(server, uri, Entry(Sort.RESOURCE, server, uri, origin=Origin.MCP))
