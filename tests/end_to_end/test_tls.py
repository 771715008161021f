"""TLS on both sides: the listener with ALPN, and an upstream whose certificate is verified."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import openai
import pytest

from bench.certificates import Certificates, make
from tests.end_to_end.documents import document
from tests.end_to_end.provider import Provider
from tests.end_to_end.sidecar import PATIENCE_S, Sidecar, fetch, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "go"}], "max_tokens": 20}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = make(tmp_path_factory.mktemp("certificates"))
    if made is None:
        pytest.skip("openssl is not installed")
    return made


def serve_tls(sidecar: Sidecar, provider: Provider, certificates: Certificates) -> str:
    """Start a sidecar that takes TLS only; return its address by name."""
    sidecar.start(
        document(provider.url, "limits: {unattributed_tokens: 1000000}\n"),
        MESHD_TLS_CERT=str(certificates.certificate),
        MESHD_TLS_KEY=str(certificates.key),
    )
    return f"https://localhost:{sidecar.port}"


def test_the_listener_speaks_tls_with_alpn(sidecar: Sidecar, provider: Provider, certificates: Certificates) -> None:
    import socket

    url = serve_tls(sidecar, provider, certificates)
    trusting = ssl.create_default_context(cafile=str(certificates.ca))
    request = urllib.request.Request(f"{url}/openai/v1/chat/completions", json.dumps(ASK).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=PATIENCE_S, context=trusting) as reply:
        assert json.load(reply)["usage"]["total_tokens"] == 9
    for offered, chosen in ((["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), (["x"], None)):
        trusting = ssl.create_default_context(cafile=str(certificates.ca))
        trusting.set_alpn_protocols(offered)
        with (
            socket.create_connection(("127.0.0.1", sidecar.port), PATIENCE_S) as plain,
            trusting.wrap_socket(plain, server_hostname="localhost") as wrapped,
        ):
            assert wrapped.selected_alpn_protocol() == chosen
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        urllib.request.urlopen(request, timeout=PATIENCE_S, context=ssl.create_default_context())
    # One who speaks plainly to it disturbs nobody.
    assert fetch(f"http://localhost:{sidecar.port}/plain/x")[0] in (0, 400)
    request = urllib.request.Request(f"{url}/plain/x")
    with urllib.request.urlopen(
        request, timeout=PATIENCE_S, context=ssl.create_default_context(cafile=str(certificates.ca))
    ) as reply:
        assert reply.status == 200
    assert "Traceback" not in sidecar.log


def upstream_of(url: str, tls: str) -> str:
    return (
        "agent: a\nupstreams:\n"
        f'  openai: {{url: "{url}/openai", kind: llm, dialect: openai{tls}}}\n'
        "rules:\n  - {match: {kind: llm}, budget: {tokens: 100000}, retry: {attempts: 0}}\n"
    )


@pytest.mark.parametrize("protocol", ["auto", "http/1.1", "h2"])
def test_an_upstream_over_tls_on_either_wire(
    sidecars: Callable[[str], Sidecar], provider: Provider, certificates: Certificates, protocol: str
) -> None:
    url = serve_tls(sidecars("far"), provider, certificates)
    near = sidecars("near").start(upstream_of(url, f", protocol: {protocol}, tls: {{ca: {certificates.ca}}}"))
    headers = {"x-meshd-workflow": "w"}
    base = f"{near.url}/openai/v1"
    with openai.OpenAI(base_url=base, api_key="sk-tls", max_retries=0, default_headers=headers) as client:
        for _ in range(2):
            answer = client.chat.completions.create(**ASK)
            assert answer.usage is not None
            assert answer.usage.total_tokens == 9
        with client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}) as stream:
            assert [chunk.usage.total_tokens for chunk in stream if chunk.usage] == [9]
    until(lambda: near.accounts()["workflow/w"] == (100_000, 3 * 9, 0))


def test_a_certificate_that_nobody_trusts_is_not_trusted(
    sidecars: Callable[[str], Sidecar], provider: Provider, certificates: Certificates, tmp_path: Path
) -> None:
    url = serve_tls(sidecars("far"), provider, certificates)
    seen = len(provider.seen)
    others = make(tmp_path)
    assert others is not None
    for name, tls, address in (
        ("unknown", "", url),
        ("another", f", tls: {{ca: {others.ca}}}", url),
        ("misnamed", f", tls: {{ca: {certificates.ca}}}", url.replace("localhost", "127.0.0.2")),
    ):
        near = sidecars(name).start(upstream_of(address, tls))
        client = openai.OpenAI(base_url=f"{near.url}/openai/v1", api_key="sk-tls", max_retries=0)
        with client, pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(**ASK)
        assert caught.value.status_code == 502
        assert caught.value.response.headers["x-meshd-reason"] == "upstream_unreachable"
        assert sum(account[1] + account[2] for account in near.accounts().values()) == 0
        assert "Traceback" not in near.log
    assert len(provider.seen) == seen
