"""`meshd tokens` says what a budget would reserve, and how it knows."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshd.cli import main

CHAT: dict[str, Any] = {
    "model": "gpt-4o",
    "max_tokens": 100,
    "n": 2,
    "messages": [
        {"role": "system", "content": "You are a pilot."},
        {"role": "user", "content": "Is there wind? " * 50},
    ],
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise AssertionError("nothing is to be sent, and no vocabulary fetched")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def run(data: bytes | dict[str, Any], *options: str, file: str = "-") -> Result:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return CliRunner().invoke(main, ["tokens", file, *options], input=raw, catch_exceptions=False)


def said(data: bytes | dict[str, Any], *options: str) -> dict[str, Any]:
    result = run(data, "--json", *options)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_bare_body() -> None:
    found = said(CHAT, "--dialect", "openai")
    size = len(json.dumps(CHAT))
    assert found["input_bound"] == found["body_bytes"] == size
    assert (found["bound_by"], found["choices"], found["output_cap"]) == ("bytes", 2, 100)
    assert found["reserves"] == size + 200
    count = found["count"]
    assert count["encoding"] == "o200k_base"
    assert [text["text"] for text in count["texts"]] == ["messages[0].content", "messages[1].content"]
    assert [text["tokens"] for text in count["texts"]] == [5, 201]
    assert count["tokens"] == 206 + count["overhead"]
    assert found["reserves_counted"] == count["tokens"] + 200 < found["reserves"] / 2


def test_lines_for_people() -> None:
    lines = run(CHAT, "--dialect", "openai").stdout
    for expected in ("openai chat, model gpt-4o", "by bytes", "messages[1].content", "2 x cap 100 = 200", "reserves"):
        assert expected in lines
    assert "where that does not fit" in lines


def test_many_texts_are_summed_up() -> None:
    body = CHAT | {"messages": [{"role": "user", "content": f"number {number}"} for number in range(100)]}
    lines = run(body, "--dialect", "openai").stdout
    assert "60 more" in lines
    assert len(lines.splitlines()) < 60


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /openai/v1/chat/completions HTTP/1.1\n\n" + json.dumps(CHAT).encode(),
        json.dumps({"url": "/openai/v1/chat/completions", "body": CHAT}).encode(),
    ],
    ids=["raw", "document"],
)
def test_a_whole_request(request_bytes: bytes, tmp_path: Path) -> None:
    assert said(request_bytes)["count"] == said(CHAT, "--dialect", "openai")["count"]
    file = tmp_path / "request.http"
    file.write_bytes(request_bytes)
    assert "o200k_base" in run(b"", file=str(file)).stdout


def test_an_embedding_bills_no_output() -> None:
    found = said({"url": "/openai/v1/embeddings", "body": {"model": "text-embedding-3-small", "input": ["a b", "c"]}})
    assert (found["output_cap"], found["reserves"]) == (0, found["input_bound"])
    body = {"model": "text-embedding-3-small", "input": "a"}
    assert said(body, "--dialect", "openai", "--operation", "embeddings")["operation"] == "embeddings"


@pytest.mark.parametrize(
    ("body", "dialect", "why"),
    [
        ({"model": "claude-opus-5-5", "max_tokens": 5, "messages": []}, "anthropic", "no tokenizer"),
        ({"model": "mine", "messages": []}, "openai", "no tokenizer"),
        ({"model": "gpt-4o", "messages": [{"content": [{"type": "file"}]}]}, "openai", "does not show"),
    ],
)
def test_why_there_is_no_count(body: dict[str, Any], dialect: str, why: str) -> None:
    found = said(body, "--dialect", dialect)
    assert found["count"] is found["reserves_counted"] is None
    assert why in found["not_counted"]
    assert why in run(body, "--dialect", dialect).stdout


def test_a_path_that_names_the_model_is_read() -> None:
    body = {"contents": [{"parts": [{"text": "Is it foggy?"}]}], "cachedContent": "c"}
    found = said({"url": "/gemini/v1beta/models/gemini-2.5-pro:generateContent", "body": body})
    assert (found["dialect"], found["model"], found["input_bound"]) == ("gemini", "gemini-2.5-pro", 1_048_576)
    claude = "/gemini/v1/projects/p/locations/l/publishers/anthropic/models/claude-opus-4-7:rawPredict"
    found = said({"url": claude, "body": {"max_tokens": 7, "messages": []}}, "--dialect", "gemini")
    assert (found["model"], found["output_cap"]) == ("claude-opus-4-7", 7)


def test_an_unknown_window_is_said_to_be() -> None:
    assert "not known" in run({"model": "mine", "messages": []}, "--dialect", "openai").stdout


@pytest.mark.parametrize(
    ("data", "options", "code", "message"),
    [
        (b"", (), 2, "it is empty"),
        (b" \n", (), 2, "it is empty"),
        (json.dumps(CHAT).encode(), (), 2, "--dialect"),
        (b"{}", ("--dialect", "klingon"), 2, "none of openai"),
        (b"{}", ("--dialect", "openai", "--operation", "embedding"), 2, "none of chat, text_completion"),
        (b"\x00\xff", (), 2, "no whole HTTP/1.1 request"),
        (b"Dear Sirs, POST me this", (), 2, "no whole HTTP/1.1 request"),
        (b"Dear Sirs", ("--dialect", "openai"), 1, "not JSON"),
        (b"POST /\x00 HTTP/1.1\n\n", (), 1, "malformed"),
        (b'{"url": "/openai/v1/models", "method": "GET"}', (), 2, "no request that a dialect reads"),
        (b'{"url": "/openai/v1/chat/completions", "body": {}}', ("--dialect", "anthropic"), 2, "(anthropic)"),
        (b'{"model": 1}', ("--dialect", "openai"), 1, "'model'"),
        (b'{"model"', ("--dialect", "openai"), 1, "not JSON"),
        (b'{"model": "\\ud800"}', ("--dialect", "openai"), 1, "surrogate"),
    ],
)
def test_nonsense_is_named(data: bytes, options: tuple[str, ...], code: int, message: str) -> None:
    result = run(data, *options)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_file_and_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(b"", file="/no/such/file").exit_code == 2
    monkeypatch.setattr("meshd.cli.tokens.REQUEST_BYTES_MAX", 10)
    assert "over 10 bytes" in run(CHAT, "--dialect", "openai").stderr


def test_help_shows_an_example() -> None:
    text = run(b"", "--help").stdout
    assert "--dialect openai" in text
    assert "gpt-4o" in text


@given(data=st.binary(max_size=80) | st.text(max_size=80).map(str.encode), is_bare=st.booleans())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_answered_or_named(data: bytes, is_bare: bool) -> None:
    result = run(data, *(("--dialect", "openai") if is_bare else ()))
    assert result.exit_code in (0, 1, 2)
