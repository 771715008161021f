"""Shared state in plain values. Stdlib only."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshd_sdk.bodies import decode

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX: Final = "mesh://state/"
ORDERS: Final = {
    "before": "its writer knew all that this workflow knows",
    "after": "this workflow knows what its writer knew, and more",
    "concurrent": "neither this workflow nor its writer knew of the other",
    "equal": "this workflow knows what its writer knew",
}
"""How what the caller's workflow knew relates to what a version's writer knew, in words."""
SCOPES: Final = ("workflow", "agent", "tenant", "mesh")


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """One version of a shared object."""

    key: str
    """The whole key, such as `workflow/report-42/plan`."""
    version: int
    """Counts up from 1; of a tentative version with a count of its own."""
    payload: bytes = b""
    content_type: str = ""
    writer: str = ""
    """The agent that wrote it."""
    workflow: str = ""
    """The workflow in which it did."""
    written_s: float = 0.0
    """Unix seconds."""
    clock: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """The writer's vector clock."""
    size: int = 0
    """Bytes of the value, also where that is left out."""
    is_deleted: bool = False
    """It is the object's deletion."""
    is_shadow: bool = False
    """It is a tentative one."""
    base_version: int = 0
    """Of a tentative one: the object's version that it was made from."""

    @property
    def value(self) -> Any:
        """The value: decoded JSON, or a `Reply` with bytes of another type. Raises ArgumentsInvalid."""
        return decode(self.payload, self.content_type)

    @property
    def reference(self) -> str:
        """`mesh://state/<key>@<version>`, to be handed on in place of the value."""
        return f"{PREFIX}{self.key}@{self.version}"


class Lease(NamedTuple):
    """Who may commit the next version, and until when (unix seconds)."""

    agent: str
    workflow: str
    until_s: float


class Wish(NamedTuple):
    """A change to be made. `kind` is commit, delete, shadow or promote."""

    kind: str
    key: str
    commit_id: str
    base_version: int = 0
    payload: bytes = b""
    content_type: str = ""
    lease_id: str = ""
    shadow_version: int = 0


class Written(NamedTuple):
    """What became of a change."""

    state: State
    """What was written; on a conflict what is there, version 0 where nothing is."""
    conflict: str = ""
    """`version`, `lease_held` or `lease_lost`; empty where it was written."""
    order: str = ""
    """On a conflict: `before`, `after`, `concurrent`, `equal`, or empty where nothing is known."""
    lease: Lease | None = None


def key_of(key: str, scope: str) -> str:
    """Return a key as the API has it: one that begins with a scope as it is, any other one within `scope`, of the
    caller's own. Raises ValueError."""
    if not isinstance(key, str):
        raise ValueError(f"a key is a text, not {key!r}")
    if key.startswith(PREFIX) or key.split("/", 1)[0] in SCOPES:
        if scope:
            raise ValueError(f"{key!r} says itself to which scope it belongs: leave out scope={scope!r}")
        return key
    scope = scope or "workflow"
    if scope not in SCOPES:
        raise ValueError(f"scope is one of {', '.join(SCOPES)}, not {scope!r}")
    return f"mesh/{key}" if scope == "mesh" else f"{scope}/./{key}"


def number_of(version: State | int | None) -> int:
    """Return a version's number; 0 for None. Raises ValueError."""
    if isinstance(version, State):
        return version.version
    if version is None:
        return 0
    if isinstance(version, bool) or not isinstance(version, int) or version < 0:
        raise ValueError(f"a version is a State or a whole number from 0, not {version!r}")
    return version
