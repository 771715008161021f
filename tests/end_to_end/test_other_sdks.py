"""The official clients of Gemini and Ollama, and Anthropic's for Vertex AI, through a real sidecar to a provider that
counts for itself: create, stream, refusal, cut."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import TYPE_CHECKING, Any

import anthropic
import ollama
import pytest
from google import genai
from google.genai import errors, types

from tests.end_to_end.other_provider import OtherProvider
from tests.end_to_end.sidecar import Sidecar, fetch, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORDS = "say something short"
INPUT_TOKENS = 3 + 3
MESSAGES = [{"role": "user", "content": WORDS}]
SECRET = "AIzaSyA-canary-of-a-key-0123456789"


@pytest.fixture(scope="module")
def other() -> Iterator[OtherProvider]:
    made = OtherProvider()
    yield made
    made.close()


def document(provider: str, *, tokens: int = 1_000_000, more: str = "", rules: str = "") -> str:
    return f"""\
agent: researcher
limits: {{unattributed_tokens: 1000000, turns: {{ladder: note}}}}
upstreams:
  gemini: {{url: "{provider}", kind: llm, dialect: gemini{more}}}
  ollama: {{url: "{provider}", kind: llm, dialect: ollama}}
  bedrock: {{url: "{provider}", kind: llm, dialect: bedrock}}
rules:
{rules}  - name: purse
    match: {{kind: llm}}
    budget: {{tokens: {tokens}, output_default: 64}}
"""


@pytest.fixture(scope="module")
def through(other: OtherProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    one = Sidecar(tmp_path_factory.mktemp("others") / "home")
    yield one.start(document(other.url))
    one.kill()


def gemini(url: str, key: str = "k", **act: Any) -> genai.Client:
    headers = {"x-act": json.dumps(act), "x-meshd-workflow": act.pop("workflow", "")}
    options = types.HttpOptions(base_url=url, headers={name: value for name, value in headers.items() if value})
    return genai.Client(api_key=key, http_options=options)


def ollama_of(url: str, key: str = "", workflow: str = "", **act: Any) -> ollama.Client:
    headers = {"x-act": json.dumps(act)} | ({"x-meshd-workflow": workflow} if workflow else {})
    return ollama.Client(host=url, headers=headers | ({"authorization": f"Bearer {key}"} if key else {}))


def both(through: Sidecar, other: OtherProvider, name: str, case: Callable[[str], Any]) -> Any:
    """Run `case` directly and through meshd, hold the two to be the same, and return what it gave."""
    direct, meshed = case(other.url), case(f"{through.url}/{name}")
    assert meshed == direct
    return meshed


def plain(response: Any) -> Any:
    return response.model_dump(exclude={"sdk_http_response"})


CAPPED = types.GenerateContentConfig(max_output_tokens=20)


def test_gemini_answers_as_it_does_directly(through: Sidecar, other: OtherProvider) -> None:
    def case(url: str) -> Any:
        with gemini(url) as client:
            return plain(client.models.generate_content(model="gemini-x", contents=WORDS, config=CAPPED))

    answer = both(through, other, "gemini", case)
    assert answer["usage_metadata"]["total_token_count"] == INPUT_TOKENS + 5


def test_gemini_streams_as_it_does_directly(through: Sidecar, other: OtherProvider) -> None:
    def case(url: str) -> Any:
        with gemini(url, words=9) as client:
            stream = client.models.generate_content_stream(model="gemini-x", contents=WORDS, config=CAPPED)
            return [plain(chunk) for chunk in stream]

    assert len(both(through, other, "gemini", case)) == 11

    async def read(url: str) -> Any:
        async with gemini(url, words=9).aio as client:
            stream = await client.models.generate_content_stream(model="gemini-x", contents=WORDS, config=CAPPED)
            return [plain(chunk) async for chunk in stream]

    assert len(both(through, other, "gemini", lambda url: asyncio.run(read(url)))) == 11


def test_gemini_sends_the_cap_that_was_granted_where_the_client_sent_none(
    through: Sidecar, other: OtherProvider
) -> None:
    id = uuid.uuid4().hex
    with gemini(f"{through.url}/gemini", words=100, id=id) as client:
        answer = client.models.generate_content(model="gemini-x", contents=WORDS)
    assert answer.candidates is not None
    assert answer.candidates[0].finish_reason is types.FinishReason.MAX_TOKENS
    assert other.of(id)[0].json["generationConfig"] == {"maxOutputTokens": 64}


def test_a_growing_array_is_metered_as_it_passes(through: Sidecar, other: OtherProvider) -> None:
    key, workflow = uuid.uuid4().hex, f"w-{uuid.uuid4().hex}"
    path = "/v1beta/models/gemini-x:streamGenerateContent"
    body = json.dumps({"contents": [{"parts": [{"text": WORDS}]}]}).encode()
    headers = {"x-goog-api-key": key, "x-act": json.dumps({"words": 30}), "x-meshd-workflow": workflow}
    headers["content-type"] = "application/json"
    status, text = fetch(f"{through.url}/gemini{path}", "POST", headers, body)
    assert status == 200
    assert len(json.loads(text)) == 32
    assert other.tokens[key] == INPUT_TOKENS + 30
    until(lambda: spent(through, workflow) == (INPUT_TOKENS + 30, 0))


def spent(sidecar: Sidecar, workflow: str) -> tuple[int, int] | None:
    """What an account has spent and what it holds."""
    found = [account for id, account in sidecar.accounts().items() if workflow in id]
    return (found[0][1], found[0][2]) if found else None


def test_ollama_answers_as_it_does_directly(through: Sidecar, other: OtherProvider) -> None:
    def case(url: str) -> Any:
        client = ollama_of(url, words=4)
        return [
            client.chat(model="m", messages=MESSAGES, options={"num_predict": 20}).model_dump(),
            [part.model_dump() for part in client.chat(model="m", messages=MESSAGES, stream=True)],
            client.generate(model="m", prompt=WORDS).model_dump(),
            [part.model_dump() for part in client.generate(model="m", prompt=WORDS, stream=True)],
        ]

    answers = both(through, other, "ollama", case)
    assert answers[0]["eval_count"] == 4
    assert [len(answers[1]), len(answers[3])] == [5, 5]

    async def read(url: str) -> Any:
        client = ollama.AsyncClient(host=url, headers={"x-act": json.dumps({"words": 4})})
        return [part.model_dump() async for part in await client.chat(model="m", messages=MESSAGES, stream=True)]

    assert len(both(through, other, "ollama", lambda url: asyncio.run(read(url)))) == 5


def test_ollama_is_settled_at_what_it_counted(through: Sidecar, other: OtherProvider) -> None:
    for is_streamed in (False, True):
        key, workflow = uuid.uuid4().hex, f"w-{uuid.uuid4().hex}"
        client = ollama_of(f"{through.url}/ollama", key, workflow, words=7)
        answer: Any = client.chat(model="m", messages=MESSAGES, stream=is_streamed)
        if is_streamed:
            list(answer)
        assert other.tokens[key] == INPUT_TOKENS + 7
        until(lambda workflow=workflow: spent(through, workflow) == (INPUT_TOKENS + 7, 0))


def test_what_costs_nothing_passes_and_what_nobody_can_bound_does_not(through: Sidecar, other: OtherProvider) -> None:
    ollama_of(f"{through.url}/ollama").copy("a", "b")
    assert other.seen[-1].path == "/api/copy"
    status, text = fetch(f"{through.url}/gemini/v1beta/cachedContents", "POST", {}, b"{}")
    assert status == 403
    assert json.loads(text)["error"]["status"] == "PERMISSION_DENIED"
    status, text = fetch(f"{through.url}/bedrock/model/anthropic.x/converse", "POST", {}, b"{}")
    assert status == 403
    assert json.loads(text)["__type"] == "AccessDeniedException"


@pytest.fixture
def poor(other: OtherProvider, sidecar: Sidecar) -> Sidecar:
    """A sidecar whose workflows can hardly begin."""
    return sidecar.start(document(other.url, tokens=60))


def test_a_budget_that_is_used_up_raises_each_clients_own_error(poor: Sidecar, other: OtherProvider) -> None:
    id = uuid.uuid4().hex
    with gemini(f"{poor.url}/gemini", id=id, workflow="w-1") as client, pytest.raises(errors.ClientError) as caught:
        client.models.generate_content(model="gemini-x", contents=WORDS)
    assert (caught.value.code, caught.value.status) == (402, "RESOURCE_EXHAUSTED")
    assert "Budget exhausted" in (caught.value.message or "")
    with pytest.raises(ollama.ResponseError) as refused:
        ollama_of(f"{poor.url}/ollama", workflow="w-2", id=id).chat(model="m", messages=MESSAGES)
    assert refused.value.status_code == 402
    assert "Budget exhausted" in refused.value.error
    # `/v1` of the same upstream speaks OpenAI's language, in its errors too.
    status, text = fetch(f"{poor.url}/ollama/v1/chat/completions", "POST", {}, b"not json")
    assert status == 400
    assert json.loads(text)["error"]["code"] == "meshd_malformed"
    assert other.of(id) == []


def test_a_stream_that_ignores_its_cap_is_cut_as_if_it_had_not(through: Sidecar, other: OtherProvider) -> None:
    with gemini(f"{through.url}/gemini", words=5000, uncapped=True) as client:
        chunks = list(client.models.generate_content_stream(model="gemini-x", contents=WORDS))
    last = chunks[-1]
    assert last.candidates is not None
    assert last.candidates[0].finish_reason is types.FinishReason.MAX_TOKENS
    assert len(chunks) < 1000
    parts = list(ollama_of(f"{through.url}/ollama", words=5000, uncapped=True).chat("m", MESSAGES, stream=True))
    assert (parts[-1].done, parts[-1].done_reason) == (True, "length")
    assert len(parts) < 1000
    path = f"{through.url}/gemini/v1beta/models/gemini-x:streamGenerateContent"
    body = json.dumps({"contents": [{"parts": [{"text": WORDS}]}]}).encode()
    status, text = fetch(path, "POST", {"x-act": json.dumps({"words": 5000, "uncapped": True})}, body)
    assert status == 200
    assert json.loads(text)[-1]["candidates"][0]["finishReason"] == "MAX_TOKENS"


def test_a_replaced_model_stands_in_the_path(other: OtherProvider, sidecar: Sidecar) -> None:
    cheaper = '  - {name: cheaper, match: {model: "gemini-dear"}, route: {model: gemini-cheap}}\n'
    sidecar.start(document(other.url, rules=cheaper))
    id = uuid.uuid4().hex
    with gemini(f"{sidecar.url}/gemini", id=id) as client:
        answer = client.models.generate_content(model="gemini-dear", contents=WORDS)
    assert answer.model_version == "gemini-cheap"
    assert other.of(id)[0].path.endswith("/models/gemini-cheap:generateContent")


def test_a_key_in_the_query_is_shown_to_nobody(other: OtherProvider, sidecar: Sidecar) -> None:
    sidecar.start(document(other.url), MESHD_LOG="debug")
    body = json.dumps({"contents": [{"parts": [{"text": WORDS}]}]}).encode()
    path = f"{sidecar.url}/gemini/v1beta/models/gemini-x:generateContent?key={SECRET}"
    assert fetch(path, "POST", {}, body)[0] == 200
    assert other.tokens[SECRET] > 0
    refused = fetch(f"{sidecar.url}/gemini/v1beta/interactions?key={SECRET}", "POST", {}, b"{}")
    assert refused[0] == 403
    assert SECRET not in refused[1]
    malformed = fetch(path, "POST", {}, b"{")
    assert malformed[0] == 400
    assert SECRET not in malformed[1]
    assert SECRET not in sidecar.get("/metrics")[1]
    assert sidecar.stop() == 0
    assert SECRET not in sidecar.log


def test_the_upstreams_own_key_takes_the_place_of_the_callers(other: OtherProvider, sidecar: Sidecar) -> None:
    sidecar.start(document(other.url, more=", key: {env: OUR_KEY}"), OUR_KEY="ours-1")
    id = uuid.uuid4().hex
    headers = {"x-act": json.dumps({"id": id}), "x-goog-api-key": "theirs"}
    body = json.dumps({"contents": [{"parts": [{"text": WORDS}]}]}).encode()
    path = f"{sidecar.url}/gemini/v1beta/models/gemini-x:generateContent?key=theirs&alt=json"
    assert fetch(path, "POST", headers, body)[0] == 200
    (seen,) = other.of(id)
    assert seen.headers["x-goog-api-key"] == "ours-1"
    assert seen.path == "/v1beta/models/gemini-x:generateContent?alt=json"


INVOKE = "/bedrock/model/anthropic.claude-x-v1:0/invoke"
SIGNATURE = "AWS4-HMAC-SHA256 Credential=AK/20260101/us-east-1/bedrock/aws4_request, SignedHeaders=host, Signature=0"


@pytest.mark.parametrize(
    ("cap", "authorization", "status"),
    [
        (64, SIGNATURE, 200),
        (10, SIGNATURE, 200),
        (None, SIGNATURE, 403),
        (None, "Bearer ABSK-1", 200),
        (64, "Bearer ABSK-1", 200),
    ],
)
def test_a_signed_request_passes_as_it_came_or_not_at_all(
    through: Sidecar, other: OtherProvider, cap: int | None, authorization: str, status: int
) -> None:
    id = uuid.uuid4().hex
    asked = {"anthropic_version": "bedrock-2023-05-31", "messages": [{"role": "user", "content": "x"}]}
    body = json.dumps(asked | ({"max_tokens": cap} if cap else {})).encode()
    headers = {"authorization": authorization, "x-act": json.dumps({"id": id, "reply": "{}"})}
    got, text = fetch(f"{through.url}{INVOKE}", "POST", headers, body)
    assert got == status
    if status == 403:
        assert "signed" in json.loads(text)["message"]
        assert "at most 64" in json.loads(text)["message"]
        assert other.of(id) == []
        return
    (seen,) = other.of(id)
    if authorization is SIGNATURE:
        assert seen.body == body
        assert seen.headers["authorization"] == SIGNATURE
    else:
        assert seen.json["max_tokens"] == (cap or 64)


def test_claude_on_vertex_through_geminis_upstream(through: Sidecar, other: OtherProvider) -> None:
    id = uuid.uuid4().hex
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": []}
    message |= {"stop_reason": "end_turn", "stop_sequence": None, "usage": {"input_tokens": 6, "output_tokens": 5}}
    headers = {"x-act": json.dumps({"id": id, "reply": json.dumps(message)}), "x-meshd-workflow": id}
    path = "/gemini/v1/projects/p/locations/l/publishers/anthropic/models/claude-x:rawPredict"
    with anthropic.Anthropic(base_url=f"{through.url}/gemini", auth_token="t", max_retries=0) as client:
        answer = client.post(
            path.removeprefix("/gemini"),
            cast_to=anthropic.types.Message,
            body={"anthropic_version": "vertex-2023-10-16", "max_tokens": 20, "messages": MESSAGES},
            options={"headers": headers},
        )
    assert answer.usage.output_tokens == 5
    assert other.of(id)[0].json["max_tokens"] == 20
    until(lambda: spent(through, id) == (11, 0))
