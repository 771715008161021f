"""Asking a daemon what a run has spent."""

from __future__ import annotations

import re
import urllib.request
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshd.cli.exec_daemon import Place

_SPENT = re.compile(rb"^meshd_budget_spent_tokens_total (\S+)", re.MULTILINE)
_TIMEOUT_S = 1.0
_BYTES_MAX = 4 << 20


def tokens_spent(place: Place) -> int | None:
    """Return the tokens that a private daemon has charged since it started; None where that cannot be said.

    A daemon that serves others as well counts theirs too, so its sum says nothing of one run.
    """
    if not place.is_private or place.is_shared or not place.running.metrics:
        return None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{place.running.metrics}/metrics", timeout=_TIMEOUT_S) as reply:
            found = _SPENT.search(reply.read(_BYTES_MAX))
        return None if found is None else int(float(found.group(1)))
    except (OSError, ValueError):
        return None
