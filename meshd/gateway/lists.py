"""The lists of all servers, brought up to date together: one that is slow, lies or is gone holds up nobody for long."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from meshd.call import Target
from meshd.dialects.json_pairs import member, read_object
from meshd.dialects.mcp import METHOD_FIELD
from meshd.discovery.entry import Origin
from meshd.discovery.screening import shown
from meshd.gateway import calling, hearing
from meshd.gateway.listing import ENTRIES_MAX, LIST_BYTES_MAX, PAGES_MAX, part_of, read_page
from meshd.gateway.messages import STATELESS, encode, request
from meshd.gateway.opening import stateless_meta
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from meshd.discovery.entry import Entry
    from meshd.gateway.client import Client
    from meshd.gateway.gateway import Gateway
    from meshd.gateway.listing import Part
    from meshd.policy.compiled import Policy
    from meshd.upstream import Upstream

log = logging.getLogger("meshd.gateway")

LIST_S: Final = 10.0
"""Longest that one server may take for all pages of a list."""
LEFT_ALONE_S: Final = 15.0
"""For how long a server is not asked again that did not answer: what it had last is listed meanwhile."""
_METHOD_UNKNOWN: Final = -32601


class Lists:
    """What each server has said that it has, by the method that lists it."""

    __slots__ = ("_failed", "_gateway", "_held")

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._held: dict[str, dict[str, tuple[Entry, ...]]] = {}
        self._failed: dict[str, float] = {}

    def drop(self, server: str) -> None:
        """Forget a server that the policy has no more."""
        self._held.pop(server, None)
        self._failed.pop(server, None)

    def has(self, server: str, method: str, name: str) -> bool:
        """Say whether a server has listed something, whatever became of that."""
        return any(entry.name == name for entry in self._held.get(server, {}).get(method, ()))

    def is_silent(self, server: str) -> bool:
        """Say whether a server has never listed anything here, and did not answer when it was asked lately."""
        return server in self._failed and not self._held.get(server)

    def changed(self, server: str) -> None:
        """Ask a server again, though it did not answer."""
        self._failed.pop(server, None)

    async def refresh(
        self, client: Client, policy: Policy, agent: str, part: Part, servers: list[Upstream], *, is_needed: bool
    ) -> None:
        """Ask those of the servers that the caller may list. Raises Refused where none answers and it `is_needed`."""
        now_s = self._gateway.proxy.clock()
        asked: list[Upstream] = []
        waiting = False
        for upstream in servers:
            plan = policy.plan(Target(upstream.kind, upstream.name), agent, part.method)
            if plan.allow is not None and plan.allow.denied is not None and not plan.allow.is_shadow:
                continue
            if self._failed.get(upstream.name, now_s) > now_s:
                waiting = True
                continue
            asked.append(upstream)
        results = await asyncio.gather(
            *[self._server(client, upstream, part) for upstream in asked], return_exceptions=True
        )
        failures = [one for one in results if isinstance(one, BaseException)]
        for failure in failures:
            if not isinstance(failure, Refused | ValueError):
                raise failure
        if is_needed and asked and len(failures) == len(asked) and not waiting and not self._held:
            first = failures[0]
            raise first if isinstance(first, Refused) else Refused(Reason.UPSTREAM_UNREACHABLE, str(first))

    async def _server(self, client: Client, upstream: Upstream, part: Part) -> None:
        try:
            async with asyncio.timeout(LIST_S):
                entries = await self._pages(client, upstream, part)
        except TimeoutError:
            self._fail(upstream, part, f"it did not answer within {LIST_S:g} s")
            raise Refused(Reason.UPSTREAM_TIMEOUT, f"{upstream.name} did not list within {LIST_S:g} s") from None
        except (Refused, ValueError) as error:
            self._fail(upstream, part, str(error))
            raise
        self._failed.pop(upstream.name, None)
        held = self._held.setdefault(upstream.name, {})
        held[part.method] = tuple(entries)
        await self._take(upstream.name, [entry for one in held.values() for entry in one])

    async def _take(self, server: str, entries: list[Entry]) -> None:
        """Put what a server offers into the catalogue, past whoever looks at it first. Lists that nobody has asked for
        here are left as somebody else has found them."""
        proxy, held = self._gateway.proxy, self._held[server]
        known = proxy.catalogue.of(server)
        entries += [one for one in known if one.origin is Origin.MCP and part_of(one) not in held]
        if proxy.admit_listed is None:
            proxy.catalogue.replace(server, Origin.MCP, entries)
            return
        try:
            await proxy.admit_listed(server, Origin.MCP, entries)
        except Exception as error:  # noqa: BLE001 - nobody knows what it was before: then that stays offered
            log.warning("what %s offers now cannot be taken: %s", server, error)

    def _fail(self, upstream: Upstream, part: Part, why: str) -> None:
        self._failed[upstream.name] = self._gateway.proxy.clock() + LEFT_ALONE_S
        log.warning("%s of %s failed: %s", part.method, upstream.name, shown(why, 300))

    async def _pages(self, client: Client, upstream: Upstream, part: Part) -> list[Entry]:
        entries: dict[str, Entry] = {}
        cursor, size, seen = "", 0, set()
        for _ in range(PAGES_MAX):
            result = await self._page(client, upstream, part, cursor)
            if result is None:
                return []
            size += len(bytes(result))
            if size > LIST_BYTES_MAX:
                raise ValueError(f"its list is over {LIST_BYTES_MAX} bytes")
            page = read_page(part, upstream.name, result)
            if page.dropped:
                log.warning("%s of %s: %d of a page cannot be read", part.method, upstream.name, page.dropped)
            for entry in page.entries:
                if entries.setdefault(entry.name, entry) is not entry:
                    log.warning("%s lists %s twice: the first stands", upstream.name, entry.name[:128])
            if not page.cursor or len(entries) >= ENTRIES_MAX:
                return list(entries.values())
            if page.cursor in seen:
                raise ValueError("its pages go in circles")
            seen.add(page.cursor)
            cursor = page.cursor
        raise ValueError(f"its list has more than {PAGES_MAX} pages")

    async def _page(self, client: Client, upstream: Upstream, part: Part, cursor: str) -> bytes | None:
        """Return a page's result; None where the server has no such list. Raises Refused or ValueError."""
        gateway = self._gateway
        for is_last in (False, True):
            await gateway.open(client, upstream)
            link = client.links.get(upstream.name)
            if link is None:
                continue
            params: dict[str, object] = {"cursor": cursor} if cursor else {}
            fields = hearing.fields_of(link)
            if link.version >= STATELESS:
                params["_meta"] = stateless_meta()
                fields.append((METHOD_FIELD, part.method.encode()))
            body = request(client.next_id(), part.method, encode(params))
            heard = await calling.ask(gateway.proxy, upstream, fields, body, agent=client.agent, timeout_s=LIST_S)
            if heard.status == 404 and link.id and not is_last:
                gateway.forget(client, link)
                continue
            said = heard.said
            if said is not None and "result" in said.pairs:
                return bytes(said.pairs["result"])
            raw = None if said is None else member(said.pairs, "error")
            if raw is None:
                raise ValueError(f"its answer is no JSON-RPC message, and has the status {heard.status}")
            if bytes(member(read_object(raw, "error"), "code") or b"") == str(_METHOD_UNKNOWN).encode():
                return None
            raise ValueError(f"it answers with an error: {bytes(raw)[:200].decode('utf-8', 'replace')}")
        raise ValueError("its session does not last")
