"""What things are called behind the gateway, and which server a name is of. Pure.

A tool or prompt of the server `docs` is `docs__search`: models' APIs take names of at most 64 characters out of
letters, digits, "_" and "-". Resources keep their URIs as far as they can: see `meshd.gateway.uris`.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.discovery.entry import Entry, Sort
from meshd.gateway.uris import Place, Uris
from meshd.policy.gateway import GATEWAY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meshd.upstream import Upstream

FIND: Final = "find_tools"
DESCRIBE: Final = "describe_tools"
CALL: Final = "call_tool"
READ: Final = "read_result"
OWN: Final = frozenset({FIND, DESCRIBE, CALL, READ})
"""The gateway's own tools (see `meshd.gateway.showing` and `results`): no server's has such a name, with a prefix or
without one."""
NAME_CHARACTERS_MAX: Final = 64
_DIGEST_CHARACTERS: Final = 8
_NEAR_MAX: Final = 3
COMPARED_MAX: Final = 500
_FOREIGN: Final = re.compile(r"[^A-Za-z0-9_-]")


class Refusal(NamedTuple):
    """A thing that cannot be called, since another server's has its name."""

    server: str
    name: str
    taken_by: str


def spaced(prefix: str, name: str) -> str:
    """Return the name under which a tool or prompt is called here."""
    full = prefix + name
    clean = _FOREIGN.sub("_", full)
    if clean == full and len(full) <= NAME_CHARACTERS_MAX:
        return full
    # What is shortened or spelled otherwise keeps apart what the server keeps apart.
    digest = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_CHARACTERS]
    return f"{clean[: NAME_CHARACTERS_MAX - _DIGEST_CHARACTERS - 1]}_{digest}"


def may_have(servers: Mapping[str, Upstream], name: str) -> list[Upstream]:
    """Return the servers that may have a tool or prompt of this name."""
    prefixed = [one for one in servers.values() if one.prefix and name.startswith(one.prefix)]
    return prefixed or [one for one in servers.values() if not one.prefix]


class Names:
    """All names of one moment, of the servers in the policy's order.

    A name that begins with a server's prefix is that server's, of several with such a prefix that of the longest: no
    other can take the calls that are meant for it, neither by the name of its tool nor by having no prefix.
    """

    __slots__ = ("_prefixes", "prompts", "refused", "tools", "uris")

    def __init__(self, servers: Mapping[str, Upstream], entries: Iterable[Entry]) -> None:
        self.tools: dict[str, Place] = {}
        self.prompts: dict[str, Place] = {}
        self.uris = Uris(servers)
        self.refused: list[Refusal] = []
        self._prefixes = [(one.prefix, one.name) for one in servers.values() if one.prefix]
        by_owner: dict[str, list[Entry]] = {}
        for entry in entries:
            by_owner.setdefault(entry.owner, []).append(entry)
        for server, upstream in servers.items():
            entries = by_owner.get(server, [])
            for entry in entries:
                self._take(upstream, entry)
            self.uris.take(server, (entry for entry in entries if entry.sort is Sort.RESOURCE))

    def _take(self, upstream: Upstream, entry: Entry) -> None:
        place = Place(upstream.name, entry.name, entry)
        if entry.sort is Sort.TOOL or entry.sort is Sort.PROMPT:
            held = self.tools if entry.sort is Sort.TOOL else self.prompts
            name = spaced(upstream.prefix, entry.name)
            taken_by = held[name].server if name in held else self._kept_for(name, entry.sort, upstream)
            if taken_by:
                self.refused.append(Refusal(upstream.name, entry.name, taken_by))
            else:
                held[name] = place

    def _kept_for(self, name: str, sort: Sort, upstream: Upstream) -> str:
        """Return for whom else a name is kept; empty where it is the server's own."""
        if sort is Sort.TOOL and name in OWN:
            return GATEWAY
        longer = [one for one in self._prefixes if len(one[0]) > len(upstream.prefix) and name.startswith(one[0])]
        return max(longer, key=lambda one: len(one[0]))[1] if longer else ""

    @staticmethod
    def near(name: str, known: Iterable[str]) -> list[str]:
        """Return names that may have been meant."""
        # Comparing takes its time, and models make names up.
        names = list(islice(known, COMPARED_MAX))
        short = name.rpartition("__")[2]
        ends = [one for one in names if short and one.endswith(short)][:_NEAR_MAX]
        return ends or get_close_matches(name, names, _NEAR_MAX, 0.5)
