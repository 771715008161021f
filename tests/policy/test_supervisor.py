"""`on_exceeded`: one who can be asked, or a mistake with its place."""

from __future__ import annotations

import pytest

from meshd.policy.document import DocumentFile, LoadError, parse
from tests.filters.calls import UPSTREAMS

KEY = "sha256:" + "0" * 64


def problems(text: str) -> list[str]:
    try:
        parse([DocumentFile("p.yaml", (UPSTREAMS.lstrip("\n") + text).encode())])
    except LoadError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize(
    "section",
    [
        "{agent: writer}",
        "{agent: far, timeout: 5s}",
        '{url: "https://ops.example.com/loops"}',
        "{topic: ops.loops}",
        "{people: true}",
    ],
)
def test_those_who_can_be_asked(section: str) -> None:
    assert problems(f'on_exceeded: {section}\napprovers: {{ana: {{key: "{KEY}"}}}}\n') == []


@pytest.mark.parametrize(
    ("section", "place", "words"),
    [
        ("{}", "10:1", "exactly one of agent, url, topic and people; here is none"),
        ("{people: false}", "10:1", "here is none"),
        ("{agent: writer, topic: x}", "10:1", "here are agent and topic"),
        ("{agent: writr}", "10:22", 'no upstream "writr"'),
        ("{agent: billing}", "10:22", "of kind tool: a supervisor is an agent"),
        ('{url: "ftp://x"}', "10:20", "expected a URL"),
        ('{url: "http://169.254.169.254/x"}', "10:20", ""),
        ("{topic: 'ops.*'}", "10:22", "a topic is words"),
        ("{topic: 'ops..x'}", "10:22", "a topic is words"),
        ("{people: true}", "10:15", "names no approvers"),
        ("{agent: writer, timeout: 0s}", "10:", "must be greater than 0"),
        ("{agent: writer, timeout: never}", "10:", ""),
        ("everybody", "10:", ""),
    ],
)
def test_mistakes(section: str, place: str, words: str) -> None:
    found = problems(f"on_exceeded: {section}\n")
    assert len(found) == 1, found
    assert found[0].startswith(f"p.yaml:{place}"), found
    assert words in found[0]
