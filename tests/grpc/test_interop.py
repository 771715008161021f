"""gRPC's interop cases, each directly and through meshd, over h2c and TLS: the same as without it."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.grpc.cases import CASES
from tests.grpc.conftest import policy

if TYPE_CHECKING:
    from bench.certificates import Certificates

MAY_NOT_ARRIVE = frozenset({"cancel_after_begin", "timeout_on_sleeping_server"})
"""The client may be done with these before anything of them has left."""


def server_credentials(certificates: Certificates) -> Any:
    return grpc.ssl_server_credentials([(certificates.key.read_bytes(), certificates.certificate.read_bytes())])


def listener_context(certificates: Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@pytest.mark.parametrize("is_through", [False, True], ids=["direct", "meshd"])
@pytest.mark.parametrize("name", CASES)
async def test_over_h2c(name: str, is_through: bool, mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    if not is_through:
        await CASES[name](stub(server.port))
        return
    one = await mesh(policy(server.port))
    await CASES[name](stub(one.port))
    assert one.calls or name in MAY_NOT_ARRIVE


@pytest.mark.parametrize("is_through", [False, True], ids=["direct", "meshd"])
@pytest.mark.parametrize("name", CASES)
async def test_over_tls(
    name: str, is_through: bool, mesh: Any, serve: Any, stub: Any, certificates: Certificates
) -> None:
    server = await serve(credentials=server_credentials(certificates))
    ca = certificates.ca.read_bytes()
    if not is_through:
        await CASES[name](stub(server.port, ca=ca))
        return
    document = policy(server.port, f", tls: {{ca: {certificates.ca}}}")
    one = await mesh(document.replace("http://127.0.0.1", "https://localhost"), tls=listener_context(certificates))
    await CASES[name](stub(one.port, ca=ca))
    assert one.calls or name in MAY_NOT_ARRIVE
