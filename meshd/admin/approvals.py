"""Approvals over the admin port: listed and shown to whoever has its token, decided by whoever has an approver's key.

The token lies where an agent of the same user may read it. An approver's key does not: meshd knows only its hash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from meshd.admin.doors import json_body, only_queries, page_limit, reply
from meshd.admin.problem import Problem
from meshd.approvals.deciding import Declined, Why
from meshd.approvals.record import Approval, read_id
from meshd.approvals.state import State
from meshd.engines.port import StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from meshd.admin.view import AdminView
    from meshd.approvals.desk import Desk

KEY_FIELD: Final = "X-Meshd-Approver-Key"
_STATUS: Final[dict[Why, tuple[int, str]]] = {
    Why.UNKNOWN: (404, "Unknown approval"),
    Why.DAMAGED: (410, "Damaged approval"),
    Why.KEY: (403, "Key refused"),
    Why.OWN: (403, "Own agent"),
    Why.NOT_ASKED: (403, "Not asked"),
    Why.TWICE: (409, "Decided already"),
    Why.OVER: (409, "Over"),
    Why.REASON: (422, "Reason needed"),
    Why.BUSY: (409, "Busy"),
    Why.LIMITED: (429, "Too many wrong keys"),
}


class Decide(Struct, forbid_unknown_fields=True):
    """Who decides, where the key alone is not to say it, and why."""

    approver: Annotated[str, Meta(max_length=64)] = ""
    reason: Annotated[str, Meta(max_length=1000)] = ""


class Approvals:
    """The handlers below /v1/approvals."""

    def __init__(self, view: AdminView) -> None:
        self._view = view

    def routes(self) -> list[web.RouteDef]:
        """Return what is answered."""
        return [
            web.get("/v1/approvals", self.list),
            web.get("/v1/approvals/{id}", self.show),
            web.post("/v1/approvals/{id}/approve", self.approve),
            web.post("/v1/approvals/{id}/deny", self.deny),
            web.post("/v1/approvals/{id}/cancel", self.cancel),
        ]

    @property
    def _desk(self) -> Desk:
        desk = self._view.desk
        if desk is None:
            raise Problem(503, "Nobody can be asked", "This sidecar keeps no approvals.")
        return desk

    async def list(self, request: web.Request) -> web.Response:
        """Approvals, the newest first, without their arguments; with `state=pending` those that wait."""
        query = only_queries(request, "state", "limit")
        states = [one.value for one in State]
        if query.get("state", "pending") not in states:
            raise Problem(400, "Bad state", f"state is one of {', '.join(states)}.")
        state = State(query["state"]) if "state" in query else None
        desk = self._desk
        found = await _answered(desk.list(state, page_limit(query)))
        return reply({"approvals": [_dump(one, desk.clock(), is_whole=False) for one in found]})

    async def show(self, request: web.Request) -> web.Response:
        """One approval, in full."""
        only_queries(request)
        desk = self._desk
        return reply(_dump(await _answered(desk.show(_id(request))), desk.clock(), is_whole=True))

    async def approve(self, request: web.Request) -> web.Response:
        """Allow the call, as the approver whose key comes in X-Meshd-Approver-Key."""
        return await self._decide(request, is_allowed=True)

    async def deny(self, request: web.Request) -> web.Response:
        """Deny it, and say why."""
        return await self._decide(request, is_allowed=False)

    async def _decide(self, request: web.Request, *, is_allowed: bool) -> web.Response:
        only_queries(request)
        id = _id(request)
        body = await json_body(request, Decide)
        keys = request.headers.getall(KEY_FIELD, [])
        if len(keys) != 1 or not keys[0]:
            raise _problem(
                401, "Approver's key needed", "Deciding takes a key of your own, which the admin token is not.", Why.KEY
            )
        desk = self._desk
        decision = desk.decide(id, keys[0].strip(), approver=body.approver, is_allowed=is_allowed, reason=body.reason)
        return reply(_dump(await _answered(decision), desk.clock(), is_whole=True))

    async def cancel(self, request: web.Request) -> web.Response:
        """Take a question back: the call is not sent. That takes no key, as it allows nothing."""
        only_queries(request)
        id = _id(request)
        body = await json_body(request, Decide)
        desk = self._desk
        return reply(_dump(await _answered(desk.cancel(id, body.reason)), desk.clock(), is_whole=True))


def _id(request: web.Request) -> str:
    id = read_id(request.match_info["id"])
    if not id:
        raise _problem(
            404, "Unknown approval", "An id is twelve letters and digits, such as k7x2-m9qr-tzab.", Why.UNKNOWN
        )
    return id


def _dump(approval: Approval, now_s: float, *, is_whole: bool) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(approval)
    # Left out of records where they are empty, and never left out here.
    found = {name: getattr(approval, name) for name in approval.__struct_fields__} | found
    found["state"] = approval.state_at(now_s).value
    found["summary"] = approval.summary
    for name in ("version", "told", *(() if is_whole else ("arguments", "fields"))):
        found.pop(name, None)
    return found


def _problem(status: int, title: str, detail: str, why: Why, headers: dict[str, str] | None = None) -> Problem:
    return Problem(status, title, detail, headers, type=f"urn:meshd:approval:{why.value}")


def problem_of(declined: Declined) -> Problem:
    """Return how a decision that is not taken is answered."""
    status, title = _STATUS[declined.why]
    headers = {"Retry-After": "6"} if status == 429 else None
    return _problem(status, title, str(declined), declined.why, headers)


async def _answered(question: Awaitable[Any]) -> Any:
    try:
        return await question
    except Declined as declined:
        raise problem_of(declined) from None
    except StoreError as error:
        raise Problem(503, "The store cannot be reached", str(error), {"Retry-After": "1"}) from None
