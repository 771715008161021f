"""The gateway in a policy: where it is, what its servers are called by, and what is said of a mistake."""

from __future__ import annotations

from typing import Any

import pytest

from meshd.policy.document import DocumentFile, LoadError, parse


def load(text: str) -> Any:
    return parse([DocumentFile("p.yaml", text.encode())])


def policy(upstreams: str, more: str = "") -> Any:
    return load(f"upstreams:\n{upstreams}\n{more}")


ONE = '  one: {url: "http://127.0.0.1:1", kind: tool, dialect: mcp%s}'
TWO = '  two.x: {url: "http://127.0.0.1:2/v1", kind: tool, dialect: mcp%s}'


def test_it_is_there_with_the_first_server() -> None:
    made = policy(f"{ONE % ''}\n{TWO % ''}")
    assert made.gateway.name == "mcp"
    assert [(one.prefix, one.endpoint) for one in made.upstreams.values()] == [("one__", "/mcp"), ("two_x__", "/v1")]
    assert "mcp" not in made.upstreams
    assert policy('  x: {url: "http://127.0.0.1:1", kind: tool}').gateway is None
    assert load("{}").gateway is None


def test_prefix_and_endpoint() -> None:
    keys = ', prefix: "", endpoint: /in'
    made = policy(f"{ONE % keys}\n{TWO % ', prefix: x, endpoint: /in'}")
    assert [(one.prefix, one.endpoint) for one in made.upstreams.values()] == [("", "/in"), ("x__", "/v1/in")]


def test_rules_may_name_it() -> None:
    rules = "rules: [{match: {target: mcp, operation: tools/list}, deny: nothing is listed}]"
    assert policy(ONE % "", rules).rules
    with pytest.raises(LoadError, match="no upstream fits"):
        policy('  x: {url: "http://127.0.0.1:1", kind: tool}', rules)


def test_a_name_that_is_taken_is_said() -> None:
    made = policy(f"{ONE % ''}\n" + '  mcp: {url: "http://127.0.0.1:3", kind: tool, dialect: mcp}')
    assert made.gateway is None
    assert any("there is no gateway" in warning for warning in made.warnings)


@pytest.mark.parametrize(
    ("upstreams", "words"),
    [
        (f"{ONE % ', prefix: a'}\n{TWO % ', prefix: a'}", "set another prefix"),
        ('  x: {url: "http://127.0.0.1:1", kind: tool, prefix: a}', "stands behind the gateway"),
        ('  x: {url: "http://127.0.0.1:1", kind: tool, endpoint: /a}', "stands behind the gateway"),
        (ONE % ', prefix: "a b"', "expected a text that fits"),
        (ONE % ", endpoint: in", "expected a text that fits"),
        (ONE % ", endpoint: /a?b", "expected a text that fits"),
        (ONE % ", endpoint: /a/../b", "expected a text that fits"),
    ],
)
def test_mistakes(upstreams: str, words: str) -> None:
    with pytest.raises(LoadError, match=words):
        policy(upstreams)
