"""Who wants to hear of which space: the part of `Store.watch` that every engine has."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MISSED: Final = ""
"""In place of a key: some changes may have been missed."""


class Watchers:
    """Callbacks by space, each called on the loop on which it was added. Safe to tell from any thread."""

    __slots__ = ("_by_space",)

    def __init__(self) -> None:
        self._by_space: dict[str, list[tuple[asyncio.AbstractEventLoop, Callable[[str], None]]]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_space)

    @property
    def spaces(self) -> list[str]:
        """Spaces that somebody watches."""
        return list(self._by_space)

    def add(self, space: str, changed: Callable[[str], None]) -> Callable[[], None]:
        """Call `changed` from now on; return what ends that."""
        one = (asyncio.get_running_loop(), changed)
        self._by_space.setdefault(space, []).append(one)

        def end() -> None:
            left = self._by_space.get(space, [])
            if one in left:
                left.remove(one)
            if not left:
                self._by_space.pop(space, None)

        return end

    def tell(self, space: str, keys: Iterable[str]) -> None:
        """Tell all who watch `space`, at the next turn of their loops."""
        for loop, changed in tuple(self._by_space.get(space, ())):
            for key in keys:
                try:
                    loop.call_soon_threadsafe(changed, key)
                except RuntimeError:
                    break  # the loop was closed: nobody listens any more

    def tell_all_missed(self) -> None:
        """Tell everybody that changes may have been missed."""
        for space in self.spaces:
            self.tell(space, (MISSED,))
