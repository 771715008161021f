"""Sidecars on one store share its accounts; what it may lose is said once, and its password never."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.documents import document
from tests.end_to_end.provider import Provider
from tests.end_to_end.sidecar import Sidecar, fetch, until
from tests.engines.places import SHARED, Place, place_of
from tests.engines.servers import redis_server, running
from tests.ports import free_port

CHAT = "/openai/v1/chat/completions"
ACCOUNT = "workflow/shared"
CANARY = "s3cret-canary"


@pytest.fixture(params=SHARED)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    async with place_of(request.param, tmp_path) as one:
        yield one


def chat(sidecar: Sidecar, workflow: str = "shared") -> tuple[int, str]:
    ask: dict[str, Any] = {"model": "m", "max_tokens": 8, "messages": [{"role": "user", "content": "go"}]}
    body = json.dumps(ask).encode()
    found: tuple[int, str] = fetch(sidecar.url + CHAT, "POST", {"x-meshd-workflow": workflow}, body)
    return found


def test_two_sidecars_spend_from_one_account(
    place: Place, sidecars: Callable[[str], Sidecar], provider: Provider
) -> None:
    policy = document(provider.url, tokens=400)
    first, second = sidecars("first"), sidecars("second")
    first.start(policy, "--store", place.url)
    assert chat(first)[0] == 200
    spent = first.accounts()[ACCOUNT][1]
    assert spent > 0
    assert first.stop() == 0
    second.start(policy, MESHD_STORE=place.url)
    served = 0
    while chat(second)[0] == 200:
        served += 1
        assert served < 1000
    total, used, reserved = second.accounts()[ACCOUNT]
    assert (total, reserved) == (400, 0)
    assert spent * (served + 1) == used <= total
    assert second.stop() == 0
    # What the second spent, the first finds.
    first.start(policy, "--store", place.url)
    assert chat(first)[0] == 402
    for one in (first, second):
        assert "Traceback" not in one.log


async def test_what_a_store_may_lose_is_said_once_and_its_password_never(
    tmp_path: Path, sidecar: Sidecar, provider: Provider
) -> None:
    async with running(redis_server(tmp_path / "server", "--requirepass", CANARY)) as server:
        url = f"redis://:{CANARY}@{server.address}/0?timeout=0.5"
        sidecar.start(document(provider.url), MESHD_STORE=url, MESHD_LOG="debug")
        assert chat(sidecar)[0] == 200
        assert sidecar.log.count("appendonly is off") == 1
        assert f"Budgets are kept in redis://{server.address}/0\n" in sidecar.log
        seen = [sidecar.get(path)[1] for path in ("/metrics", "/readyz")]
        seen += [json.dumps(sidecar.admin(path)) for path in ("/v1/status", "/v1/policy", "/v1/accounts")]
        server.kill()
        until(lambda: chat(sidecar, "new")[0] == 503)
        seen += [chat(sidecar, "newer")[1], sidecar.get("/readyz")[1], json.dumps(sidecar.admin("/v1/status"))]
        assert sidecar.stop() == 0
        assert not [text for text in (*seen, sidecar.log) if CANARY in text]


def test_a_store_that_is_away_at_the_start(sidecar: Sidecar, provider: Provider) -> None:
    port = free_port()
    sidecar.start(document(provider.url), MESHD_STORE=f"redis://:{CANARY}@127.0.0.1:{port}")
    assert "NO BUDGET CAN BE KEPT" in sidecar.log
    assert "Budgets are kept in" not in sidecar.log
    status, text = chat(sidecar)
    assert (status, json.loads(text)["error"]["code"]) == (503, "meshd_unavailable")
    assert f"127.0.0.1:{port} refuses connections" in text
    assert fetch(f"{sidecar.url}/plain/x")[0] == 200
    assert CANARY not in sidecar.log + text


async def test_a_store_that_goes_away_and_comes_back(tmp_path: Path, sidecar: Sidecar, provider: Provider) -> None:
    options = ("--appendonly", "yes", "--appendfsync", "always")
    async with running(redis_server(tmp_path / "server", *options)) as server:
        sidecar.start(document(provider.url, tokens=1_000_000), "--store", f"redis://{server.address}")
        assert "may lose" not in sidecar.log
        assert chat(sidecar)[0] == 200
        server.kill()
        # What it has leased it may spend; the store is not asked.
        assert chat(sidecar)[0] == 200
        await server.start()
        until(lambda: chat(sidecar, "new")[0] == 200)
        assert chat(sidecar)[0] == 200
        spent = sidecar.accounts()[ACCOUNT][1]
        assert sidecar.stop() == 0
        sidecar.start(document(provider.url, tokens=1_000_000), "--store", f"redis://{server.address}")
        assert chat(sidecar)[0] == 200
        assert sidecar.accounts()[ACCOUNT][1] >= spent * 4 // 3
        assert "Traceback" not in sidecar.log


def test_memory_is_for_those_who_want_nothing_kept(sidecar: Sidecar, provider: Provider) -> None:
    for _ in range(2):
        sidecar.start(document(provider.url), "--store", "memory:")
        assert chat(sidecar)[0] == 200
        assert sidecar.stop() == 0
    assert "it keeps nothing beyond this process" in sidecar.log
    assert "Traceback" not in sidecar.log


def test_another_file(sidecar: Sidecar, provider: Provider, tmp_path: Path) -> None:
    sidecar.start(document(provider.url), "--store", f"sqlite://{tmp_path}/books.db")
    assert chat(sidecar)[0] == 200
    assert sidecar.stop() == 0
    assert (tmp_path / "books.db").is_file()
    assert not (sidecar.home / "ledger.db").exists()
