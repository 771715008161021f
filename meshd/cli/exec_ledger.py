"""Asking a daemon's ledger what a workflow has spent."""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING
from urllib.parse import quote

from meshd.prices import MONEY

if TYPE_CHECKING:
    from meshd.cli.exec_daemon import Place

_TIMEOUT_S = 1.0
_BYTES_MAX = 1 << 20
_PAGE = 20
_AFTER_EVERY_NAME = "~"


def spent(place: Place, workflow: str, *, is_money: bool = False) -> int | None:
    """Return the tokens, or the micro-dollars, that a workflow's account was charged; None where nobody can say.

    The admin port of the daemon answers to the token in its state directory.
    """
    account = f"workflow/{workflow}{MONEY if is_money else ''}"
    # The page begins behind every id that is smaller: at the account, if there is one.
    after = account[:-1] + chr(ord(account[-1]) - 1) + _AFTER_EVERY_NAME
    url = f"http://{place.running.admin}/v1/workflows?limit={_PAGE}&after={quote(after, safe='')}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        token = (place.home / "admin.token").read_text(encoding="ascii").strip()
        request = urllib.request.Request(url, headers={"authorization": f"Bearer {token}"})
        with opener.open(request, timeout=_TIMEOUT_S) as reply:
            found = json.loads(reply.read(_BYTES_MAX))
        charged = [int(entry["spent"]) for entry in found["accounts"] if entry["id"] == account]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return charged[0] if charged else None
