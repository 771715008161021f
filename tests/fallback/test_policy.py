"""Chains that are refused at load, by line and column, and those that load with a word of warning."""

from __future__ import annotations

import pytest

from meshd.policy.document import DocumentFile, LoadError, parse

UPSTREAMS = """\
upstreams:
  a: {url: "https://a.example.com", kind: llm, dialect: openai}
  b: {url: "https://b.example.com", kind: llm, dialect: openai, key: {env: B}}
  c: {url: "https://c.example.com", kind: llm, dialect: anthropic, key: {env: C}}
  g: {url: "https://g.example.com", kind: llm, dialect: gemini, key: {env: G}}
  bare: {url: "https://bare.example.com", kind: llm, dialect: openai}
  t: {url: "http://127.0.0.1:9", kind: tool}
  u: {url: "http://127.0.0.1:9", kind: tool}
rules:
"""


def problems(rules: str) -> list[str]:
    with pytest.raises(LoadError) as raised:
        parse([DocumentFile("p", (UPSTREAMS + rules).encode())])
    return [str(problem) for problem in raised.value.problems]


def warnings(rules: str) -> list[str]:
    loaded = parse([DocumentFile("p", (UPSTREAMS + rules).encode())])
    return [one for one in loaded.warnings if "no budget" not in one]


MISTAKES = {
    "no such upstream": (
        "  - {match: {target: a}, fallback: {to: [{upstream: bb}]}}",
        '10:53: there is no upstream "bb"',
    ),
    "nothing": ("  - {match: {target: a}, fallback: {to: [{timeout: 1s}]}}", "10:42: this link names nothing"),
    "nothing, alone": ("  - {match: {target: a}, fallback: {to: {timeout: 1s}}}", "this link names nothing"),
    "two things": (
        "  - {match: {target: a}, fallback: {to: [{upstream: b, reply: x}]}}",
        "10:42: one link is one thing, and this names upstream and reply",
    ),
    "two heuristics": (
        "  - {match: {target: a}, fallback: {to: [{cached: 1s, reply: x}]}}",
        "10:42: one link is one thing, and this names cached and reply",
    ),
    "its own target": (
        "  - {match: {target: a}, fallback: {to: [{upstream: a}]}}",
        "10:42: this link names the target itself",
    ),
    "its own model": (
        "  - {match: {target: a, model: m}, fallback: {to: [{model: m}]}}",
        "10:52: this link names the target itself",
    ),
    "twice": (
        "  - {match: {target: a}, fallback: {to: [{upstream: b}, {upstream: b}]}}",
        "10:57: this link is in the chain already",
    ),
    "another kind": (
        "  - {match: {target: t}, fallback: {to: [{upstream: a}]}}",
        '10:53: "a" (llm, openai) does not understand calls to t',
    ),
    "no translation": (
        "  - {match: {target: a}, fallback: {to: [{upstream: g}]}}",
        '10:53: "g" (llm, gemini) does not understand calls to a',
    ),
    "a model of a tool": ("  - {match: {target: t}, fallback: {to: [{model: m}]}}", "10:43: this rule fits no LLM"),
    "a text for gemini": (
        "  - {match: {target: g}, fallback: {to: [{reply: x}]}}",
        "10:42: nothing makes an answer of a text for gemini",
    ),
    "nothing is free": (
        "  - {match: {target: a}, fallback: {to: [{upstream: b}], on: [budget]}}",
        "10:62: after `budget` only cached, command, python and reply are tried",
    ),
    "a loop over two rules": (
        (
            "  - {match: {target: a}, fallback: {to: [{upstream: b}]}}\n"
            "  - {match: {target: b}, fallback: {to: [{reply: x}, {upstream: a}]}}"
        ),
        '11:54: the chains lead back to where they began: "a" -> "b" -> "a"',
    ),
    "a loop over three rules": (
        (
            "  - {match: {target: a}, fallback: {to: [{upstream: b}]}}\n"
            "  - {match: {target: b}, fallback: {to: [{upstream: c}]}}\n"
            "  - {match: {target: c}, fallback: {to: [{upstream: a}]}}"
        ),
        'the chains lead back to where they began: "a" -> "b" -> "c" -> "a"',
    ),
    "a loop over models": (
        (
            "  - {match: {target: a, model: m}, fallback: {to: [{model: n}]}}\n"
            "  - {match: {target: a, model: n}, fallback: {to: [{model: m}]}}"
        ),
        'the chains lead back to where they began: "a/m" -> "a/n" -> "a/m"',
    ),
    "an empty chain": ("  - {match: {target: a}, fallback: {to: []}}", "an empty list fits nothing"),
    "no text": ('  - {match: {target: a}, fallback: {to: [{reply: ""}]}}', "at least 1"),
    "a python path": ("  - {match: {target: a}, fallback: {to: [{python: run}]}}", "expected a text that fits"),
    "an unknown cause": (
        "  - {match: {target: a}, fallback: {to: [{reply: x}], on: [4xx]}}",
        "expected 'connect', 'reset'",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_chain_that_cannot_be_meant_is_refused_at_its_place(name: str) -> None:
    rules, expected = MISTAKES[name]
    found = problems(rules)
    assert any(expected in one for one in found), found
    assert len(found) == 1


def test_one_rule_for_several_targets_may_name_them_all() -> None:
    assert warnings("  - {match: {target: [a, b]}, fallback: {to: [{upstream: b}, {upstream: a}, {reply: x}]}}") == [
        (
            'p:10:73: "a" has no `key`, and the caller\'s for "b" is never sent to another address: requests go there '
            "without any"
        )
    ]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("  - {match: {target: a}, fallback: {to: [{upstream: bare}]}}", '10:53: "bare" has no `key`'),
        ("  - {match: {target: a}, fallback: {to: [{command: [no-such-program]}]}}", 'there is no program "no-such'),
        ("  - {match: {target: a}, fallback: {to: [{python: \"no.such:run\"}]}}", "cannot be found here"),
        ("  - {match: {target: a}, fallback: {to: [{reply: x}, {cached: 1s}]}}", "it is never reached"),
        ("  - {match: {kind: llm}, fallback: {to: [{upstream: b}]}}", "does not understand calls to g: for these"),
        ("  - {match: {target: [a, g]}, fallback: {to: [{reply: x}]}}", "text for gemini: for these"),
    ],
)  # fmt: skip
def test_what_loads_and_may_not_be_meant_is_said(rules: str, expected: str) -> None:
    found = warnings(rules)
    assert any(expected in one for one in found), found


@pytest.mark.parametrize(
    "rules",
    [
        "  - {match: {target: a}, fallback: {to: [{upstream: b}]}}",
        "  - {match: {target: a}, fallback: {to: [{upstream: c}]}}",
        "  - {match: {target: c}, fallback: {to: [{upstream: b}]}}",
        "  - {match: {target: a}, fallback: {to: {model: m}}}",
        "  - {match: {target: t}, fallback: {to: [{upstream: u}]}}",
        (
            "  - {match: {target: a, agent: x}, fallback: {to: [{upstream: b}]}}\n"
            "  - {match: {target: b, agent: y}, fallback: {to: [{upstream: c}]}}"
        ),
        '  - {match: {target: a}, fallback: {to: [{python: "tests.fallback.heuristics:shout"}]}}',
    ],
)
def test_honest_chains_load_without_a_word(rules: str) -> None:
    assert warnings(rules) == []
