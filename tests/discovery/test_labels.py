"""Labels of deployments: what is read of them, and what nonsense in them does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.discovery.labels import INTENTS_MAX, intents_of, labels_in


@pytest.mark.parametrize(
    ("labels", "intents"),
    [
        ({"ai.acme.intent": "market_analysis,technical_audit"}, ("market_analysis", "technical_audit")),
        ({"ai.acme.intent": " a , ,b,a"}, ("a", "b")),
        ({"ai.acme.intent": "a", "ai.other.intent": "b,a", "ai.acme.team": "c"}, ("a", "b")),
        ({"ai.acme.intents": "a", "intent": "b", "xintent": "c"}, ()),
        ({".intent": "a"}, ("a",)),
        ({"ai.acme.intent": "", "ai.b.intent": ",,,"}, ()),
        ({"ai.acme.intent": "x" * 257 + ",a\x00b,\u202ec,d"}, ("d",)),
    ],
)
def test_what_is_read(labels, intents):
    assert intents_of(labels) == intents


def test_how_many_are_read():
    assert len(intents_of({"x.intent": ",".join(f"i{at}" for at in range(1000))})) == INTENTS_MAX


def test_a_file_of_the_downward_api():
    text = (
        'app="researcher"\n'
        'ai.acme.intent="market_analysis"\n'
        'kubernetes.io/config.seen="2026-01-01T00:00:00Z"\n'
        'ai.acme/x.intent="technical_audit,\\"quoted\\",caf\\u00e9, \\x41\\101"\n'
    )
    assert labels_in(text) == {
        "app": "researcher",
        "ai.acme.intent": "market_analysis",
        "kubernetes.io/config.seen": "2026-01-01T00:00:00Z",
        "ai.acme/x.intent": 'technical_audit,"quoted",caf\u00e9, AA',
    }


@pytest.mark.parametrize(
    "line", ["", "a", "a=", 'a="', "a=b", '="b"', 'a="b" c', 'a b="c"', 'a="\\q"', 'a="\\u12"', "\x00"]
)
def test_a_line_that_is_none_leaves_the_others(line):
    assert labels_in(f'x.intent="one"\n{line}\ny.intent="two"') == {"x.intent": "one", "y.intent": "two"}


@given(st.text())
def test_any_text_is_read(text):
    assert all(isinstance(value, str) for value in labels_in(text).values())
    intents_of(labels_in(text))
