"""Answers that come compressed although they were asked for plainly."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.end_to_end.documents import document
from tests.end_to_end.provider import BOMB_BYTES, Provider
from tests.end_to_end.sidecar import Sidecar, until

if TYPE_CHECKING:
    from collections.abc import Iterator

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "go"}], "max_tokens": 20}
RSS_GROWTH_KB_MAX = 80_000


@pytest.fixture
def client(sidecar: Sidecar, provider: Provider) -> Iterator[openai.OpenAI]:
    sidecar.start(document(provider.url))
    headers = {"x-meshd-workflow": "w"}
    base = f"{sidecar.url}/openai/v1"
    with openai.OpenAI(base_url=base, api_key="sk-z", max_retries=0, default_headers=headers) as one:
        yield one


def act(**what: Any) -> dict[str, str]:
    return {"x-act": json.dumps({"id": uuid.uuid4().hex, **what})}


def spent(sidecar: Sidecar) -> int:
    until(lambda: sidecar.accounts()["workflow/w"][2] == 0)
    return sidecar.accounts()["workflow/w"][1]


def test_gzip_is_decoded_and_metered(sidecar: Sidecar, provider: Provider, client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**ASK, extra_headers=act(encoding="gzip"))
    assert provider.seen[-1].headers["accept-encoding"] == "identity"
    assert "content-encoding" not in raw.headers
    assert raw.parse().usage.total_tokens == 4 + 5
    assert spent(sidecar) == 4 + 5


def rss_kb(sidecar: Sidecar) -> int:
    assert sidecar.process is not None
    lines = Path(f"/proc/{sidecar.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def test_a_bomb_is_refused_in_bounded_memory(sidecar: Sidecar, client: openai.OpenAI) -> None:
    assert BOMB_BYTES > 4 * RSS_GROWTH_KB_MAX * 1000 // 2
    client.chat.completions.create(**ASK)
    before, was_spent = rss_kb(sidecar), spent(sidecar)
    with pytest.raises(openai.APIError):
        client.chat.completions.create(**ASK, extra_headers=act(encoding="bomb"))
    assert rss_kb(sidecar) - before < RSS_GROWTH_KB_MAX
    assert spent(sidecar) > was_spent, "the provider may have billed it"


def test_a_coding_that_is_not_read_passes_and_is_charged_at_the_bound(sidecar: Sidecar, client: openai.OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(**ASK, extra_headers=act(encoding="br")) as raw:
        assert raw.headers["content-encoding"] == "br"
        body = b"".join(raw.http_response.iter_raw())
    assert b"bytes of a coding" in body
    assert spent(sidecar) > 20 + 4
