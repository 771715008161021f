"""Asking a daemon's ledger what a workflow has spent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.cli.admin_client import AdminClient, AdminProblem

if TYPE_CHECKING:
    from meshd.cli.exec_daemon import Place

_TIMEOUT_S = 1.0


def tokens_spent(place: Place, workflow: str) -> int | None:
    """Return the tokens that a workflow's account was charged; None where the ledger cannot be asked."""
    client = AdminClient(place.running.admin, place.home, timeout_s=_TIMEOUT_S)
    try:
        return int(client.get("/v1/account", id=f"workflow/{workflow}")["used"])
    except (AdminProblem, KeyError, TypeError, ValueError):
        return None
