"""httpx, httpx2, requests, urllib3 and aiohttp: to the sidecar with the context, to all others without."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
import urllib3

from meshd_sdk import current, uninstrument
from tests.sdk.instrument.world import CHAT, World

pytestmark = pytest.mark.usefixtures("instrumented")
Post = Callable[..., int]


def by_httpx(url: str, headers: dict[str, str] | None = None, follows: bool = False, body: Any = CHAT) -> int:
    with httpx.Client(trust_env=False, follow_redirects=follows) as client:
        return client.post(url, json=body, headers=headers).status_code


def by_httpx2(url: str, headers: dict[str, str] | None = None, follows: bool = False, body: Any = CHAT) -> int:
    with httpx2.Client(trust_env=False, follow_redirects=follows) as client:
        return client.post(url, json=body, headers=headers).status_code


def by_async_httpx(url: str, headers: dict[str, str] | None = None, follows: bool = False, body: Any = CHAT) -> int:
    async def run() -> int:
        async with httpx.AsyncClient(trust_env=False, follow_redirects=follows) as client:
            return (await client.post(url, json=body, headers=headers)).status_code

    return asyncio.run(run())


def by_async_httpx2(url: str, headers: dict[str, str] | None = None, follows: bool = False, body: Any = CHAT) -> int:
    async def run() -> int:
        async with httpx2.AsyncClient(trust_env=False, follow_redirects=follows) as client:
            return (await client.post(url, json=body, headers=headers)).status_code

    return asyncio.run(run())


def by_requests(url: str, headers: dict[str, str] | None = None, follows: bool = False, body: Any = CHAT) -> int:
    return requests.post(url, json=body, headers=headers, allow_redirects=follows, timeout=30).status_code


def by_urllib3(url: str, headers: dict[str, str] | None = None, follows: bool = False, body: Any = CHAT) -> int:
    with urllib3.PoolManager() as pool:
        return pool.request("POST", url, json=body, headers=headers, redirect=follows).status


def by_aiohttp(url: str, headers: dict[str, str] | None = None, follows: bool = False, body: Any = CHAT) -> int:
    async def run() -> int:
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json=body, headers=headers, allow_redirects=follows) as reply,
        ):
            await reply.read()
            return reply.status

    return asyncio.run(run())


ALL = [by_httpx, by_httpx2, by_async_httpx, by_async_httpx2, by_requests, by_urllib3, by_aiohttp]
each = pytest.mark.parametrize("post", ALL, ids=lambda post: post.__name__[3:])


@each
def test_a_call_of_an_answer_belongs_to_the_workflow_that_asked(world: World, post: Post) -> None:
    def act(_: Any) -> Any:
        return [
            post(f"{world.url}/llm/v1/chat/completions"),
            post(f"{world.url}/critic/run", body={}),
            post(f"{world.stranger.url}/", body={}),
        ]

    workflow, answer = world.tell(act)
    assert answer == [200, 200, 200]
    world.is_charged(workflow, "llm")
    world.is_paid(workflow)
    assert "traceparent" in world.is_critic_called(workflow)
    world.is_stranger_told_nothing()


@each
def test_outside_of_any_call_nothing_is_added(world: World, post: Post) -> None:
    assert current() is None
    assert post(f"{world.stranger.url}/", body={}) == 200
    world.is_stranger_told_nothing()


@each
def test_a_redirect_from_the_sidecar_to_elsewhere_takes_nothing_along(world: World, post: Post) -> None:
    def act(_: Any) -> int:
        return post(f"{world.url}/away/x?to={world.stranger.url}/there", follows=True, body={})

    workflow, answer = world.tell(act)
    assert answer == 200
    world.is_charged(workflow, "away")
    world.is_stranger_told_nothing()


@each
def test_a_redirect_from_elsewhere_to_the_sidecar_is_judged_where_it_leads(world: World, post: Post) -> None:
    workflow, answer = world.tell(
        lambda _: post(f"{world.redirector.url}/x?to={world.url}/critic/run", follows=True, body={})
    )
    assert answer == 200
    world.is_critic_called(workflow)


@each
def test_what_the_caller_has_set_stays_as_it_is(world: World, post: Post) -> None:
    tokens: list[str] = []

    def first(_: Any) -> None:
        now = current()
        assert now is not None
        tokens.append(now.token)

    earlier, _ = world.tell(first)
    trace = "00-" + "c3" * 16 + "-" + "d4" * 8 + "-01"

    def second(_: Any) -> list[int]:
        theirs = {"X-Meshd-Context": tokens[0]}
        return [
            post(f"{world.url}/critic/run", headers=theirs, body={}),
            post(f"{world.url}/critic/run", headers={"Traceparent": trace}, body={}),
        ]

    workflow, answer = world.tell(second)
    assert answer == [200, 200]
    world.is_critic_called(earlier)
    assert world.is_critic_called(workflow)["traceparent"].split("-")[1] == "c3" * 16


@each
def test_a_context_that_the_caller_spoilt_is_refused_and_not_replaced(world: World, post: Post) -> None:
    _, answer = world.tell(lambda _: post(f"{world.url}/critic/run", headers={"x-meshd-context": "nonsense"}, body={}))
    assert answer == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
@each
def test_every_name_of_loopback_with_its_port_is_the_sidecar(world: World, post: Post, host: str) -> None:
    workflow, answer = world.tell(lambda _: post(f"http://{host}:{world.sidecar.port}/critic/run", body={}))
    assert answer == 200
    world.is_critic_called(workflow)


def proxied(post_by: str, proxy: str, url: str) -> int:
    """One request through a proxy that the client itself was given."""
    if post_by == "requests":
        return requests.post(url, json={}, proxies={"http": proxy}, timeout=30).status_code
    if post_by == "urllib3":
        with urllib3.ProxyManager(proxy) as pool:
            return pool.request("POST", url, json={}).status
    if post_by == "aiohttp":

        async def by_aiohttp() -> int:
            async with aiohttp.ClientSession() as session, session.post(url, json={}, proxy=proxy) as reply:
                return reply.status

        return asyncio.run(by_aiohttp())
    library: Any = {"httpx": httpx, "httpx2": httpx2}[post_by]
    with library.Client(proxy=proxy) as client:
        return int(client.post(url, json={}).status_code)


proxy_each = pytest.mark.parametrize("library", ["httpx", "httpx2", "requests", "urllib3", "aiohttp"])


@proxy_each
def test_the_sidecar_as_proxy_is_the_sidecar(world: World, library: str) -> None:
    workflow, answer = world.tell(lambda _: proxied(library, world.url, "http://critic.mesh/run"))
    assert answer == 200
    world.is_critic_called(workflow)


@proxy_each
def test_a_foreign_proxy_reads_nothing_even_of_what_is_for_the_sidecar(world: World, library: str) -> None:
    for url in (f"{world.url}/critic/run", "http://critic.mesh/run"):
        _, answer = world.tell(lambda _, url=url: proxied(library, world.stranger.url, url))
        assert answer == 200
        world.is_stranger_told_nothing()


@pytest.mark.parametrize("library", ["httpx", "httpx2", "requests", "aiohttp"])
def test_the_proxy_of_the_environment_counts_where_the_client_heeds_it(
    world: World, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", world.url)
    monkeypatch.setenv("http_proxy", world.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")

    async def by_aiohttp(url: str, heeds: bool) -> int:
        async with aiohttp.ClientSession(trust_env=heeds) as session, session.post(url, json={}) as reply:
            return reply.status

    def act(url: str, heeds: bool) -> int:
        if library == "aiohttp":
            return asyncio.run(by_aiohttp(url, heeds))
        if library == "requests":
            with requests.Session() as session:
                session.trust_env = heeds
                return session.post(url, json={}, timeout=30).status_code
        module: Any = {"httpx": httpx, "httpx2": httpx2}[library]
        with module.Client(trust_env=heeds) as client:
            return int(client.post(url, json={}).status_code)

    workflow, answer = world.tell(lambda _: act("http://critic.mesh/run", True))
    assert answer == 200
    world.is_critic_called(workflow)
    for heeds in (True, False):
        assert world.tell(lambda _, heeds=heeds: act(f"{world.stranger.url}/", heeds))[1] == 200
        world.is_stranger_told_nothing()


@each
def test_where_nothing_is_instrumented_any_more_nothing_is_added(world: World, post: Post) -> None:
    uninstrument()
    workflow, answer = world.tell(lambda _: post(f"{world.url}/critic/run", body={}))
    assert answer == 200
    assert workflow not in {world.read(seen["x-meshd-context"]).workflow for seen in world.critic.seen}
