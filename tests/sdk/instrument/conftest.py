"""One world for all clients: each test has a workflow of its own in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from meshd_sdk import instrument, uninstrument
from tests.sdk.instrument.others import Peer, Service, Tool
from tests.sdk.instrument.world import World


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("instrument"))
    tool, peer, service = Tool(), Peer(), Service()
    made.tool, made.peer, made.service = tool, peer, service
    grpc_url = "http://127.0.0.1:{}"
    made.more = (
        f'  tool: {{url: "{tool.url}", kind: tool}}\n'
        f'  peer: {{url: "{peer.url}", kind: agent}}\n'
        f'  echo: {{url: "{grpc_url.format(service.port)}", kind: agent, protocol: h2}}\n'
        f'  aio-echo: {{url: "{grpc_url.format(service.aio_port)}", kind: agent, protocol: h2}}\n'
    )
    yield made.start()
    made.close()
    for one in (tool, peer, service):
        one.close()


@pytest.fixture
def instrumented(world: World) -> Iterator[None]:
    """All clients carry the context to this world's sidecar."""
    instrument(base_url=world.url)
    yield
    uninstrument()
