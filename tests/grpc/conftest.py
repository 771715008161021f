"""gRPC servers and channels of grpcio's own, beside the data plane of tests/proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest

from bench.certificates import Certificates, make
from tests.grpc import testing_pb2_grpc as rpc
from tests.grpc.service import OPTIONS, Server
from tests.proxy.conftest import h2_client, mesh, upstream, upstream_h2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = ["h2_client", "mesh", "upstream", "upstream_h2"]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = make(tmp_path_factory.mktemp("certificates"))
    if made is None:
        pytest.skip("openssl is not installed")
    return made


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[Server]]]:
    """Return a function that starts a grpc.aio server; it is stopped with the test."""
    started: list[Server] = []

    async def start(servicer: Any = None, **options: Any) -> Server:
        started.append(await Server(servicer).start(**options))
        return started[-1]

    yield start
    for one in started:
        await one.stop()


@pytest.fixture
async def channel() -> AsyncIterator[Callable[..., Any]]:
    """Return a function that opens a channel to an upstream through a sidecar's port; it is closed with the test."""
    opened: list[Any] = []

    def dial(port: int, authority: str = "up.mesh", *, ca: bytes | None = None, **options: Any) -> Any:
        extra = [(name.replace("__", "."), value) for name, value in options.items()]
        if authority:
            extra.append(("grpc.default_authority", authority))
        # A pool of their own: else channels of one test share the connections of another's.
        extra += [*OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        if ca is None:
            one = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=extra)
        else:
            # The certificate says localhost, and the name that is called is another.
            extra.append(("grpc.ssl_target_name_override", "localhost"))
            one = grpc.aio.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(ca), options=extra)
        opened.append(one)
        return one

    yield dial
    for one in opened:
        await one.close()


@pytest.fixture
def stub(channel: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that makes a stub of the interop service; its `channel` is what it speaks through."""

    def made(*arguments: Any, **options: Any) -> Any:
        one = channel(*arguments, **options)
        found: Any = rpc.TestServiceStub(one)
        found.channel = one
        return found

    return made


def policy(port: int, extra: str = "", *, kind: str = "agent", rules: str = "") -> str:
    """Return a document with one upstream `up`, of which no attempt is made again."""
    return (
        f'agent: a\nupstreams:\n  up: {{url: "http://127.0.0.1:{port}", kind: {kind}{extra}}}\n'
        # The same empty message, thousands of times, is no loop here.
        f"rules:\n{rules}  - {{match: {{kind: {kind}}}, retry: {{attempts: 0}}, turns: {{ladder: note}}}}\n"
    )
