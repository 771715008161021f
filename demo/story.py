"""What every scene of the demo is given, and what the summary will tell."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo.world import Event, billed
from meshd_sdk.context import Context, Keyring, TokenInvalidError, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from demo.checks import Checks
    from demo.screen import Screen
    from demo.world import World


class Story:
    """What every scene needs, and what the summary will tell."""

    def __init__(self, world: World, screen: Screen, checks: Checks) -> None:
        self.world = world
        self.screen = screen
        self.checks = checks
        self.rows: list[tuple[str, int, int, int]] = []
        """(workflow, calls at the provider, tokens billed there, tokens in meshd's ledger)."""
        self._keyring: Keyring | None = None

    def context_of(self, event: Event) -> Context | None:
        """Open the token that an agent received. The demo may: it can read the mesh key. The agent cannot."""
        if self._keyring is None:
            from meshd.mesh_key import MeshKeys

            self._keyring = MeshKeys(Path(self.world.home) / "state" / "mesh.key").ring
        token = event["seen"].get("x-meshd-context", "")
        try:
            return verify(token.encode(), self._keyring, now_s=time.time()).context
        except TokenInvalidError:
            return None

    async def compare_books(self, workflow: str, *agents: str) -> tuple[int, int]:
        """Note and return what the provider billed for a workflow and what meshd's ledger charged, in tokens."""
        books = await self.world.books()
        keys = [self.world.key(agent) for agent in agents]
        tokens, ledger = billed(books, *keys), await self.world.ledger(workflow)
        calls = sum(books["accounts"].get(key, {}).get("calls", 0) for key in keys)
        self.rows.append((workflow, calls, tokens, ledger))
        return tokens, ledger

    async def breaker_states(self, upstream: str) -> set[str]:
        """Return the states of an upstream's breakers, as the admin API says them."""
        found = await self.world.admin("/v1/breakers")
        return {str(breaker["state"]) for breaker in found["breakers"] if breaker["upstream"] == upstream}

    @contextmanager
    def watching(self, watch: Callable[[Event], None]) -> Iterator[None]:
        """Hand every event to `watch` meanwhile."""
        self.world.watchers.append(watch)
        try:
            yield
        finally:
            self.world.watchers.remove(watch)

    def show_refusal(self, refused: dict[str, Any]) -> tuple[Any, Any]:
        """Show what an agent was refused with, in its words; return status and reason."""
        self.screen.step(f"then {refused.get('status')} {refused.get('reason')}:")
        self.screen.quote(detail(str(refused.get("body", ""))))
        return refused.get("status"), refused.get("reason")


def detail(body: str) -> str:
    """Return the message of a refusal's problem details (RFC 9457)."""
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return body
