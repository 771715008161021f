"""Keys of objects, and references to them. Pure.

A key is at most 255 letters, digits and `._-/:`. Its first segment is the scope; but for `mesh` the second one is whose
it is, and a dot there stands for the caller's own:

    workflow/report-42/plan    short-term memory: it ends with the workflow
    agent/researcher/habits    long-term memory of an agent
    tenant/acme/quotes         of all agents of a tenant
    mesh/rates                 of everybody

A reference is `mesh://state/<key>@<version>`; version 0 is the newest one when it is read.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final, NamedTuple

KEY_CHARACTERS_MAX: Final = 255
VERSION_MAX: Final = 10**15
PREFIX: Final = "mesh://state/"
OWN: Final = "."
_CHARACTERS: Final = re.compile(r"[A-Za-z0-9._/:-]+\Z")
_OWNER: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z")
_VERSION: Final = re.compile(r"(?:0|[1-9][0-9]{0,14})\Z")


class Scope(str, Enum):
    """Whom an object belongs to."""

    WORKFLOW = "workflow"
    AGENT = "agent"
    TENANT = "tenant"
    MESH = "mesh"


class KeyMalformed(ValueError):
    """What should be a key or a reference is none; the message says what one is."""


class Who(NamedTuple):
    """Who asks: as the context token says, and the sidecar's own policy for the tenant. Empty for none."""

    agent: str
    workflow: str
    tenant: str

    def own(self, scope: Scope) -> str:
        """Return the name under which the caller owns things of a scope; empty for none."""
        if scope is Scope.WORKFLOW:
            return self.workflow
        if scope is Scope.AGENT:
            return self.agent
        return self.tenant if scope is Scope.TENANT else ""


class Key(NamedTuple):
    """A whole key."""

    scope: Scope
    owner: str
    """Empty for `mesh`."""
    name: str

    def __str__(self) -> str:
        return f"{self.scope.value}/{self.owner}/{self.name}" if self.owner else f"{self.scope.value}/{self.name}"


class Reference(NamedTuple):
    """One version of an object, as it is named in contexts and events."""

    key: Key
    version: int

    def __str__(self) -> str:
        return f"{PREFIX}{self.key}@{self.version}"


def key_of(text: str, who: Who | None = None) -> Key:
    """Return a key. Where `who` is given, a dot in the place of the owner is theirs. Raises KeyMalformed."""
    if not 0 < len(text) <= KEY_CHARACTERS_MAX:
        raise KeyMalformed(f"1 to {KEY_CHARACTERS_MAX} characters, and these are {len(text)}")
    if _CHARACTERS.match(text) is None:
        raise KeyMalformed("letters, digits and any of ._-/: alone")
    word, *rest = text.split("/")
    try:
        scope = Scope(word)
    except ValueError:
        raise KeyMalformed("a key that begins with workflow/, agent/, tenant/ or mesh/") from None
    owner = ""
    if scope is not Scope.MESH:
        owner = rest.pop(0) if rest else ""
        if owner == OWN and who is not None:
            owner = who.own(scope)
            if not owner:
                raise KeyMalformed(f"a key of another scope: the caller has no {scope.value} of its own")
        if _OWNER.match(owner) is None or owner in (OWN, ".."):
            raise KeyMalformed(f"a key that says whose it is: {scope.value}/<name>/...")
    if not rest or any(segment in ("", ".", "..") for segment in rest):
        raise KeyMalformed("a key whose segments are names: none is empty, a dot or two dots")
    found = Key(scope, owner, "/".join(rest))
    if len(str(found)) > KEY_CHARACTERS_MAX:
        raise KeyMalformed(f"at most {KEY_CHARACTERS_MAX} characters with its owner")
    return found


def reference_of(text: str, who: Who | None = None) -> Reference:
    """Return a reference. Raises KeyMalformed."""
    if not text.startswith(PREFIX):
        raise KeyMalformed(f"a reference {PREFIX}<key>@<version>")
    key, separator, version = text.removeprefix(PREFIX).rpartition("@")
    if not separator or _VERSION.match(version) is None:
        raise KeyMalformed("a reference that ends with @ and a version: a whole number, 0 for the newest")
    return Reference(key_of(key, who), int(version))
