"""What a policy says of an agent's card."""

from __future__ import annotations

import pytest

from meshd.policy.document import DocumentFile, parse
from meshd.policy.problem import LoadError

AGENT = 'upstreams: {{a: {{url: "http://h:1", kind: agent, dialect: {dialect}, card: {card}}}}}'


def loaded(card: str, dialect: str = "a2a") -> object:
    text = AGENT.format(card=card, dialect=dialect)
    return parse([DocumentFile("p", text.encode())]).upstreams["a"]


def test_it_is_compiled() -> None:
    made = loaded('{keys: [/k], require_signature: true, origins: ["https://a.example", "http://b.example:81"]}')

    assert made.card_keys == ("/k",)  # type: ignore[attr-defined]
    assert made.is_card_signed  # type: ignore[attr-defined]
    assert made.card_origins == (("a.example", 443), ("b.example", 81))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("card", "dialect", "words"),
    [
        ("{require_signature: true}", "a2a", "only be required with the keys"),
        ("{keys: [/k]}", "mcp", "only an agent of dialect: a2a has a card"),
        ('{origins: ["https://a.example/path"]}', "a2a", "a scheme, a host and a port"),
        ('{origins: ["a.example"]}', "a2a", "expected a URL"),
        ('{origins: ["http://169.254.169.254"]}', "a2a", "metadata"),
        ("{keys: []}", "plain", ""),
        ("{keys: [1]}", "a2a", "text"),
        ("{jku: x}", "a2a", "jku"),
    ],
)
def test_what_cannot_be_meant(card: str, dialect: str, words: str) -> None:
    if not words:
        loaded(card, dialect)
        return
    with pytest.raises(LoadError, match=words):
        loaded(card, dialect)
