"""The admin API's part about events: topics, groups, dead letters and what is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Protocol

from aiohttp import web
from msgspec import Meta, Struct

from meshd.admin.doors import json_body, only_queries, page_limit, reply
from meshd.admin.problem import Problem
from meshd.engines.bus_port import EventMalformed
from meshd.engines.port import StoreError, StoreUnable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from meshd.admin.view import AdminView

REDRIVE_MAX = 1000


class Redrive(Struct, forbid_unknown_fields=True):
    """Which dead letters of a group begin anew: those of these ids, or, without any, all."""

    group: Annotated[str, Meta(min_length=1, max_length=255)]
    ids: Annotated[list[int], Meta(max_length=REDRIVE_MAX)] | None = None


class EventsView(Protocol):
    """The bus, as these ports know it. Every method raises StoreError, EventMalformed."""

    async def topics(self) -> Sequence[dict[str, Any]]: ...

    async def groups(self) -> Sequence[dict[str, Any]]: ...

    async def dead(self, group: str, after: int, limit: int) -> Sequence[dict[str, Any]]: ...

    async def redrive(self, group: str, ids: Sequence[int] | None) -> int: ...

    async def kept(self, topic: str, after: int, limit: int) -> Sequence[dict[str, Any]]: ...

    async def latest(self) -> str:
        """Return the `sequence` of the newest event that is kept."""
        ...


class EventsApi:
    """The handlers below /v1/events."""

    def __init__(self, view: AdminView) -> None:
        self._view = view

    def routes(self) -> list[web.RouteDef]:
        """Return what is answered."""
        return [
            web.get("/v1/events/topics", self.topics),
            web.get("/v1/events/groups", self.groups),
            web.get("/v1/events/dead", self.dead),
            web.post("/v1/events/redrive", self.redrive),
            web.get("/v1/events/kept", self.kept),
            web.get("/v1/events/latest", self.latest),
        ]

    @property
    def _events(self) -> EventsView:
        found = self._view.events
        if found is None:
            raise Problem(503, "No bus", "This sidecar carries no events.")
        return found

    async def topics(self, request: web.Request) -> web.Response:
        """Topics that have events."""
        only_queries(request)
        return reply({"topics": await _asked(self._events.topics())})

    async def groups(self, request: web.Request) -> web.Response:
        """Groups, and how far each has come."""
        only_queries(request)
        return reply({"groups": await _asked(self._events.groups())})

    async def dead(self, request: web.Request) -> web.Response:
        """Dead letters with their reasons: of one `group`, or of all."""
        query = only_queries(request, "group", "after", "limit")
        found = self._events.dead(query.get("group", ""), _place(query), page_limit(query))
        return reply({"dead": await _asked(found)})

    async def redrive(self, request: web.Request) -> web.Response:
        """Hand dead letters to their group again."""
        only_queries(request)
        body = await json_body(request, Redrive)
        return reply({"redriven": await _asked(self._events.redrive(body.group, body.ids))})

    async def kept(self, request: web.Request) -> web.Response:
        """Events that are kept, of topics that `topic` stands for, behind `after`. No group takes part in it."""
        query = only_queries(request, "topic", "after", "limit")
        found = self._events.kept(query.get("topic", ">"), _place(query), page_limit(query))
        return reply({"events": await _asked(found)})

    async def latest(self, request: web.Request) -> web.Response:
        """The newest event's sequence."""
        only_queries(request)
        return reply({"sequence": await _asked(self._events.latest())})


async def _asked(answer: Awaitable[Any]) -> Any:
    try:
        return await answer
    except EventMalformed as error:
        raise Problem(400, "Not as it should be", str(error)) from None
    except StoreUnable as error:
        raise Problem(501, "Not what this bus can do", str(error)) from None
    except StoreError as error:
        raise Problem(503, "The bus cannot be reached", str(error), {"Retry-After": "1"}) from None


def _place(query: dict[str, str]) -> int:
    after = query.get("after", "0")
    if not (after.isascii() and after.isdecimal() and len(after) <= 20):
        raise Problem(400, "Bad place", "after is a number: the id or the sequence of the last one of the page before.")
    return int(after)
