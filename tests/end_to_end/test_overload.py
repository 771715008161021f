"""What the official SDKs see of an upstream that is full, of one that is out, and of a queue before one."""

from __future__ import annotations

import json
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import anthropic
import openai
import pytest

from tests.end_to_end.documents import document
from tests.end_to_end.provider import Provider
from tests.end_to_end.sidecar import Sidecar, until

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "sk-overload"
RULES = """
limits: {unattributed_tokens: 1000000}
rules:
  - name: one-at-a-time
    match: {kind: llm, model: "single-*"}
    concurrency: {max: 1, queue: 0}
  - name: one-waits
    match: {kind: llm, model: "queue-*"}
    concurrency: {max: 1, queue: 1}
"""


@pytest.fixture(scope="module")
def through(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    one = Sidecar(tmp_path_factory.mktemp("overload") / "home")
    yield one.start(document(provider.url, RULES, tokens=None))
    one.kill()


class Sdk:
    """One of the two, and what it calls what the other calls differently."""

    def __init__(self, library: Any, base: str) -> None:
        self.library = library
        self.name = library.__name__
        kind = openai.OpenAI if library is openai else anthropic.Anthropic
        url = f"{base}/openai/v1" if library is openai else f"{base}/anthropic"
        self.client: Any = kind(base_url=url, api_key=KEY)

    def ask(self, model: str, *, retries: int = 2, **act: Any) -> Any:
        """Ask for a message; `act` is what the provider is to do."""
        client = self.client.with_options(max_retries=retries)
        create = client.chat.completions.create if self.library is openai else client.messages.create
        return create(
            model=model,
            max_tokens=8,
            messages=[{"role": "user", "content": "say something short"}],
            extra_headers={"x-act": json.dumps(act)},
        )

    def fails(self, kind: str, model: str, **act: Any) -> Any:
        with pytest.raises(getattr(self.library, kind)) as caught:
            self.ask(model, **act)
        return caught.value

    def code(self, error: Any) -> str:
        """The code of one of meshd's own refusals."""
        if self.library is openai:
            return str(error.body["code"])
        return str(error.body["error"]["details"]["error_code"])


@pytest.fixture(params=[openai, anthropic], ids=["openai", "anthropic"])
def sdk(request: pytest.FixtureRequest, through: Sidecar) -> Iterator[Sdk]:
    one = Sdk(request.param, through.url)
    with one.client:
        yield one


def test_a_long_retry_after_is_passed_on_once_and_then_told_by_meshd(sdk: Sdk, provider: Provider) -> None:
    model, id = f"long-{sdk.name}", uuid.uuid4().hex
    pause = {"retry-after": "40", "retry-after-ms": "40000"}
    error = sdk.fails("RateLimitError", model, retries=0, statuses=[429], id=id, headers=pause)
    assert (error.status_code, error.response.headers["retry-after"]) == (429, "40")
    assert "words of theirs" in str(error.body)
    # The SDK would try twice more, and would sleep for as long as it is told.
    again = sdk.fails("RateLimitError", model, retries=2, id=id)
    headers = again.response.headers
    assert (headers["x-should-retry"], headers["x-meshd-reason"]) == ("false", "overloaded")
    assert "retry-after" not in headers
    assert "to be left alone" in str(again)
    assert len(provider.of(id)) == 1


@pytest.fixture
def alone(sdk: Sdk, provider: Provider, sidecar: Sidecar) -> Iterator[Sdk]:
    """An SDK that calls through a sidecar of its own, whose retries nobody else has spent."""
    one = Sdk(sdk.library, sidecar.start(document(provider.url, RULES, tokens=None)).url)
    with one.client:
        yield one


def test_a_short_retry_after_is_waited_out_by_meshd(alone: Sdk, provider: Provider) -> None:
    sdk = alone
    model, id = f"short-{sdk.name}", uuid.uuid4().hex
    pause = {"retry-after": "1", "retry-after-ms": "300"}
    assert sdk.ask(model, retries=0, statuses=[429, 200], id=id, headers=pause).model == model
    assert len(provider.of(id)) == 2


WORDLESS = {"retry-after-ms": None}


def test_one_that_does_not_say_for_how_long_it_is_full_is_asked_again(alone: Sdk, provider: Provider) -> None:
    sdk = alone
    model, id = f"wordless-{sdk.name}", uuid.uuid4().hex
    assert sdk.ask(model, retries=0, statuses=[429, 429, 200], id=id, headers=WORDLESS).model == model
    assert len(provider.of(id)) == 3


def test_what_stays_full_is_told_in_its_own_words_within_the_retry_budget(
    alone: Sdk, sidecar: Sidecar, provider: Provider
) -> None:
    sdk = alone
    model, ids = f"stays-{sdk.name}", [uuid.uuid4().hex for _ in range(20)]
    begun_s = time.monotonic()
    for id in ids:
        error = sdk.fails("RateLimitError", model, retries=0, statuses=[429], id=id, headers=WORDLESS)
        assert "words of theirs" in str(error.body)
    attempts = [len(provider.of(id)) for id in ids]
    assert (attempts[0], min(attempts), max(attempts)) == (3, 1, 3)
    # A fifth of the calls, and what a quiet upstream always has, which it gets back in ten seconds each.
    assert sum(attempts) - len(ids) <= 0.2 * len(ids) + 2 + 0.1 * (time.monotonic() - begun_s)
    breaker = of(sidecar, model)
    assert (breaker["state"], breaker["error_share"]) == ("closed", 0.0)
    assert breaker["limit"] < 1024


def test_one_that_says_that_it_ends_the_same_is_asked_once(sdk: Sdk, provider: Provider) -> None:
    model, id = f"final-{sdk.name}", uuid.uuid4().hex
    final = {"x-should-retry": "false", **WORDLESS}
    # The SDK would try twice more, and obeys it as well.
    error = sdk.fails("RateLimitError", model, retries=2, statuses=[429, 200], id=id, headers=final)
    assert error.status_code == 429
    assert len(provider.of(id)) == 1


def test_a_provider_that_is_overloaded_shrinks_what_is_sent_and_counts_as_failing(
    sdk: Sdk, through: Sidecar, provider: Provider
) -> None:
    model, id = f"overloaded-{sdk.name}", uuid.uuid4().hex
    error = sdk.fails("InternalServerError", model, retries=0, statuses=[529], id=id)
    assert error.status_code == 529
    assert "words of theirs" in str(error.body)
    breaker = of(through, model)
    assert (breaker["state"], breaker["last_failure"]) == ("closed", "529")
    assert breaker["limit"] < 1024
    assert breaker["error_share"] == 1.0
    while of(through, model)["state"] == "closed":
        sdk.fails("InternalServerError", model, retries=0, statuses=[529], id=id)
    assert len(provider.of(id)) == 5
    refused = sdk.fails("InternalServerError", model, retries=2, id=id)
    assert (refused.status_code, refused.response.headers["x-should-retry"]) == (503, "false")
    assert sdk.code(refused) == "meshd_circuit_open"
    assert len(provider.of(id)) == 5
    breaker = of(through, model)
    assert 0 < breaker["reopens_in_s"] <= 17
    assert breaker["in_flight"] == breaker["queued"] == 0


ERRORS = {
    "openai": ("server_is_overloaded", 'data: {"error": {"message": "full", "type": "x", "code": "%s"}}\n\n'),
    "anthropic": (
        "overloaded_error",
        'event: error\ndata: {"type": "error", "error": {"type": "%s", "message": "full"}}\n\n',
    ),
}


def broken_stream(sdk: Sdk, model: str, error: str) -> str:
    """Read a stream that ends in this error; return the type of what the SDK raises."""
    client = sdk.client.with_options(max_retries=0)
    create = client.chat.completions.create if sdk.library is openai else client.messages.create
    headers = {"x-act": json.dumps({"id": uuid.uuid4().hex, "events": error, "times": 1})}
    ask = [{"role": "user", "content": "say something short"}]
    with pytest.raises(sdk.library.APIError) as caught:
        for _ in create(model=model, max_tokens=8, messages=ask, stream=True, extra_headers=headers):
            pass
    return type(caught.value).__name__


def test_one_that_says_within_a_stream_that_it_is_overloaded_is_sent_less(sdk: Sdk, through: Sidecar) -> None:
    model, (code, event) = f"midstream-{sdk.name}", ERRORS[sdk.name]
    for count in range(1, 6):
        broken_stream(sdk, model, event % code)
        until(lambda: of(through, model)["in_flight"] == 0)
        breaker = of(through, model)
        assert breaker["limit"] < 1024
        assert (breaker["last_failure"], breaker["error_share"]) == ("529", 1.0)
        assert (breaker["state"] == "open") is (count == 5)


def test_one_that_says_within_a_stream_that_there_are_too_many_is_only_sent_less(sdk: Sdk, through: Sidecar) -> None:
    model, (_, event) = f"midrate-{sdk.name}", ERRORS[sdk.name]
    for _ in range(7):
        broken_stream(sdk, model, event % ("rate_limit_error" if sdk.library is anthropic else "rate_limit_exceeded"))
    until(lambda: of(through, model)["in_flight"] == 0)
    breaker = of(through, model)
    assert breaker["limit"] < 1024
    assert (breaker["state"], breaker["error_share"], breaker["last_failure"]) == ("closed", 0.0, "")


def of(through: Sidecar, model: str) -> dict[str, Any]:
    """What the admin API says of the breaker of a model."""
    (found,) = [one for one in through.admin("/v1/breakers")["breakers"] if one["model"] == model]
    return dict(found)


class Asked(threading.Thread):
    """A call in a thread of its own."""

    def __init__(self, sdk: Sdk, model: str, **act: Any) -> None:
        super().__init__(daemon=True)
        self.sdk, self.model, self.act = sdk, model, act
        self.result: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.sdk.ask(self.model, **self.act)
        except Exception as error:  # noqa: BLE001
            self.result = error


def test_a_full_queue_is_worth_another_try_and_an_sdk_makes_it(sdk: Sdk, through: Sidecar, provider: Provider) -> None:
    model, id = f"single-{sdk.name}", uuid.uuid4().hex
    first = Asked(sdk, model, holds=True, id=id)
    until(lambda: provider.of(id))
    error = sdk.fails("InternalServerError", model, retries=0)
    headers = error.response.headers
    assert (error.status_code, headers["x-should-retry"], headers["retry-after"]) == (503, "true", "1")
    assert sdk.code(error) == "meshd_overloaded"
    before = through.metric("meshd_attempts_shed_total", reason="queue_full")
    again = Asked(sdk, model)
    until(lambda: through.metric("meshd_attempts_shed_total", reason="queue_full") > before)
    provider.go_on(id)
    for one in (first, again):
        one.join(20)
        assert one.result.model == model, one.result


def test_one_that_waits_in_the_queue_notices_nothing(sdk: Sdk, through: Sidecar, provider: Provider) -> None:
    model, id = f"queue-{sdk.name}", uuid.uuid4().hex
    first = Asked(sdk, model, retries=0, holds=True, id=id)
    until(lambda: provider.of(id))
    second = Asked(sdk, model, retries=0)
    until(lambda: of(through, model)["queued"] == 1)
    assert of(through, model)["in_flight"] == of(through, model)["limit"] == 1
    target = "openai" if sdk.library is openai else "anthropic"
    assert through.metric("meshd_attempts_queued", target=target) == 1
    assert through.metric("meshd_attempts_in_flight", target=target) == 1
    assert through.metric("meshd_concurrency_limit", target=target) == 1
    provider.go_on(id)
    for one in (first, second):
        one.join(20)
        assert one.result.model == model, one.result
    assert of(through, model)["queued"] == 0
