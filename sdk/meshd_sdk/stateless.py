"""Shared state without a sidecar: there is none. Stdlib only."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from meshd_sdk.errors import NoSidecar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from meshd_sdk.link import Given
    from meshd_sdk.state_values import Lease, State, Wish, Written


class Stateless:
    """Every method raises NoSidecar: what one process keeps for itself is not shared, and would be taken for it."""

    async def remember(self, token: str, references: list[str]) -> Given:
        """Raise NoSidecar."""
        _none()

    async def state_get(self, token: str, key: str, version: int, reads_shadow: bool) -> State:
        """Raise NoSidecar."""
        _none()

    async def state_write(self, token: str, wish: Wish) -> Written:
        """Raise NoSidecar."""
        _none()

    async def state_check_out(self, token: str, key: str, id: str, lease_s: float) -> tuple[State, Lease | None]:
        """Raise NoSidecar."""
        _none()

    async def state_release(self, token: str, key: str, id: str) -> bool:
        """Raise NoSidecar."""
        _none()

    async def state_history(self, token: str, key: str) -> list[State]:
        """Raise NoSidecar."""
        _none()

    async def state_drop(self, token: str, key: str) -> bool:
        """Raise NoSidecar."""
        _none()

    def state_watch(self, token: str, key: str, known: int) -> AsyncIterator[State]:
        """Raise NoSidecar."""
        _none()


def _none() -> NoReturn:
    raise NoSidecar("shared state is kept by a sidecar, and there is none")
