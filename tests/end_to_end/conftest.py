"""Real sidecars, and a provider that counts for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.provider import Provider
from tests.end_to_end.sidecar import Sidecar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def provider() -> Iterator[Provider]:
    """One provider serves all tests; each uses API keys and ids of its own."""
    made = Provider()
    yield made
    made.close()


@pytest.fixture
def sidecars(tmp_path: Path) -> Iterator[Callable[[str], Sidecar]]:
    """Make sidecars, each with a state directory of that name; all are gone after the test."""
    made: list[Sidecar] = []

    def make(name: str = "home") -> Sidecar:
        made.append(Sidecar(tmp_path / name))
        return made[-1]

    yield make
    for one in made:
        one.kill()


@pytest.fixture
def sidecar(sidecars: Callable[[str], Sidecar]) -> Sidecar:
    """The one sidecar of a test that needs no more."""
    return sidecars("home")
