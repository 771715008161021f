"""A shop, as a tool that agents call: it takes orders and deletes customers, and keeps its own books of both.

    python -m demo.shop

It shares no code with meshd, and carries out whatever reaches it, as often as it does. Its books are read on a second
port (`GET /books`).
"""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import sys

from aiohttp import web

_ORDER_S = 0.05
"""An order takes a moment, so that a second copy of it comes while the first is under way."""


class Shop:
    """What was ordered and deleted, in the order in which it was carried out."""

    def __init__(self) -> None:
        self.orders: list[str] = []
        self.deleted: list[str] = []

    async def order(self, request: web.Request) -> web.Response:
        """Carry out `POST /orders` with a body `{"item": ...}`; no two confirmations are the same."""
        try:
            item = str((await request.json())["item"])
        except (ValueError, KeyError, TypeError):
            return web.json_response({"error": "expected a JSON object with an item"}, status=400)
        self.orders.append(item)
        await asyncio.sleep(_ORDER_S)
        return web.json_response({"item": item, "confirmation": secrets.token_hex(8)}, status=201)

    async def delete(self, request: web.Request) -> web.Response:
        """Carry out `DELETE /customers/NAME`."""
        self.deleted.append(request.match_info["name"])
        return web.json_response({"deleted": request.match_info["name"]})

    async def show_books(self, request: web.Request) -> web.Response:
        """Answer `GET /books`."""
        return web.json_response({"orders": self.orders, "deleted": self.deleted})


async def start(shop: Shop) -> tuple[list[web.AppRunner], list[int]]:
    """Listen on two free ports of loopback: the shop's own, and that of its books."""
    public, control = web.Application(), web.Application()
    public.router.add_post("/orders", shop.order)
    public.router.add_delete("/customers/{name}", shop.delete)
    control.router.add_get("/books", shop.show_books)
    runners = [web.AppRunner(app, access_log=None, shutdown_timeout=0.5) for app in (public, control)]
    for runner in runners:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runners, [int(runner.addresses[0][1]) for runner in runners]


async def _main() -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    runners, (port, control_port) = await start(Shop())
    print(json.dumps({"event": "ready", "port": port, "control_port": control_port}), flush=True)
    await ended.wait()
    for runner in runners:
        await runner.cleanup()


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
