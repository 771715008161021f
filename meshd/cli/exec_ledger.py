"""Asking a daemon's ledger what a workflow has spent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.cli.admin_client import AdminClient, AdminProblem
from meshd.prices import MONEY

if TYPE_CHECKING:
    from meshd.cli.exec_daemon import Place

_TIMEOUT_S = 5.0
"""The first question to an admin port is answered when what answers has been loaded."""


def spent(place: Place, workflow: str, *, is_money: bool = False) -> int | None:
    """Return the tokens, or the micro-dollars, that a workflow's account was charged; None where nobody can say."""
    client = AdminClient(place.running.admin, place.home, timeout_s=_TIMEOUT_S)
    try:
        return int(client.get("/v1/account", id=f"workflow/{workflow}{MONEY if is_money else ''}")["used"])
    except (AdminProblem, KeyError, TypeError, ValueError):
        return None
