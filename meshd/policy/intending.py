"""What a document says of finding an agent by what is wanted, made ready: examples are learned from here, at load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.call import Kind
from meshd.discovery.intent_terms import IntentTerms
from meshd.policy.problem import shown
from meshd.policy.report import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshd.discovery.intents import Router
    from meshd.policy.model import Document
    from meshd.policy.report import Report
    from meshd.upstream import Upstream

HERE: Final = ("intents",)
EXAMPLES_MAX: Final = 4096
"""See `meshd.discovery.intents`."""
LEARNED_MIN: Final = 3
"""Examples of an intent from which on something can be learned from them: each in turn is left out."""


def check_intents(document: Document, upstreams: Mapping[str, Upstream], report: Report) -> None:
    """Report what types cannot say of `intents`."""
    name = document.intents.fallback
    if name is not None:
        upstream = upstreams.get(name)
        if upstream is None:
            agents = sorted(other.name for other in upstreams.values() if other.kind is Kind.AGENT)
            hint = nearest(name, agents) or f"; there are: {', '.join(agents) or 'none'}"
            report.error((*HERE, "fallback"), f"there is no upstream {shown(name)}{hint}")
        elif upstream.kind is not Kind.AGENT:
            words = f"{shown(name)} is of kind {upstream.kind.value}: what is wanted is served by an agent"
            report.error((*HERE, "fallback"), words)
    count = sum(1 + len(texts) for texts in document.intents.examples.values())
    if count > EXAMPLES_MAX:
        words = f"{count} examples, with their names, are too many to learn from at load: {EXAMPLES_MAX} at most"
        report.error((*HERE, "examples"), words, is_key=True)
    for label, examples in document.intents.examples.items():
        if label in upstreams and upstreams[label].kind is not Kind.AGENT:
            words = f"{shown(label)} is of kind {upstreams[label].kind.value}: examples are of agents, or of intents"
            report.error((*HERE, "examples", label), words, is_key=True)
        elif not examples:
            report.error((*HERE, "examples", label), "an empty list teaches nothing: write down what people would say")


def intent_terms(document: Document) -> IntentTerms:
    """Return what `intents` says, of a document without problems."""
    section = document.intents
    return IntentTerms(
        fallback=section.fallback or "",
        threshold=section.threshold,
        margin=section.margin,
        fan_out=section.fan_out,
        examples=tuple(section.examples.items()),
        router=_learned(section.examples),
    )


def _learned(examples: Mapping[str, tuple[str, ...]]) -> Router | None:
    enough = {label: texts for label, texts in examples.items() if len(texts) >= LEARNED_MIN}
    if len(enough) < 2:
        return None  # One alone is always right, as far as it knows.
    from meshd.discovery.intents import Intent, Router

    return Router([Intent(label, texts) for label, texts in enough.items()])
