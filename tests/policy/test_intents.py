"""What a document may say of intents, and what is wrong with the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshd.discovery.ranking import MARGIN, THRESHOLD
from meshd.policy.document import load
from meshd.policy.problem import LoadError

if TYPE_CHECKING:
    from pathlib import Path

    from meshd.policy.compiled import Policy

HEAD = "upstreams:\n  a: {url: http://a, kind: agent, %s}\n  t: {url: http://t, kind: tool}\n"


def loaded(tmp_path: Path, text: str, said: str = "intents: [x]") -> Policy:
    path = tmp_path / "policy.yaml"
    path.write_text(HEAD % said + text)
    return load([path])


def test_defaults(tmp_path: Path) -> None:
    terms = loaded(tmp_path, "").intents
    assert (terms.fallback, terms.threshold, terms.margin, terms.fan_out) == ("", THRESHOLD, MARGIN, 1)
    assert (terms.examples, terms.router) == ((), None)


def test_labels_are_intents(tmp_path: Path) -> None:
    said = 'intents: [x], labels: {ai.acme.intent: "market_analysis, x", team: red}'
    assert loaded(tmp_path, "", said).told["a"].intents == ("x", "market_analysis")
    only = loaded(tmp_path, "", 'labels: {ai.acme.intent: "market_analysis"}')
    assert only.told["a"].intents == ("market_analysis",)


def test_examples_are_learned_from_three_of_two_on(tmp_path: Path) -> None:
    few = loaded(tmp_path, "intents: {examples: {a: [one, two, three], x: [four, five]}}\n").intents
    assert few.router is None
    assert dict(few.examples) == {"a": ("one", "two", "three"), "x": ("four", "five")}
    enough = loaded(tmp_path, "intents: {examples: {a: [one cat, two, three], x: [four dogs, five, six]}}\n").intents
    assert enough.router is not None
    assert enough.router.names == ("a", "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("intents: {fallback: b}", '4:21: there is no upstream "b"; there are: a'),
        ("intents: {fallback: t}", '4:21: "t" is of kind tool'),
        ("intents: {threshold: 0}", "4:22: must be greater than 0"),
        ("intents: {threshold: 1.5}", "4:22: must be less than or equal to 1"),
        ("intents: {margin: -1}", "4:19: must be greater than or equal to 0"),
        ("intents: {fan_out: 0}", "4:20: must be greater than or equal to 1"),
        ("intents: {fan_out: 17}", "4:20: must be less than or equal to 16"),
        ("intents: {fallbak: a}", "4:11: unknown key"),
        ("intents: {examples: {t: [x]}}", '4:22: "t" is of kind tool'),
        ("intents: {examples: {a: []}}", "4:25: an empty list"),
        ("intents: {examples: {a: x}}", "4:25: expected a list"),
        ("intents: []", "4:10: expected a map"),
    ],
)
def test_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LoadError) as told:
        loaded(tmp_path, text + "\n")
    assert message in str(told.value)


def test_too_many_examples(tmp_path: Path) -> None:
    many = ", ".join(f"l{at}: [{', '.join(f'e{at}x{n}' for n in range(64))}]" for at in range(64))
    with pytest.raises(LoadError, match="4160 examples, with their names, are too many"):
        loaded(tmp_path, f"intents: {{examples: {{{many}}}}}\n")


def test_the_name_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("upstreams: {intent: {url: http://a, kind: agent}}\n")
    with pytest.raises(LoadError, match='"intent" is taken by meshd itself'):
        load([path])
