"""What a web agent has to do: put one middleware in, on ASGI, WSGI and aiohttp, behind a real sidecar."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.util import FileWrapper

import pytest
import requests
from aiohttp import web
from fastapi import BackgroundTasks, FastAPI
from starlette.responses import StreamingResponse

from meshd_sdk import current
from meshd_sdk.aiohttp_server import carrying_middleware
from meshd_sdk.asgi import Carrying
from meshd_sdk.wsgi import Carrying as WsgiCarrying
from tests.end_to_end.sidecar import PATIENCE_S, fetch, until
from tests.sdk.instrument.world import Server, World

pytestmark = pytest.mark.usefixtures("instrumented")
WORDS = 3


def told() -> str:
    """The workflow that is current."""
    now = current()
    return now.workflow if now is not None else "none"


class Threading(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None: ...


class Behind:
    """An agent's server of one kind."""

    def __init__(
        self,
        world: World,
        url: str,
        close: Callable[[], None],
        background: list[str],
        afterwards: str = "/background",
    ) -> None:
        self.world = world
        self.url = url
        self.close = close
        self.background = background
        self.afterwards = afterwards


def fastapi_agent(world: World) -> Behind:
    app = FastAPI()
    app.add_middleware(Carrying)
    background: list[str] = []

    @app.get("/plain")
    async def plain() -> str:
        await asyncio.sleep(0)
        return told()

    @app.get("/threaded")
    def threaded() -> str:
        requests.post(f"{world.url}/critic/run", json={}, timeout=30)
        return told()

    @app.get("/streamed")
    async def streamed() -> StreamingResponse:
        async def words() -> Any:
            for _ in range(WORDS):
                await asyncio.sleep(0)
                yield told() + " "

        return StreamingResponse(words())

    @app.get("/background")
    async def later(tasks: BackgroundTasks) -> str:
        tasks.add_task(lambda: background.append(told()))
        return "soon"

    server = Server(app)
    return Behind(world, server.url, server.close, background)


def aiohttp_agent(world: World) -> Behind:
    background: list[str] = []

    async def plain(_: web.Request) -> web.Response:
        await asyncio.sleep(0)
        return web.json_response(told())

    async def threaded(_: web.Request) -> web.Response:
        await asyncio.to_thread(requests.post, f"{world.url}/critic/run", json={}, timeout=30)
        return web.json_response(told())

    async def streamed(request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse()
        await reply.prepare(request)
        for _ in range(WORDS):
            await asyncio.sleep(0)
            await reply.write((told() + " ").encode())
        return reply

    async def later(_: web.Request) -> web.Response:
        async def task() -> None:
            await asyncio.sleep(0)
            background.append(told())

        tasks.add(asyncio.create_task(task()))
        return web.json_response("soon")

    tasks: set[Any] = set()
    app = web.Application(middlewares=[carrying_middleware])
    for name, handler in (("plain", plain), ("threaded", threaded), ("streamed", streamed), ("background", later)):
        app.router.add_get(f"/{name}", handler)
    loop, started = asyncio.new_event_loop(), threading.Event()
    ports: list[int] = []

    async def start() -> None:
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        ports.append(runner.addresses[0][1])
        started.set()

    def run() -> None:
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(PATIENCE_S)

    def close() -> None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)

    return Behind(world, f"http://127.0.0.1:{ports[0]}", close, background)


def wsgi_agent(world: World) -> Behind:
    background: list[str] = []

    class Words:
        """A body that is made while it is sent, and has something to say at its end."""

        def __iter__(self) -> Iterator[bytes]:
            for _ in range(WORDS):
                yield (told() + " ").encode()

        def close(self) -> None:
            background.append(told())

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        path = environ["PATH_INFO"]
        start_response("200 OK", [("content-type", "application/json")])
        if path == "/streamed":
            return Words()
        if path == "/threaded":
            requests.post(f"{world.url}/critic/run", json={}, timeout=30)
        return [json.dumps(told()).encode()]

    server = make_server("127.0.0.1", 0, WsgiCarrying(app), Threading, Quiet)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def close() -> None:
        server.shutdown()
        server.server_close()

    return Behind(world, f"http://127.0.0.1:{server.server_address[1]}", close, background, "/streamed")


@pytest.fixture(scope="module", params=[fastapi_agent, aiohttp_agent, wsgi_agent], ids=["fastapi", "aiohttp", "wsgi"])
def agent(request: pytest.FixtureRequest, world: World) -> Iterator[Behind]:
    made = request.param(world)
    yield made
    made.close()


def called(agent: Behind, path: str) -> tuple[str, str]:
    """Call the agent with the context of a new workflow; return its id, and what the agent answered."""
    workflow, now = agent.world.opened()
    status, text = fetch(agent.url + path, headers=now.headers())
    assert status == 200, text
    return workflow, text


def test_its_handlers_know_the_workflow(agent: Behind) -> None:
    workflow, text = called(agent, "/plain")
    assert json.loads(text) == workflow


def test_what_it_calls_from_a_thread_belongs_to_it(agent: Behind) -> None:
    workflow, text = called(agent, "/threaded")
    assert json.loads(text) == workflow
    agent.world.is_critic_called(workflow)


def test_a_streamed_answer_has_the_context_to_its_end(agent: Behind) -> None:
    workflow, text = called(agent, "/streamed")
    assert text.split() == [workflow] * WORDS


def test_what_goes_on_after_the_answer_has_it_too(agent: Behind) -> None:
    agent.background.clear()
    # WSGI knows nothing that comes after an answer but the closing of its body.
    workflow, _ = called(agent, agent.afterwards)
    until(lambda: agent.background, "what comes afterwards")
    assert agent.background == [workflow]


def test_a_request_without_context_has_none_on_a_connection_that_had_one(agent: Behind) -> None:
    _, now = agent.world.opened()
    with requests.Session() as session:
        for _ in range(3):
            assert session.get(f"{agent.url}/plain", headers=now.headers(), timeout=30).json() == now.workflow
            assert session.get(f"{agent.url}/plain", timeout=30).json() == "none"


@pytest.mark.parametrize(
    "headers",
    [
        {"x-meshd-context": "nonsense"},
        {"x-meshd-context": ""},
        {"x-meshd-context": "A" * 4096},
        {"x-meshd-deadline": "soon", "traceparent": "\xff\xfe"},
    ],
)
def test_nonsense_in_the_fields_disturbs_no_handler(agent: Behind, headers: dict[str, str]) -> None:
    reply = requests.get(f"{agent.url}/plain", headers=headers, timeout=30)
    # A token that nobody can read is a context all the same: it is passed on, and the sidecar refuses it.
    has_some = bool(headers.get("x-meshd-context")) or "traceparent" in headers
    assert (reply.status_code, reply.json()) == (200, "" if has_some else "none")


def test_nonsense_is_passed_on_and_refused_by_the_sidecar(agent: Behind) -> None:
    seen = len(agent.world.critic.seen)
    reply = requests.get(f"{agent.url}/threaded", headers={"x-meshd-context": "nonsense"}, timeout=30)
    assert reply.status_code == 200
    assert len(agent.world.critic.seen) == seen, "its call to the critic was refused: it had no valid context"


def test_a_file_goes_out_by_the_server_s_own_means(world: World) -> None:
    app = WsgiCarrying(lambda environ, _: environ["wsgi.file_wrapper"](open(__file__, "rb")))  # noqa: SIM115, PTH123
    body = app({"wsgi.file_wrapper": FileWrapper, "HTTP_X_MESHD_CONTEXT": "t"}, lambda *_: None)
    assert isinstance(body, FileWrapper)
    body.close()


async def test_what_is_neither_http_nor_websocket_passes(world: World) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["type"], current()))

    await Carrying(app)({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    scope = {"type": "websocket", "headers": [(b"x-meshd-context", uuid.uuid4().hex.encode())]}
    await Carrying(app)(scope, None, None)  # type: ignore[arg-type]
    assert [(kind, now is not None) for kind, now in seen] == [("lifespan", False), ("websocket", True)]
