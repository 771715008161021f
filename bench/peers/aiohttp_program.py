"""The program of the aiohttp peer: `aiohttp_program.py HTTP_PORT UPSTREAM_PORT [TLS_PORT UPSTREAM_TLS_PORT CA]`.

Run by its path, so that nothing of the benchmark is in its memory.
"""

from __future__ import annotations

import asyncio
import ssl
import sys

import uvloop
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

_HOP_BY_HOP = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
    ]
)


async def _serve(http: int, upstream: int, tls: int, upstream_tls: int, ca: str) -> None:
    trust = ssl.create_default_context(cafile=ca or None)
    session = ClientSession(
        connector=TCPConnector(limit=0, ssl=trust), timeout=ClientTimeout(total=None), auto_decompress=False
    )

    async def forward(request: web.Request) -> web.StreamResponse:
        origin = request.app["origin"]
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        url = origin + request.raw_path
        body = request.content if request.can_read_body else None
        async with session.request(request.method, url, headers=headers, data=body, allow_redirects=False) as answer:
            reply = web.StreamResponse(status=answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    reply.headers.add(name, value)
            await reply.prepare(request)
            async for piece in answer.content.iter_any():
                await reply.write(piece)
            await reply.write_eof()
            return reply

    routes = [(http, f"http://127.0.0.1:{upstream}")]
    if tls:
        routes.append((tls, f"https://127.0.0.1:{upstream_tls}"))
    for port, origin in routes:
        app = web.Application(client_max_size=64 << 20)
        app["origin"] = origin
        app.router.add_route("*", "/{path:.*}", forward)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    http_port, upstream_port, tls_port, upstream_tls_port = (int(part) for part in [*sys.argv[1:5], "0", "0"][:4])
    uvloop.run(_serve(http_port, upstream_port, tls_port, upstream_tls_port, sys.argv[5] if len(sys.argv) > 5 else ""))
