"""`meshd exec`: what a program is given, and how nonsense is met."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from meshd import running as registry
from meshd.cli.exec import Limits, api_environment, command, environment, run_address, run_token
from meshd.cli.exec_daemon import Place
from meshd.mesh_key import MeshKeys
from meshd.running import Door, Running
from meshd_sdk.context import NO_CEILING, Audience, verify

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROOT = "http://127.0.0.1:7400/w/token"
DOORS = (
    Door("groq", "llm", "openai"),
    Door("openai", "llm", "openai"),
    Door("claude", "llm", "anthropic"),
    Door("web-search", "tool", "plain"),
)


def made(doors: tuple[Door, ...] = DOORS, environ: dict[str, str] | None = None, **options: Any) -> dict[str, str]:
    return environment(environ or {}, Running(pid=2, listen="127.0.0.1:7400", doors=doors), ROOT, "w1", **options)


def test_the_sdks_are_pointed_at_the_run() -> None:
    environ = made()
    assert environ["OPENAI_BASE_URL"] == environ["OPENAI_API_BASE"] == f"{ROOT}/openai/v1"
    assert environ["ANTHROPIC_BASE_URL"] == f"{ROOT}/claude"
    assert (environ["MESHD_URL"], environ["MESHD_WORKFLOW"]) == (ROOT, "w1")


@pytest.mark.parametrize(
    ("dialect", "variable", "key"),
    [
        ("anthropic", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY"),
        ("gemini", "GOOGLE_GEMINI_BASE_URL", "GEMINI_API_KEY"),
        ("ollama", "OLLAMA_HOST", "OLLAMA_API_KEY"),
    ],
)
def test_each_dialects_own_client_is_pointed_at_the_run(dialect: str, variable: str, key: str) -> None:
    environ = made((Door("mine", "llm", dialect), Door("keyed", "llm", dialect, is_keyed=True)))
    assert environ[variable] == f"{ROOT}/mine"
    assert key not in environ
    assert made((Door("keyed", "llm", dialect, is_keyed=True),))[key] == "meshd-attaches-it"
    assert variable not in made((Door("mine", "tool", dialect),))


def test_every_upstream_has_a_variable() -> None:
    environ = made()
    assert environ["MESHD_URL_WEB_SEARCH"] == f"{ROOT}/web-search"
    assert environ["MESHD_URL_GROQ"] == f"{ROOT}/groq"


def test_the_first_llm_of_a_dialect_serves_where_none_has_its_name() -> None:
    assert made((DOORS[0], Door("other", "llm", "openai")))["OPENAI_BASE_URL"] == f"{ROOT}/groq/v1"


def test_nothing_but_an_llm_is_offered_to_an_sdk() -> None:
    environ = made((Door("openai", "tool", "openai"),))
    assert "OPENAI_BASE_URL" not in environ
    assert "ANTHROPIC_BASE_URL" not in environ


def test_a_version_in_the_upstreams_own_url_is_not_doubled() -> None:
    assert made((Door("local", "llm", "openai", base_path="/v1"),))["OPENAI_BASE_URL"] == f"{ROOT}/local"


def test_a_daemon_of_which_only_the_address_is_known_serves_the_well_known_ones() -> None:
    environ = made(())
    assert environ["OPENAI_BASE_URL"] == f"{ROOT}/openai/v1"
    assert environ["ANTHROPIC_BASE_URL"] == f"{ROOT}/anthropic"
    assert environ["GOOGLE_GEMINI_BASE_URL"] == f"{ROOT}/gemini"
    assert environ["OLLAMA_HOST"] == f"{ROOT}/ollama"


def test_loopback_never_goes_to_a_companys_proxy() -> None:
    environ = made(environ={"NO_PROXY": "corp.example", "HTTPS_PROXY": "http://proxy.corp.example"})
    assert environ["NO_PROXY"] == "corp.example,127.0.0.1,localhost,::1"
    assert environ["no_proxy"] == "127.0.0.1,localhost,::1"
    assert environ["HTTPS_PROXY"] == "http://proxy.corp.example"
    assert "HTTP_PROXY" not in environ


def test_http_proxy_is_set_on_demand() -> None:
    environ = made(is_proxied=True)
    assert environ["HTTP_PROXY"] == environ["http_proxy"] == "http://127.0.0.1:7400"


@pytest.mark.parametrize(("is_keyed", "expected"), [(True, "meshd-attaches-it"), (False, None)])
def test_a_key_that_meshd_attaches_is_stood_in_for(is_keyed: bool, expected: str | None) -> None:
    doors = (Door("openai", "llm", "openai", is_keyed=is_keyed),)
    assert made(doors).get("OPENAI_API_KEY") == expected
    assert made(doors, {"OPENAI_API_KEY": "mine"})["OPENAI_API_KEY"] == "mine"


@pytest.mark.parametrize("limits", [Limits(), Limits(50_000), Limits(None, 5_000_000), Limits(50_000, 250_000)])
def test_the_address_ties_calls_to_the_workflow(tmp_path: Path, limits: Limits) -> None:
    place = Place(Running(pid=2, listen="127.0.0.1:7400", agent="ann"), tmp_path, is_private=False)
    keys = MeshKeys(tmp_path / "mesh.key")
    root = run_address(place, "nightly", limits, keys)
    base, _, token = root.partition("/w/")
    verified = verify(token.encode(), keys.ring, now_s=time.time())
    assert base == "http://127.0.0.1:7400"
    assert verified.audience is Audience.RUN
    context = verified.context
    assert (context.workflow, context.agent, context.account) == ("nightly", "ann", "workflow/nightly")
    assert context.ceiling_microdollars == limits.microdollars
    assert context.ceiling == (NO_CEILING if limits.tokens is None and limits.microdollars else limits.tokens)
    shown = verify(run_token(place, "nightly", limits, keys).encode(), keys.ring, now_s=time.time())
    assert (shown.audience, shown.context) == (Audience.LOCAL, context)


@pytest.mark.parametrize(
    ("api", "path", "expected"),
    [
        ("127.0.0.1:7402", "/run/meshd/api.sock", "127.0.0.1:7402"),
        ("", "/run/meshd/api.sock", "unix:/run/meshd/api.sock"),
        ("", "", None),
    ],
)
def test_the_sdk_is_told_where_the_api_is(api: str, path: str, expected: str | None) -> None:
    made = api_environment(Running(pid=2, listen="127.0.0.1:7400", api=api, api_socket=path), "token")
    assert made["MESHD_CONTEXT"] == "token"
    assert made.get("MESHD_API") == expected


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(command, list(arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--budget", "0", "--", "true"],
        ["--budget", "-5", "--", "true"],
        ["--budget", "1e9", "--", "true"],
        ["--budget", "9" * 40, "--", "true"],
        ["--dollars", "0", "--", "true"],
        ["--dollars", "-5", "--", "true"],
        ["--dollars", "five", "--", "true"],
        ["--dollars", "0.0000001", "--", "true"],
        ["--dollars", "nan", "--", "true"],
        ["--dollars", "9" * 40, "--", "true"],
        ["--workflow", "", "--", "true"],
        ["--workflow", "two words", "--", "true"],
        ["--workflow", "x" * 65, "--", "true"],
        ["--workflow", "../../etc", "--", "true"],
        ["--policy", "no-such-file.yaml", "--", "true"],
        ["--no-such-option", "--", "true"],
    ],
)
def test_nonsense_on_the_command_line_is_a_usage_error(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert "Usage:" in result.output


def test_a_command_that_is_not_there_is_127_and_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHD_HOME", str(tmp_path / "home"))
    result = invoke("--", "no-such-command-anywhere")
    assert result.exit_code == 127
    assert "no-such-command-anywhere: command not found" in result.stderr
    assert not (tmp_path / "home").exists()


def test_a_file_that_cannot_be_run_is_126(tmp_path: Path) -> None:
    path = tmp_path / "plain.txt"
    path.write_text("no program")
    assert invoke("--", str(path)).exit_code == 126


def test_a_setting_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHD_LISTEN", "nowhere:at-all")
    result = invoke("--", "true")
    assert result.exit_code == 125
    assert "MESHD_LISTEN" in result.stderr


def test_a_state_directory_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MESHD_HOME", str(tmp_path / "file" / "home"))
    result = invoke("--", "true")
    assert result.exit_code == 125
    assert str(tmp_path / "file" / "home") in result.stderr


def test_help_says_that_nothing_is_unforgeable_within_one_user() -> None:
    text = " ".join(invoke("--help").output.split())
    assert "Nothing is unforgeable within one user" in text
    assert "meshd exec --budget 50k -- python agent.py" in text


def test_the_module_loads_no_server() -> None:
    program = "import sys, meshd.cli.exec, meshd.cli.exec_daemon, meshd.cli.exec_ledger; print(*sys.modules)"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    loaded = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    heavy = {"aiohttp", "pydantic", "msgspec", "opentelemetry", "grpc", "sqlite3", "asyncio", "yaml"}
    assert heavy & {name.partition(".")[0] for name in loaded.stdout.split()} == set()


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_daemon_that_runs_is_found_as_it_was_written(tmp_path: Path, listening: str) -> None:
    written = Running(pid=os.getpid(), listen=listening, started_s=1.5, admin="a:1", metrics="b:2", doors=DOORS)
    registry.write(tmp_path, written)
    assert registry.find(tmp_path) == written
    assert (tmp_path / "daemon.json").stat().st_mode & 0o777 == 0o600
    registry.remove(tmp_path, os.getpid() + 1)
    assert registry.read(tmp_path) == written
    registry.remove(tmp_path, os.getpid())
    assert list(tmp_path.iterdir()) == []


def test_a_daemon_that_is_the_first_process_of_a_container_is_found(tmp_path: Path, listening: str) -> None:
    written = Running(pid=1, listen=listening)
    registry.write(tmp_path, written)
    assert registry.find(tmp_path) == written


def test_a_daemon_that_was_killed_is_not_found(tmp_path: Path, listening: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    registry.write(tmp_path, Running(pid=os.getpid(), listen=address))
    assert registry.find(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        json.dumps({"pid": 5}).encode(),
        json.dumps({"pid": "5", "listen": "127.0.0.1:1"}).encode(),
        json.dumps({"pid": 0, "listen": "127.0.0.1:1"}).encode(),
        json.dumps({"pid": -1, "listen": "127.0.0.1:1"}).encode(),
        json.dumps({"pid": 5, "listen": 7400}).encode(),
        json.dumps({"pid": 5, "listen": "127.0.0.1:1", "doors": 3}).encode(),
        json.dumps({"pid": 5, "listen": "127.0.0.1:1", "doors": [{"name": "x"}]}).encode(),
        json.dumps({"pid": 5, "listen": "127.0.0.1:1", "doors": [{"name": 1, "kind": "llm", "dialect": "x"}]}).encode(),
    ],
)
def test_a_file_that_is_not_ours_is_no_daemon(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "daemon.json").write_bytes(content)
    assert registry.read(tmp_path) is None
    assert registry.find(tmp_path) is None


@pytest.mark.parametrize("address", ["", "x", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:99999", "::::1", "a" * 300 + ":1"])
def test_an_address_that_is_none_accepts_nothing(address: str) -> None:
    assert not registry.accepts(address)
