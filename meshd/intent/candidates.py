"""Who could serve what is wanted: the agents of the policy, with all that is known of each."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from meshd.call import Kind
from meshd.discovery.entry import Origin, Sort
from meshd.discovery.ranking import Candidate, words_of
from meshd.discovery.told import Told

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meshd.discovery.entry import Entry
    from meshd.policy.compiled import Policy
    from meshd.upstream import Upstream

ENTRIES_MAX: Final = 512
"""Of one agent, what is looked at: skills and tools."""
_NOTHING: Final = Told()


def candidates_of(policy: Policy, known: Mapping[str, Iterable[Entry]]) -> list[Candidate]:
    """Return a candidate for each agent of the policy, in its order. `known` is what the catalogue has, by owner.

    What only the catalogue has is none: the policy has no address for it, so nobody here can call it.
    """
    examples: dict[str, list[str]] = {}
    for label, texts in policy.intents.examples:
        examples.setdefault(label if label in policy.upstreams else words_of(label), []).extend(texts)
    found = []
    for name, upstream in policy.upstreams.items():
        if upstream.kind is Kind.AGENT:
            told = policy.told.get(name)
            entries = islice(known.get(name, ()), ENTRIES_MAX)
            # What the policy says is in the catalogue a moment after it is in force; and it goes before what is said
            # by the policies of other sidecars.
            kept = [one for one in entries if told is None or one.origin is not Origin.POLICY]
            found.append(_candidate(upstream, told or _NOTHING, kept, examples))
    return found


def _candidate(upstream: Upstream, told: Told, entries: list[Entry], examples: Mapping[str, list[str]]) -> Candidate:
    name = upstream.name
    own = next((one for one in entries if one.sort is Sort.AGENT), None)
    texts = [*told.intents, *examples.get(name, ())]
    for intent in told.intents:
        if (words := words_of(intent)) != name:
            texts += examples.get(words, ())
    claimed: list[str] = list(own.intents) if own is not None else []
    about = [told.description]
    if own is not None and own.description not in about:
        about.append(own.description)
    tools = [f"{tool} {said}" for tool, said in told.tools]
    for entry in entries:
        if entry.sort is Sort.SKILL:
            claimed += [entry.title or entry.name, *entry.intents]
            about.append(entry.description)
        elif entry.sort is Sort.TOOL:
            tools.append(f"{entry.name} {entry.description}")
    return Candidate(
        name,
        own.title if own is not None else "",
        ". ".join(text for text in about if text),
        tuple(dict.fromkeys(texts)),
        tuple(text for text in dict.fromkeys(claimed) if text not in texts),
        tuple(dict.fromkeys(tools)),
    )
