"""What the hooks of all libraries are made of."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from meshd_sdk.current import current
from meshd_sdk.sidecar import due

if TYPE_CHECKING:
    from meshd_sdk.sidecar import Sidecar


class SeamMissingError(Exception):
    """This version of a library does not send its requests where we know."""


class Switch:
    """The sidecar to which requests carry the context; None while nothing is instrumented."""

    __slots__ = ("sidecar",)

    def __init__(self) -> None:
        self.sidecar: Sidecar | None = None

    def due(
        self,
        scheme: str,
        host: str | None,
        port: int | None,
        proxy: tuple[str, int] | None,
        has: Callable[[str], bool],
    ) -> dict[str, str]:
        """Return the fields to add to one request: none, unless there is a current context and it goes to the sidecar.

        Shapes as in `Sidecar.receives` and `sidecar.due`.
        """
        now, sidecar = current(), self.sidecar
        if now is None or sidecar is None or not host or not sidecar.receives(scheme, host, port, proxy):
            return {}
        return due(now, has)


switch = Switch()


class Patch(NamedTuple):
    """A function of a library, replaced."""

    owner: Any
    name: str
    original: Any
    replacement: Any

    def undo(self) -> None:
        """Put the original back. Where somebody has wrapped ours meanwhile it stays, and adds nothing."""
        if vars(self.owner).get(self.name) is self.replacement:
            setattr(self.owner, self.name, self.original)


Hook: TypeAlias = Callable[[ModuleType], list[Patch]]


def replaced(owner: Any, name: str, around: Callable[[Any], Any]) -> Patch:
    """Replace a function by what `around` makes of it."""
    original = vars(owner)[name]
    replacement = around(original)
    setattr(owner, name, replacement)
    return Patch(owner, name, original, replacement)


def needed(module: ModuleType, *paths: str) -> list[Any]:
    """Return what each path, such as `Client.send`, leads to. Raises SeamMissingError where one leads nowhere."""
    found = []
    for path in paths:
        one: Any = module
        for name in path.split("."):
            one = getattr(one, name, None)
        if one is None:
            raise SeamMissingError(f"has no {path}: its requests carry no context")
        found.append(one)
    return found
