"""Calls that are made again through real sidecars: by the official clients, over restarts, kills and other sidecars."""

from __future__ import annotations

import json
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from meshd.claims.rest import PIECES
from meshd.claims.shelf import CLAIMS
from meshd.engines.port import Change
from tests.end_to_end.documents import document
from tests.end_to_end.provider import Provider
from tests.end_to_end.sidecar import Sidecar, fetch, until
from tests.engines.places import SHARED, Place, place_of

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "say something short"}]}
MORE = "limits: {unattributed_tokens: 1000000}\nrules:\n  - {name: once, match: {target: plain}, idempotency: {%s}}\n"
ENGINES = ("sqlite", "redis", "nats")


def policy(provider: Provider, settings: str = "") -> str:
    return document(provider.url, MORE % settings)


@pytest.fixture
def id() -> str:
    return uuid.uuid4().hex


class Background(threading.Thread):
    """Runs a blocking client; `found` is what it returned."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.found: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.found = self._work()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.found = error

    def result(self) -> Any:
        self.join(30)
        assert not self.is_alive()
        return self.found


# ---------------------------------------------------------------------- official clients that time out


def retried(sidecar: Sidecar, provider: Provider, id: str, work: Callable[[], Any]) -> Any:
    """Let a client's first attempt time out; answer once its retry is there; return what it got in the end."""
    one = Background(work)
    until(lambda: provider.of(id), "the first attempt")
    # The first attempt goes on without its caller, and the retry waits for it.
    until(lambda: sidecar.metric("meshd_calls_open") == 2, "the retry")
    provider.go_on(id)
    found = one.result()
    assert len(provider.of(id)) == 1
    # It did say so: otherwise nothing was tested.
    assert int(provider.of(id)[0].headers["x-stainless-retry-count"]) == 0
    assert sidecar.metric("meshd_claims_total", result="joined") >= 1
    return found


def clients(sidecar: Sidecar) -> tuple[openai.OpenAI, anthropic.Anthropic]:
    options: dict[str, Any] = {"api_key": "sk-again", "max_retries": 4, "timeout": 2.0}
    return (
        openai.OpenAI(base_url=f"{sidecar.url}/openai/v1", **options),
        anthropic.Anthropic(base_url=f"{sidecar.url}/anthropic", **options),
    )


def act(**what: Any) -> dict[str, str]:
    return {"x-act": json.dumps(what)}


def test_openai_gets_its_first_attempts_answer(sidecar: Sidecar, provider: Provider, id: str) -> None:
    sidecar.start(policy(provider))
    client, _ = clients(sidecar)
    headers = act(id=id, holds=True)
    found = retried(
        sidecar, provider, id, lambda: client.chat.completions.create(**ASK, max_tokens=9, extra_headers=headers)
    )
    assert found.choices[0].message.content.split() == ["word"] * 5
    # Reserved, billed and charged once.
    assert [used for _, used, _ in sidecar.accounts().values()] == [found.usage.total_tokens]


def test_openai_gets_its_first_attempts_stream(sidecar: Sidecar, provider: Provider, id: str) -> None:
    sidecar.start(policy(provider))
    client, _ = clients(sidecar)

    def work() -> list[str]:
        headers = act(id=id, holds=True, words=40)
        with client.chat.completions.create(**ASK, stream=True, extra_headers=headers) as stream:
            return [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]

    assert "".join(retried(sidecar, provider, id, work)).split() == ["word"] * 40


def test_anthropic_gets_its_first_attempts_answer(sidecar: Sidecar, provider: Provider, id: str) -> None:
    sidecar.start(policy(provider))
    _, client = clients(sidecar)
    headers = act(id=id, holds=True)
    found = retried(sidecar, provider, id, lambda: client.messages.create(**ASK, max_tokens=9, extra_headers=headers))
    assert found.content[0].text.split() == ["word"] * 5


def test_a_client_that_names_a_key(sidecar: Sidecar, provider: Provider, id: str) -> None:
    sidecar.start(policy(provider))
    client, other = clients(sidecar)
    headers = {**act(id=id), "Idempotency-Key": id}
    for _ in range(3):
        reply = client.chat.completions.with_raw_response.create(**ASK, extra_headers=headers)
        assert reply.parse().usage is not None
    assert reply.headers["idempotent-replayed"] == "true"
    assert len(provider.of(id)) == 1
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.chat.completions.create(**ASK, max_tokens=3, extra_headers=headers)
    assert caught.value.code == "meshd_key_reused"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**ASK, extra_headers={"Idempotency-Key": "k" * 10_240})
    # The other dialect's path is another operation's: the key is nothing to it.
    other.messages.create(**ASK, max_tokens=3, extra_headers=headers)
    assert len(provider.of(id)) == 2
    # Given again from the store, or, where that was quicker, before it stood there.
    assert sum(sidecar.metric("meshd_claims_total", result=result) for result in ("replayed", "joined")) == 2


def test_what_a_client_is_told_of_an_unknown_end_is_told_once(sidecar: Sidecar, provider: Provider, id: str) -> None:
    """409 is a status that both SDKs try again by themselves; `x-should-retry: false` keeps them from it."""
    sidecar.start(policy(provider))
    headers = {"idempotency-key": id, **act(id=id, statuses=[500])}
    assert order(sidecar, headers)[0] == 500
    client = openai.OpenAI(base_url=f"{sidecar.url}/plain/v1", api_key="k", max_retries=3)
    until(lambda: order(sidecar, headers)[0] == 409)
    before = sidecar.metric("meshd_claims_total", result="unknown")
    with pytest.raises(openai.ConflictError) as caught:
        client.post("/orders", cast_to=object, body={"buy": 1}, options={"headers": headers})
    assert "may have been carried out" in str(caught.value) or "something else" in str(caught.value)
    assert sidecar.metric("meshd_claims_total", result="unknown") == before + 1
    assert len(provider.of(id)) == 1


# ---------------------------------------------------------------------- kills


@pytest.fixture(params=ENGINES)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    async with place_of(request.param, tmp_path) as one:
        yield one


BODY = b'{"buy":1}'
PATH = "/plain/v1/orders"


def order(sidecar: Sidecar, headers: dict[str, str]) -> tuple[int, str]:
    found: tuple[int, str] = fetch(sidecar.url + PATH, "POST", {"content-type": "application/json", **headers}, BODY)
    return found


def begin(sidecar: Sidecar, headers: dict[str, str], upto: int | None = None) -> socket.socket:
    """Send an order, or its first `upto` bytes, and wait for nothing."""
    lines = {"host": "127.0.0.1", "content-type": "application/json", "content-length": str(len(BODY)), **headers}
    head = f"POST {PATH} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
    one = socket.create_connection(("127.0.0.1", sidecar.port), 10)
    one.sendall((head.encode() + BODY)[:upto])
    return one


def start(sidecar: Sidecar, place: Place, document_: str) -> Sidecar:
    # SQLite as it is by default: in the state directory.
    if place.url.startswith("sqlite"):
        return sidecar.start(document_)
    return sidecar.start(document_, "--store", place.url)


def test_killed_at_each_step_nothing_is_carried_out_twice(
    place: Place, sidecar: Sidecar, provider: Provider, id: str
) -> None:
    document_ = policy(provider)
    start(sidecar, place, document_)

    def again() -> None:
        sidecar.kill()
        start(sidecar, place, document_)

    # Before it is claimed: half of its body has come. Nothing was sent, and it runs.
    headers = {"idempotency-key": f"{id}-1", **act(id=f"{id}-1")}
    half = begin(sidecar, headers, upto=-4)
    until(lambda: sidecar.metric("meshd_calls_open") == 1)
    again()
    assert order(sidecar, headers)[0] == 200
    assert len(provider.of(f"{id}-1")) == 1
    # In flight: it may have been carried out, and nobody can say. It is not run again, however often it is asked for.
    headers = {"idempotency-key": f"{id}-2", **act(id=f"{id}-2", holds=True)}
    pending = begin(sidecar, headers)
    until(lambda: provider.of(f"{id}-2"))
    again()
    for _ in range(2):
        status, said = order(sidecar, headers)
        assert (status, "may have been carried out" in said) == (409, True)
    again()
    assert order(sidecar, headers)[0] == 409
    assert len(provider.of(f"{id}-2")) == 1
    provider.go_on(f"{id}-2")
    # Answered, and the answer written down: it is given again.
    headers = {"idempotency-key": f"{id}-3", **act(id=f"{id}-3")}
    first = order(sidecar, headers)
    until(lambda: order(sidecar, headers) == first and sidecar.metric("meshd_claims_total", result="replayed"))
    again()
    assert order(sidecar, headers) == first
    assert len(provider.of(f"{id}-3")) == 1
    for one in (half, pending):
        one.close()
    assert "Traceback" not in sidecar.log


def test_killed_with_the_last_byte_it_is_replayed_or_unknown(
    place: Place, sidecar: Sidecar, provider: Provider, id: str
) -> None:
    document_ = policy(provider)
    for number in range(3):
        start(sidecar, place, document_)
        headers = {"idempotency-key": f"{id}-{number}", **act(id=f"{id}-{number}")}
        first = order(sidecar, headers)
        sidecar.kill()
        assert first[0] == 200
        start(sidecar, place, document_)
        status, said = order(sidecar, headers)
        assert (status, said) == first or (status == 409 and "may have been carried out" in said)
        assert len(provider.of(f"{id}-{number}")) == 1
        sidecar.kill()


async def test_another_sidecar_replays_waits_and_never_steals(
    tmp_path: Path, sidecars: Callable[[str], Sidecar], provider: Provider, id: str
) -> None:
    async with place_of("redis", tmp_path) as place:
        first, second = sidecars("first"), sidecars("second")
        first.start(policy(provider), "--store", place.url)
        second.start(policy(provider), "--store", place.url)
        # Answered there, replayed here: a long answer too.
        for size in (5, 300_000):
            headers = {"idempotency-key": f"{id}-{size}", **act(id=f"{id}-{size}", reply="x" * size)}
            asked = {**headers, "x-act": json.dumps({"id": f"{id}-{size}", "events": "x", "times": size})}
            answer = order(first, asked)
            until(lambda asked=asked, answer=answer: order(second, asked) == answer)
            assert len(provider.of(f"{id}-{size}")) == 1
        # Under way there: waited for here.
        headers = {"idempotency-key": f"{id}-w", **act(id=f"{id}-w", holds=True)}
        there = Background(lambda: order(first, headers))
        until(lambda: provider.of(f"{id}-w"))
        here = Background(lambda: order(second, headers))
        until(lambda: second.metric("meshd_calls_open") == 1)
        provider.go_on(f"{id}-w")
        assert here.result() == there.result()
        assert here.result()[0] == 200
        assert len(provider.of(f"{id}-w")) == 1
        # Killed there: unknown here, once it is known that it died.
        headers = {"idempotency-key": f"{id}-k", **act(id=f"{id}-k", holds=True)}
        pending = begin(first, headers)
        until(lambda: provider.of(f"{id}-k"))
        here = Background(lambda: order(second, headers))
        until(lambda: second.metric("meshd_calls_open") == 1)
        first.kill()
        first.start(policy(provider), "--store", place.url)
        status, said = here.result()
        assert (status, "has ended since" in said) == (409, True)
        assert order(first, headers)[0] == 409
        assert len(provider.of(f"{id}-k")) == 1
        provider.go_on(f"{id}-k")
        pending.close()


@pytest.mark.parametrize("engine", SHARED)
async def test_a_long_answer_of_another_sidecar_is_given_whole_or_broken(
    engine: str, tmp_path: Path, sidecars: Callable[[str], Sidecar], provider: Provider, id: str
) -> None:
    async with place_of(engine, tmp_path) as place:
        first, second = sidecars("first"), sidecars("second")
        first.start(policy(provider), "--store", place.url)
        second.start(policy(provider), "--store", place.url)
        headers = {"idempotency-key": id, **act(id=id, events="data: x\n\n", times=400_000)}
        answer = order(first, headers)
        until(lambda: order(second, headers) == answer)
        assert len(answer[1]) == 3_600_000
        assert len(provider.of(id)) == 1
        store = await place.open()
        lost = (await store.keys(PIECES))[9]
        piece = (await store.read(PIECES, (lost,)))[lost].value
        claims = await store.read(CLAIMS, await store.keys(CLAIMS))
        await store.write([Change(PIECES, lost, None)])
        head, body = cut_off(second, headers)
        assert b"200 OK" in head
        assert b"content-length: 3600000" in head
        assert answer[1].encode().startswith(body)
        assert len(body) < 3_600_000
        status, said = order(second, headers)
        assert (status, "not carried out again" in said) == (409, True)
        assert await store.read(CLAIMS, list(claims)) == claims
        await store.write([Change(PIECES, lost, piece)])
        assert order(second, headers) == answer
        assert len(provider.of(id)) == 1
        await store.close()


def cut_off(sidecar: Sidecar, headers: dict[str, str]) -> tuple[bytes, bytes]:
    """Return head and body of an answer that ends with its connection."""
    with begin(sidecar, headers) as one:
        data = b""
        while piece := one.recv(1 << 20):
            data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    return head, body


def test_a_drain_writes_down_what_it_cut_off(sidecar: Sidecar, provider: Provider, id: str) -> None:
    document_ = policy(provider)
    sidecar.start(document_, MESHD_DRAIN="1")
    headers = {"idempotency-key": id, **act(id=id, holds=True)}
    pending = begin(sidecar, headers)
    until(lambda: provider.of(id))
    began_s = time.monotonic()
    assert sidecar.stop() == 0
    assert time.monotonic() - began_s < 20
    sidecar.start(document_)
    status, said = order(sidecar, headers)
    assert (status, "without an answer" in said) == (409, True)
    assert len(provider.of(id)) == 1
    provider.go_on(id)
    pending.close()
