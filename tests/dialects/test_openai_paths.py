"""Every endpoint that OpenAI publishes is read and bounded, free, or refused where a budget applies; none is free by
accident."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import openai
import pytest

from meshd.dialects import openai_paths
from meshd.dialects.openai import OpenAI
from meshd.dialects.openai_paths import OPERATIONS, response_of, route_of

DIALECT = OpenAI()
BOUNDED, FREE, REFUSED = "bounded", "free", "refused"

ENDPOINTS = [
    # What ends something.
    ("POST", "/responses/*/cancel", FREE, "ends"),
    ("POST", "/batches/*/cancel", FREE, "ends"),
    ("POST", "/fine_tuning/jobs/*/cancel", FREE, "ends"),
    ("POST", "/fine_tuning/jobs/*/pause", FREE, "ends, for now"),
    ("POST", "/threads/*/runs/*/cancel", FREE, "ends"),
    ("POST", "/evals/*/runs/*/cancel", FREE, "ends"),
    # What runs a model in the call itself.
    ("POST", "/chat/completions", BOUNDED, "read: chat"),
    ("POST", "/completions", BOUNDED, "read: text_completion"),
    ("POST", "/responses", BOUNDED, "read: responses"),
    ("POST", "/responses/compact", BOUNDED, "read: compaction, bounded by the window"),
    ("POST", "/embeddings", BOUNDED, "read: embeddings"),
    ("POST", "/moderations", BOUNDED, "read: moderation; free at OpenAI, not known to be elsewhere"),
    ("POST", "/images/*", BOUNDED, "read: bounded by the published table, refused for models that are in none"),
    ("POST", "/audio/speech", BOUNDED, "read: bounded by characters, refused for voices that are paid by tokens"),
    ("POST", "/audio/trans*", BOUNDED, "read: bounded by the window, or by the bytes of the recording"),
    ("POST", "/decisions", REFUSED, "runs a model, and nobody says how many tokens it takes"),
    ("POST", "/videos*", REFUSED, "paid by the second"),
    ("POST", "/fine_tuning/alpha/graders/run", REFUSED, "may run a model that grades"),
    ("POST", "/fine_tuning/alpha/graders/validate", REFUSED, "needed by no agent"),
    # What makes a model run elsewhere, or later.
    ("POST", "/batches", REFUSED, "spends tokens later, whatever its file asks for"),
    ("POST", "/fine_tuning/jobs", REFUSED, "trains: tokens later"),
    ("POST", "/fine_tuning/jobs/*/resume", REFUSED, "trains: tokens later"),
    ("POST", "/fine_tuning/checkpoints/*", REFUSED, "changes who may use a model"),
    ("POST", "/threads*", REFUSED, "runs spend tokens at the provider, and messages feed them"),
    ("POST", "/assistants*", REFUSED, "defines what runs spend"),
    ("POST", "/evals*", REFUSED, "runs spend tokens at the provider"),
    ("POST", "/agents*", REFUSED, "sessions spend tokens at the provider"),
    ("GET", "/agents*", REFUSED, "nothing of it can be used without what is refused"),
    ("DELETE", "/agents*", REFUSED, "nothing of it can be used without what is refused"),
    ("POST", "/chatkit/*", REFUSED, "sessions spend tokens at the provider"),
    ("GET", "/chatkit/*", REFUSED, "nothing of it can be used without what is refused"),
    ("DELETE", "/chatkit/*", REFUSED, "nothing of it can be used without what is refused"),
    ("POST", "/realtime/*", REFUSED, "opens a connection past meshd"),
    ("*", "/live/*", REFUSED, "opens a connection past meshd"),
    ("POST", "/vector_stores*", REFUSED, "embeds and searches: paid, and not by the call's tokens"),
    ("GET", "/vector_stores/*/search", REFUSED, "searches"),
    ("POST", "/containers*", REFUSED, "paid by the minute"),
    ("POST", "/skills*", REFUSED, "defines what a hosted tool does"),
    ("POST", "/audio/voice*", REFUSED, "makes a voice"),
    ("GET", "/audio/voice*", REFUSED, "needed by no agent"),
    ("DELETE", "/audio/voice*", REFUSED, "needed by no agent"),
    ("POST", "/content_provenance_checks", REFUSED, "runs a classifier that nobody has priced"),
    # What is no agent's business.
    ("DELETE", "/models/*", REFUSED, "takes a model away"),
    ("*", "/vaults*", REFUSED, "keeps secrets"),
    ("*", "/webhook_*", REFUSED, "has calls made to others"),
    ("*", "/safety/*", REFUSED, "is about people"),
    # What counts, names, stores or only reads.
    ("POST", "/responses/input_tokens", FREE, "counts"),
    ("POST", "/chat/completions/*", FREE, "names what is stored"),
    ("POST", "/conversations*", FREE, "stores; what reads it is bounded by the window"),
    ("POST", "/files", FREE, "stores"),
    ("POST", "/uploads*", FREE, "stores"),
    ("GET", "/models*", FREE, "reads"),
    *(
        (method, f"/{resource}*", FREE, what)
        for method, what in (("GET", "reads"), ("DELETE", "deletes"))
        for resource in (
            "assistants", "batches", "chat/completions", "containers", "conversations", "evals", "files", "fine_tuning",
            "responses", "skills", "threads", "vector_stores", "videos",
        )
    ),
]  # fmt: skip
"""Method, path below `/v1`, what becomes of it under a budget, and why. The first that fits holds; `*` fits slashes."""

# Whoever runs an organisation does so with a key of its own, that no agent has.
_OF_AN_ORGANISATION = ("/organization", "/projects")


def published() -> list[tuple[str, str]]:
    """Method and path of every endpoint that the official SDK calls."""
    call = re.compile(r'self\._(post|get|delete|put|patch|get_api_list)\(\s*(?:path_template\(\s*)?f?"(/[^"]*)"')
    folder = Path(openai.__file__).parent / "resources"
    found = {
        (method.replace("get_api_list", "get").upper(), path.partition("?")[0])
        for file in folder.rglob("*.py")
        for method, path in call.findall(file.read_text())
    }
    return sorted(one for one in found if not one[1].startswith(_OF_AN_ORGANISATION))


def under_a_budget(method: str, path: str) -> str:
    if DIALECT.recognise(method, path) is not None:
        return BOUNDED
    return FREE if DIALECT.is_free(method, path) else REFUSED


def listed(method: str, path: str) -> str:
    fitting = [
        verdict
        for each, glob, verdict, _ in ENDPOINTS
        if each in ("*", method) and fnmatchcase(path, glob) and not (verdict is BOUNDED and "{" in path)
    ]
    return next(iter(fitting), "nobody has decided")


def test_the_sdk_s_endpoints_are_found() -> None:
    assert len(published()) > 200
    assert ("POST", "/responses") in published()


@pytest.mark.parametrize(("method", "path"), published(), ids=lambda value: value)
def test_every_published_endpoint_is_decided(method: str, path: str) -> None:
    real = re.sub(r"\{[a-z_]+\}", "id_7f3a", path)
    assert under_a_budget(method, f"/v1{real}") == listed(method, path)
    assert under_a_budget(method, f"/openai/v1{real}?api-version=preview") == listed(method, path)


@pytest.mark.parametrize("path", [*(f"/v1/{path}" for path in OPERATIONS), "/v1/anything", "/v1/responses/r/x", "/"])
@pytest.mark.parametrize("method", ["PUT", "PATCH", "OPTIONS", "BREW", "post", ""])
def test_no_other_method_is_free(method: str, path: str) -> None:
    assert under_a_budget(method, path) == REFUSED


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/responses/../chat/completions/cancel"),
        ("POST", "/v1/responses/%2e%2e/cancel"),
        ("POST", "/v1/responses/a%2fb/cancel"),
        ("POST", "/v1/files/../chat/completions;x"),
        ("POST", "/v1/responses/r1/cancel/"),
        ("POST", "/v1/conversations/c1/items/i1"),
        ("POST", "/v1/responses//cancel"),
        ("POST", "/v1/FILES"),
        ("GET", "/v1/models/../realtime"),
        ("GET", "/v1/models/%2e%2e/realtime"),
        ("GET", "/v1/models/..%2frealtime"),
        ("GET", "/v1/chat"),
        ("GET", "/v1/unknown"),
        ("GET", "/v1/unknown/files"),
        ("POST", "/v1/unknown/files"),
        ("POST", "/files/v1x/unknown/files"),
        ("POST", "/v1/unknown/files2"),
        ("GET", "/openai/deployments/m/files"),
    ],
)
def test_what_only_looks_free_is_not(method: str, path: str) -> None:
    is_free = path in ("/v1/responses/r1/cancel/",)  # a slash at the end means the same everywhere
    assert DIALECT.is_free(method, path) is is_free


@pytest.mark.parametrize(
    ("path", "operation", "model"),
    [
        ("/openai/deployments/my-4o/chat/completions?api-version=2024-10-21", "chat", "my-4o"),
        ("/openai/deployments/my.4o_x/embeddings", "embeddings", "my.4o_x"),
        ("/openai/deployments/d/images/generations", "image_generation", "d"),
        ("/openai/deployments/d/audio/transcriptions/", "transcription", "d"),
        ("/OpenAI/Deployments/d/chat/completions", "chat", "d"),
        ("/v1/engines/davinci/completions", "text_completion", "davinci"),
        ("/proxy/deployments/d/completions", "text_completion", "d"),
        # What could name another model to another server is not read.
        ("/openai/deployments/a%2Fb/chat/completions", None, ""),
        ("/openai/deployments/a/../b/chat/completions", None, ""),
        ("/openai/deployments/../deployments/b/chat/completions", None, ""),
        ("/openai/deployments/a/deployments/b/chat/completions", None, ""),
        ("/openai/deployments/a/engines/b/chat/completions", None, ""),
        ("/openai/deployments/chat/completions", "text_completion", "chat"),
        ("/openai/deployments/completions", None, ""),
        ("/openai/deployments/a/extensions/chat/completions", None, ""),
        ("/openai/deployments/a/chat/completions/x", None, ""),
        ("/openai/deployments/a/unknown", None, ""),
        ("/openai/deployments/a;b/chat/completions", None, ""),
        ("/openai/deployments/" + "a" * 200 + "/chat/completions", None, ""),
    ],
)
def test_a_path_that_names_its_model(path: str, operation: str | None, model: str) -> None:
    assert (route_of(path).operation, route_of(path).model) == (operation, model)
    assert not DIALECT.is_free("POST", path)
    assert not DIALECT.is_free("GET", path)


def test_a_granted_model_is_written_into_the_path_that_names_one() -> None:
    body = b'{"model":"gpt-x","messages":[]}'
    path = "/openai/deployments/dear/chat/completions?api-version=2024-10-21"
    ask = DIALECT.read("chat", body, path)
    assert ask.model == "dear"
    assert DIALECT.rewrite(ask, body) == b'{"model":"dear","messages":[]}', "whichever of the two a server heeds"
    ask.model_granted = "cheap"
    assert DIALECT.redirect(ask, path) == "/openai/deployments/cheap/chat/completions?api-version=2024-10-21"
    assert DIALECT.rewrite(ask, body) == b'{"model":"cheap","messages":[]}'
    assert DIALECT.redirect(ask, "/v1/chat/completions?model=x") == "/v1/chat/completions?model=x"


def test_callers_do_not_fill_the_memory_with_paths() -> None:
    for number in range(2_000):
        assert route_of(f"/v1/{number}/chat/completions").operation == "chat"
    assert len(openai_paths._known) <= 256


@pytest.mark.parametrize(
    ("method", "path", "id"),
    [
        ("GET", "/v1/responses/resp_1", "resp_1"),
        ("GET", "/v1/responses/resp_1?stream=true&starting_after=4", "resp_1"),
        ("GET", "/v1/responses/resp_1/", "resp_1"),
        ("GET", "/v1/responses", ""),
        ("GET", "/v1/responses/resp_1/input_items", ""),
        ("GET", "/v1/conversations/resp_1", ""),
        ("POST", "/v1/responses/resp_1", ""),
        ("DELETE", "/v1/responses/resp_1", ""),
    ],
)
def test_what_reads_a_response(method: str, path: str, id: str) -> None:
    assert DIALECT.collects(method, path) == id
    assert method != "GET" or response_of(path) == id
