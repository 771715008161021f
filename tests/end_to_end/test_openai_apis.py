"""OpenAI's other APIs through meshd with the official SDK: what the client gets, and what the books say."""

from __future__ import annotations

import io
import json
import uuid
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.end_to_end.documents import document
from tests.end_to_end.sidecar import Sidecar, fetch, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.end_to_end.provider import Provider

TOKENS = 20_000
BIG = "limits: {unattributed_tokens: 1000000}\n"
PIXEL = b"\x89PNG\r\n\x1a\n" + b"\x00" * 60


def act(**what: Any) -> dict[str, str]:
    return {"x-act": json.dumps(what)}


@pytest.fixture(scope="module")
def through(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """One sidecar for the whole file; each test is a workflow of its own."""
    one = Sidecar(tmp_path_factory.mktemp("apis") / "home")
    yield one.start(document(provider.url, BIG, tokens=TOKENS))
    one.kill()


class Run:
    """A workflow, its client and its account; billed by the provider under a key of its own."""

    def __init__(self, sidecar: Sidecar, provider: Provider) -> None:
        self.name = f"apis-{uuid.uuid4().hex[:8]}"
        self.key = f"sk-{uuid.uuid4().hex}"
        self.sidecar, self.provider = sidecar, provider
        self.client = openai.OpenAI(
            base_url=f"{sidecar.url}/openai/v1",
            api_key=self.key,
            max_retries=0,
            default_headers={"x-meshd-workflow": self.name},
        )

    @property
    def billed(self) -> int:
        return self.provider.tokens[self.key]

    @property
    def booked(self) -> tuple[int, int]:
        """Tokens spent and reserved; both 0 for an account that is not there."""
        _, spent, reserved = self.sidecar.accounts().get(f"workflow/{self.name}", (0, 0, 0))
        return spent, reserved

    def settled(self) -> None:
        """Wait until the books say what the provider has billed."""
        until(lambda: self.booked == (self.billed, 0), f"{self.booked} for {self.billed} billed")


@pytest.fixture
def run(through: Sidecar, provider: Provider) -> Iterator[Run]:
    one = Run(through, provider)
    with one.client:
        yield one


# -- responses


def test_a_response(run: Run) -> None:
    answer = run.client.responses.create(model="m", input="say something short", instructions="be brief")
    assert answer.output_text == "word " * 5
    assert answer.usage is not None
    assert answer.usage.total_tokens == run.billed
    run.settled()
    assert run.provider.seen[-1].json["max_output_tokens"] == 64, "the cap is the guarantee"


def test_a_streamed_response(run: Run) -> None:
    with run.client.responses.stream(model="m", input="say something short") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert final.output_text == "word " * 5
    run.settled()


def test_a_response_that_does_not_fit_raises_the_typed_error_once(run: Run) -> None:
    before = len(run.provider.seen)
    with pytest.raises(openai.APIStatusError) as caught:
        run.client.responses.create(model="m", input="x" * TOKENS)
    assert (caught.value.status_code, caught.value.code) == (402, "meshd_budget_exhausted")
    with pytest.raises(openai.APIStatusError):
        run.client.responses.create(model="gpt-4o", input="And then?", previous_response_id="resp_1")
    assert len(run.provider.seen) == before
    assert run.booked == (0, 0)


def test_a_stream_that_ignores_its_cap_ends_incomplete(run: Run) -> None:
    asked: dict[str, Any] = {"model": "m", "input": "run away", "max_output_tokens": 20, "stream": True}
    stream = run.client.responses.create(**asked, extra_headers=act(words=5_000, ignores_cap=True))
    events = list(stream)
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.status == "incomplete"
    assert last.response.incomplete_details.reason == "max_output_tokens"
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert last.response.output_text == "".join(deltas)
    assert 0 < len(deltas) < 1_000
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 1
    assert kinds.count("response.content_part.added") == kinds.count("response.content_part.done") == 1


def test_the_helper_that_gathers_a_stream_reads_a_cut(run: Run) -> None:
    with run.client.responses.stream(
        model="m", input="run away", max_output_tokens=20, extra_headers=act(words=5_000, ignores_cap=True)
    ) as stream:
        assert [event.type for event in stream][-1] == "response.incomplete"


def test_a_response_in_the_background_is_settled_by_the_reading_that_shows_its_end(run: Run) -> None:
    begun = run.client.responses.create(model="m", input="take your time", background=True, max_output_tokens=900)
    assert begun.status == "queued"
    spent, reserved = run.booked
    assert spent == 0
    assert reserved > 900, "held until it is known"
    states = [run.client.responses.retrieve(begun.id).status for _ in range(2)]
    assert states == ["in_progress", "in_progress"]
    assert run.booked == (0, reserved)
    done = run.client.responses.retrieve(begun.id)
    assert done.output_text == "word " * 5
    run.settled()
    assert run.client.responses.retrieve(begun.id).status == "completed"
    run.settled()


def test_another_workflow_cannot_use_what_a_background_response_holds(run: Run) -> None:
    run.client.responses.create(model="m", input="take your time", background=True, max_output_tokens=TOKENS - 1_000)
    with pytest.raises(openai.RateLimitError) as caught:
        run.client.responses.create(model="m", input="x" * 2_000)
    assert caught.value.code == "meshd_budget_busy"


def test_reading_what_is_not_there_costs_nothing(run: Run) -> None:
    with pytest.raises(openai.NotFoundError):
        run.client.responses.retrieve("resp_none")
    assert run.booked == (0, 0)


# -- completions, rerank


def test_completions(run: Run) -> None:
    answer = run.client.completions.create(model="m", prompt=["say", "something"], n=2)
    assert [choice.text for choice in answer.choices] == ["word " * 5] * 4
    run.settled()
    chunks = list(run.client.completions.create(model="m", prompt="say something", stream=True))
    assert [choice.text for chunk in chunks for choice in chunk.choices] == ["word "] * 5 + [""]
    assert all(chunk.usage is None for chunk in chunks)
    run.settled()


def test_rerank(run: Run) -> None:
    asked = {"model": "m", "query": "low water", "documents": ["at noon", "in the lighthouse"]}
    answer = run.client.post("/rerank", body=asked, cast_to=object)
    assert isinstance(answer, dict)
    assert answer["usage"]["total_tokens"] == run.billed
    run.settled()


# -- images, audio


def test_images(run: Run) -> None:
    answer = run.client.images.generate(model="gpt-image-1", prompt="fog", n=2, size="1024x1024", quality="low")
    assert answer.data is not None
    assert len(answer.data) == 2
    run.settled()


def test_a_streamed_image_is_longer_than_any_text(run: Run) -> None:
    events = list(
        run.client.images.generate(
            model="gpt-image-1", prompt="fog", size="1024x1024", quality="low", stream=True, partial_images=1
        )
    )
    assert [event.type for event in events] == ["image_generation.partial_image", "image_generation.completed"]
    assert len(events[0].b64_json) > 2_000_000
    run.settled()


def test_an_edited_image_goes_through_as_it_came(run: Run) -> None:
    files: Any = [("a.png", io.BytesIO(PIXEL)), ("b.png", io.BytesIO(PIXEL))]
    answer = run.client.images.edit(model="gpt-image-1", image=files, prompt="more fog", quality="low")
    assert answer.usage is not None
    assert run.provider.seen[-1].body.count(PIXEL) == 2
    run.settled()


@pytest.mark.parametrize("model", ["gpt-image-2", "dall-e-3"])
def test_an_image_that_nobody_can_bound_is_refused(run: Run, model: str) -> None:
    before = len(run.provider.seen)
    with pytest.raises(openai.PermissionDeniedError, match="not published"):
        run.client.images.generate(model=model, prompt="fog")
    assert len(run.provider.seen) == before
    assert run.booked == (0, 0)


def test_speech_is_bounded_by_its_characters(run: Run) -> None:
    sound = run.client.audio.speech.create(model="tts-1", voice="alloy", input="low water").read()
    assert sound.startswith(b"ID3\x04")
    spent, reserved = until(lambda: run.booked if run.booked[0] else None)
    assert reserved == 0
    assert run.billed <= spent < 200
    with pytest.raises(openai.PermissionDeniedError, match="not published"):
        run.client.audio.speech.create(model="gpt-4o-mini-tts", voice="alloy", input="low water")


def test_a_transcript(run: Run) -> None:
    answer = run.client.audio.transcriptions.create(model="gpt-4o-transcribe", file=("a.wav", io.BytesIO(b"RIFF" * 9)))
    assert answer.text == "word " * 5
    run.settled()


def test_a_form_that_servers_could_read_in_two_ways_is_refused(run: Run) -> None:
    form = (
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\ngpt-4o-transcribe\r\n'
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\ndear\r\n--b--\r\n'
    )
    status, text = fetch(
        f"{run.sidecar.url}/openai/v1/audio/transcriptions",
        "POST",
        {"content-type": "multipart/form-data; boundary=b", "x-meshd-workflow": run.name},
        form,
    )
    assert status == 400
    assert "more than once" in json.loads(text)["error"]["message"]


# -- Azure


def test_azure_s_deployment_is_the_model_that_is_judged_and_served(
    provider: Provider, sidecar: Sidecar, through: Sidecar
) -> None:
    del through
    rules = (
        "rules:\n  - name: cheap\n    match: {kind: llm}\n    allow: {models: [cheap]}\n"
        "  - name: swap\n    match: {model: alias}\n    route: {model: cheap}\n"
    )
    sidecar.start(document(provider.url, BIG + rules, tokens=TOKENS))
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "go"}]}

    def azure(deployment: str) -> openai.AzureOpenAI:
        return openai.AzureOpenAI(
            base_url=f"{sidecar.url}/openai/openai/deployments/{deployment}",
            api_version="2024-10-21",
            api_key="k",
            max_retries=0,
        )

    with azure("cheap") as client:
        assert client.chat.completions.create(model="dear", **asked).choices
    seen = provider.seen[-1]
    assert (seen.path, seen.json["model"]) == (
        "/openai/deployments/cheap/chat/completions?api-version=2024-10-21",
        "cheap",
    )
    with azure("dear") as client, pytest.raises(openai.PermissionDeniedError, match="'dear' is not allowed"):
        client.chat.completions.create(model="cheap", **asked)
    with azure("alias") as client:
        client.chat.completions.create(model="dear", **asked)
    assert provider.seen[-1].path.startswith("/openai/deployments/cheap/chat/completions?")


# -- what is not read


@pytest.mark.parametrize("path", ["/batches", "/threads/t/runs", "/videos", "/decisions", "/unheard/of"])
def test_what_spends_elsewhere_is_refused(run: Run, path: str) -> None:
    before = len(run.provider.seen)
    with pytest.raises(openai.PermissionDeniedError, match="cannot bound"):
        run.client.post(path, body={"model": "m"}, cast_to=object)
    assert len(run.provider.seen) == before
