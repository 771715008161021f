"""Servers that a policy starts: what loads, and what is wrong with each that does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshd.policy.document import LoadError, Overrides, load

if TYPE_CHECKING:
    from pathlib import Path

    from meshd.policy.compiled import Policy

FINE = "kind: tool, dialect: mcp, process: {command: [server]"


def loaded(folder: Path, upstream: str, **overrides: tuple[str, ...]) -> Policy:
    path = folder / "policy.yaml"
    path.write_text(f"upstreams:\n  files: {{{upstream}}}\n")
    return load([path], overrides=Overrides(**overrides))


def test_the_defaults_confine_it(tmp_path: Path) -> None:
    upstream = loaded(tmp_path, FINE + "}").upstreams["files"]
    process = upstream.process
    assert process is not None
    assert (process.sandbox, process.has_network, process.read, process.write) == ("auto", False, (), ())
    assert upstream.is_bridged
    assert hash(upstream)
    assert not upstream.sends_trace


def test_units_and_lists(tmp_path: Path) -> None:
    more = ", env: {A: b}, env_from: [C, C], memory: 512MB, start_timeout: 2m, idle_timeout: 1h, restart: never"
    process = loaded(tmp_path, FINE + more + "}").upstreams["files"].process
    assert process is not None
    assert (process.env, process.env_from, process.memory_bytes) == ((("A", "b"),), ("C",), 512_000_000)
    assert (process.start_timeout_s, process.idle_timeout_s, process.is_restarted) == (120, 3600, False)


@pytest.mark.parametrize(
    ("upstream", "message"),
    [
        (FINE + ", url: x}", "url"),
        (FINE + "}, url: 'http://127.0.0.1:1'", "either started here or called at a url"),
        ("kind: tool, process: {command: [x]}", "speaks dialect: mcp"),
        ("kind: llm, dialect: mcp, process: {command: [x]}", "only a tool or an agent speaks mcp"),
        (FINE + "}, key: {env: X}", "key says nothing of a server that is started here"),
        (FINE + "}, transport: sse", "transport says nothing of a server that is started here"),
        (FINE + "}, session: true", "session says nothing"),
        ("kind: tool, dialect: mcp, process: {command: []}", "an empty list fits nothing"),
        ("kind: tool, dialect: mcp, process: {command: npx}", "expected a list"),
        ("kind: tool, dialect: mcp, process: {}", "command"),
        (FINE + ", env: {MESHD_STORE: x}}", "is meshd's own"),
        (FINE + ", env_from: [MESHD_STORE]}", "is meshd's own"),
        (FINE + ", env: {LD_PRELOAD: x}}", "steers the loader"),
        (FINE + ", env: {A: b}, env_from: [A]}", "stands in env too"),
        (FINE + ", env: {'A=B': c}}", "expected a text that fits"),
        (FINE + ", read: [relative]}", "expected a text that fits ^/"),
        (FINE + ", read: [/a/../etc]}", "no dot segments"),
        (FINE + ", write: [//]}", "name the folders"),
        (FINE + ", read: [/proc/1]}", "name the folders"),
        (FINE + ", sandbox: none, network: true}", "without a sandbox nothing holds to network"),
        (FINE + ", sandbox: docker}", "expected 'auto', 'bwrap'"),
        (FINE + ", memory: 1kB}", "greater than or equal to 16777216"),
        (FINE + ", children: 0}", "greater than or equal to 1"),
        ("kind: tool, url: 'http://127.0.0.1:1/sse', transport: sse", "only a server of dialect: mcp"),
        ("kind: tool, dialect: mcp, url: 'http://169.254.169.254/sse', transport: sse", "metadata service"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, upstream: str, message: str) -> None:
    with pytest.raises(LoadError) as caught:
        loaded(tmp_path, upstream)
    assert message in "\n".join(str(problem) for problem in caught.value.problems)


def test_a_url_on_the_command_line_takes_its_place(tmp_path: Path) -> None:
    upstream = loaded(tmp_path, FINE + "}", upstreams=("files=http://127.0.0.1:9001",)).upstreams["files"]
    assert upstream.process is None
    assert (upstream.dialect, upstream.port) == ("mcp", 9001)


def test_no_command_comes_from_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(LoadError):
        loaded(tmp_path, FINE + "}", upstreams=("files=process,command=sh",))
