"""The process: `python -m bench.upstream HTTP_PORT TLS_PORT H2_PORT [CERTIFICATE KEY]`; ports on loopback."""

from __future__ import annotations

import asyncio
import gc
import ssl
import sys

import uvloop

from bench.upstream.http1 import Counters, Upstream
from bench.upstream.http2 import GrpcUpstream


async def serve(http: int, tls: int, h2: int, certificate: str, key: str) -> None:
    """Listen on the three ports until killed."""
    loop = asyncio.get_running_loop()
    counters = Counters()
    await loop.create_server(lambda: Upstream(counters), "127.0.0.1", http, backlog=4096)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        context.set_alpn_protocols(["http/1.1"])
        await loop.create_server(lambda: Upstream(counters), "127.0.0.1", tls, ssl=context, backlog=4096)
    await loop.create_server(lambda: GrpcUpstream(counters), "127.0.0.1", h2, backlog=4096)
    gc.freeze()
    await loop.create_future()


if __name__ == "__main__":
    http_port, tls_port, h2_port = (int(part) for part in sys.argv[1:4])
    pem, pem_key = sys.argv[4:6] if len(sys.argv) > 5 else ("", "")
    uvloop.run(serve(http_port, tls_port, h2_port, pem, pem_key))
