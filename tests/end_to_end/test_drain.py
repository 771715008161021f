"""Starting, draining and ending, by signals as the outside world sends them."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.end_to_end.documents import document
from tests.end_to_end.provider import Provider
from tests.end_to_end.sidecar import Sidecar, fetch, until
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

ASK: dict[str, Any] = {
    "model": "m",
    "max_tokens": 20,
    "stream": True,
    "messages": [{"role": "user", "content": "go"}],
}


class Stream:
    """A streamed call that the provider holds up in the middle."""

    def __init__(self, sidecar: Sidecar, provider: Provider) -> None:
        self.id = uuid.uuid4().hex
        self.answers: list[tuple[int, str]] = []
        self._provider = provider
        headers = {"x-act": json.dumps({"id": self.id, "pause_at": 3, "words": 8}), "x-meshd-workflow": "w"}
        url, body = f"{sidecar.url}/openai/v1/chat/completions", json.dumps(ASK).encode()
        self._thread = threading.Thread(
            target=lambda: self.answers.append(fetch(url, "POST", headers, body)), daemon=True
        )
        self._thread.start()
        until(lambda: provider.of(self.id) and provider.of(self.id)[0].words_sent == 3)

    def finish(self) -> tuple[int, str]:
        self._provider.go_on(self.id)
        self._thread.join(30)
        return self.answers[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_finishes_what_runs(sidecar: Sidecar, provider: Provider, number: int) -> None:
    sidecar.start(document(provider.url))
    stream, address, metrics = Stream(sidecar, provider), sidecar.url, sidecar.running
    sidecar.signal(number)
    assert metrics is not None
    until(lambda: fetch(f"http://{metrics['metrics']}/readyz")[0] == 503)
    until(lambda: fetch(f"{address}/plain/x")[0] == 0, "no new connection is taken")
    assert fetch(f"http://{metrics['metrics']}/livez")[0] == 200
    status, text = stream.finish()
    assert status == 200
    assert text.count('"word "') == 8
    assert text.endswith("data: [DONE]\n\n")
    assert sidecar.wait() == 0
    assert sidecar.running is None
    sidecar.start(document(provider.url))
    assert sidecar.accounts()["workflow/w"][1] == 4 + 8, "the books have it before it is used again"
    assert Stream(sidecar, provider).finish()[0] == 200
    assert sidecar.accounts()["workflow/w"][1] == 2 * (4 + 8)


def test_an_interrupt_before_it_serves_ends_it_as_one(sidecar: Sidecar, provider: Provider) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = f"nats://127.0.0.1:{silent.getsockname()[1]}?connect_timeout=60"
        sidecar.spawn(document(provider.url), "--store", store)
        with silent.accept()[0]:
            sidecar.signal(signal.SIGINT)
            assert sidecar.wait() == 130
    assert sidecar.log == ""


def test_a_second_signal_ends_at_once(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(document(provider.url))
    stream, address = Stream(sidecar, provider), sidecar.url
    sidecar.signal(signal.SIGTERM)
    until(lambda: fetch(f"{address}/plain/x")[0] == 0)
    assert sidecar.process is not None
    assert sidecar.process.poll() is None
    sidecar.signal(signal.SIGTERM)
    assert sidecar.wait() == 130
    status, text = stream.finish()
    assert status == 0 or "[DONE]" not in text, "what broke off must not look whole"


def test_a_drain_has_one_deadline_which_the_document_sets(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(document(provider.url, "limits: {drain: 300ms}\n"))
    stream = Stream(sidecar, provider)
    sidecar.signal(signal.SIGTERM)
    assert sidecar.wait() == 0
    assert "deadline of 0.3 s passed" in sidecar.log
    assert "[DONE]" not in stream.finish()[1]
    assert sidecar.running is None


def test_the_environment_sets_it_too(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(document(provider.url, "limits: {drain: 1h}\n"), MESHD_DRAIN="0.2")
    stream = Stream(sidecar, provider)
    assert sidecar.stop() == 0
    assert "[DONE]" not in stream.finish()[1]


def test_an_idle_keep_alive_connection_does_not_hold_the_drain_up(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(document(provider.url, "limits: {drain: 1h}\n"))
    with socket.create_connection(("127.0.0.1", sidecar.port)) as idle:
        idle.sendall(b"GET /plain/x HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200")
        assert sidecar.stop() == 0
        assert idle.recv(65536) == b""


def test_the_admin_port_can_ask_for_it(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(document(provider.url))
    assert sidecar.admin("/v1/drain", "POST")["http_status"] == 202
    assert sidecar.wait() == 0


@pytest.mark.parametrize("which", ["MESHD_LISTEN", "MESHD_ADMIN", "MESHD_METRICS", "MESHD_INBOUND", "MESHD_API"])
def test_a_port_that_is_taken_is_named(sidecar: Sidecar, provider: Provider, which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken = f"127.0.0.1:{holder.getsockname()[1]}"
        sidecar.spawn(document(provider.url), "--app", provider.url, **{which: taken})
        assert sidecar.wait() == 1
    assert taken in sidecar.log
    assert re.search(rf"choose another port with .*{which}\b", sidecar.log)
    assert "Traceback" not in sidecar.log
    assert sidecar.running is None


@pytest.mark.parametrize("which", ["MESHD_LISTEN", "MESHD_METRICS", "MESHD_INBOUND"])
def test_an_address_of_another_machine_is_no_port_that_is_taken(
    sidecar: Sidecar, provider: Provider, which: str
) -> None:
    sidecar.spawn(document(provider.url), "--app", provider.url, **{which: "192.0.2.1:7499"})
    assert sidecar.wait() == 1
    assert re.search(rf"192\.0\.2\.1:7499.*Choose another address or port with .*{which}\b", sidecar.log)
    assert "Another meshd" not in sidecar.log


def test_run_with_no_argument_at_all(sidecar: Sidecar) -> None:
    port = free_port()
    sidecar.start(None, MESHD_LISTEN=f"127.0.0.1:{port}")
    assert f"OPENAI_BASE_URL=http://127.0.0.1:{port}/openai/v1" in sidecar.log
    assert f"ANTHROPIC_BASE_URL=http://127.0.0.1:{port}/anthropic" in sidecar.log
    assert sidecar.get("/readyz")[0] == 200
    policy = sidecar.admin("/v1/policy")
    assert policy["source"].endswith("quickstart.yaml")
    assert sidecar.stop() == 0
    assert {path.name for path in sidecar.home.iterdir()} >= {"mesh.key", "ledger.db", "admin.token"}
    assert "Traceback" not in sidecar.log


@pytest.mark.parametrize(
    ("arguments", "env", "words"),
    [
        (("--listen", "nonsense"), {}, "--listen"),
        (("--listen", "127.0.0.1:99999"), {}, "--listen"),
        (("--app", "ftp://x"), {}, "--app"),
        (("--upstream", "x"), {}, "--upstream"),
        (("--store", "kafka://x"), {}, "--store: Kafka keeps no store"),
        ((), {"MESHD_STORE": "redis://x?timeout=soon"}, "--store: timeout=soon"),
        (("--bus", "dynamodb://x"), {}, "--bus: this build has no bus called dynamodb"),
        ((), {"MESHD_BUS": "sqlite:?mode=careless"}, "MESHD_BUS: mode=careless"),
        ((), {"MESHD_DRAIN": "soon"}, "MESHD_DRAIN"),
        ((), {"MESHD_LOG": "loud"}, "MESHD_LOG: 'loud'"),
        ((), {"MESHD_LOG_FORMAT": "runes"}, "runes"),
        ((), {"MESHD_OTLP_ENDPOINT": "nonsense"}, "OTLP"),
        ((), {"MESHD_ADMIN": "0.0.0.0:0"}, "loopback"),
        ((), {"MESHD_TLS_CERT": "/nowhere"}, "MESHD_TLS"),
        ((), {"MESHD_TLS_CERT": "/nowhere", "MESHD_TLS_KEY": "/nowhere"}, "MESHD_TLS_CERT"),
        (("--mesh-key", "/proc/version"), {}, "/proc/version"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple | dict) else "",
)
def test_a_setting_that_cannot_be_used_is_named(
    sidecar: Sidecar, provider: Provider, arguments: tuple[str, ...], env: dict[str, str], words: str
) -> None:
    sidecar.spawn(document(provider.url), *arguments, **env)
    assert sidecar.wait() in (1, 2)
    assert words in sidecar.log
    assert "Traceback" not in sidecar.log
    assert sidecar.running is None


def test_a_killed_daemon_leaves_nothing_that_stops_the_next(
    sidecars: Callable[[str], Sidecar], provider: Provider
) -> None:
    sidecar = sidecars("home").start(document(provider.url))
    old = sidecar.running
    sidecar.kill()
    assert sidecar.running == old
    sidecar.start(document(provider.url))
    assert sidecar.running != old
    assert sidecar.get("/readyz")[0] == 200
