"""What this sidecar itself has to say of cards: those of all agents that its caller may call, and its own key.

Each card is asked for as the caller would ask for it, so that the rules, and the addresses in it, are the caller's.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.call import Reply
from meshd.dialects.a2a import CARD_PATHS, JWKS_PATH
from meshd.policy.addressing import RUN_SEGMENT
from meshd.proxy.errand import fetch
from meshd.refusal import Reason, Refused
from meshd_sdk.context import HEADER_CONTEXT, HEADER_WORKFLOW

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from meshd.call import Call, Headers
    from meshd.proxy.proxy import Proxy

WELL_KNOWN: Final = ".well-known"
CARDS_PATH: Final = "/agent-cards"
"""Below `/.well-known`, and, where the caller has one, below the address of its run."""
FETCH_S: Final = 5.0
AT_ONCE_MAX: Final = 8
_TYING: Final = frozenset({HEADER_CONTEXT, HEADER_WORKFLOW, b"traceparent"})
"""Fields of the caller's that its calls have; its credentials are for nobody but whom it sends them to."""
_FORBIDDEN: Final = frozenset({Reason.NOT_ALLOWED, Reason.APPROVAL_DENIED, Reason.APPROVAL_PENDING})


def page_of(proxy: Proxy, call: Call, target: str, authority: str) -> Reply | Coroutine[Any, Any, Reply] | None:
    """Return the answer to a call that names no upstream; None where it is no page of ours."""
    path = call.path.partition("?")[0]
    if call.method != "GET" or call.target.name != WELL_KNOWN:
        return None
    if path == JWKS_PATH.removeprefix(f"/{WELL_KNOWN}"):
        return proxy.cards.jwks()
    if path == CARDS_PATH:
        return _cards(proxy, call, target, authority)
    return None


async def _cards(proxy: Proxy, call: Call, target: str, authority: str) -> Reply:
    run = f"/{RUN_SEGMENT}/{call.run_token}" if call.run_token else ""
    fields = [field for field in call.governed if field[0] in _TYING]
    names = [one.name for one in call.policy.upstreams.values() if one.dialect == "a2a" and not one.is_session]
    gate = asyncio.Semaphore(AT_ONCE_MAX)

    async def one(name: str) -> dict[str, Any] | None:
        async with gate:
            return await _card(proxy, f"{run}/{name}", name, fields, authority)

    found = [one for one in await asyncio.gather(*map(one, names)) if one is not None]
    page = {
        "cards": [{"agent": one["agent"], "card": one["card"]} for one in found if "card" in one],
        "unavailable": [one for one in found if "card" not in one],
    }
    return Reply(
        200, [(b"content-type", b"application/json"), (b"cache-control", b"no-store")], msgspec.json.encode(page)
    )


async def _card(proxy: Proxy, root: str, name: str, fields: Headers, authority: str) -> dict[str, Any] | None:
    """Return an agent's card as its caller is shown it, or why it cannot be; None where it may not be called."""
    try:
        for path in CARD_PATHS:
            answered = await fetch(proxy, root + path, list(fields), authority, timeout_s=FETCH_S)
            if answered.status == 200:
                return {"agent": name, "card": msgspec.Raw(answered.body)}
            if answered.status != 404:
                break
    except Refused as refused:
        if refused.reason in _FORBIDDEN:
            return None
        return {"agent": name, "reason": refused.reason.value, "message": refused.message}
    return {"agent": name, "reason": "status", "message": f"it answers {answered.status} where its card should be"}
