"""Chains that cannot be what was meant: links that name nothing or too much, lead back, or are not understood."""

from __future__ import annotations

import importlib.util
import shutil
from typing import TYPE_CHECKING, Final

from meshd.call import Kind
from meshd.policy.matching import GlobSet, is_literal
from meshd.policy.problem import shown
from meshd.policy.report import nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from meshd.filters.chain_settings import Substitute
    from meshd.policy.model import Document, RuleSection
    from meshd.policy.report import Location, Report
    from meshd.upstream import Upstream

_TRANSLATED: Final = frozenset({"openai", "anthropic"})
_SPOKEN_BESIDES: Final = {"ollama": frozenset({"openai", "anthropic"}), "gemini": frozenset({"anthropic"})}
"""What an upstream of a dialect understands besides, below other paths: see `meshd.dialects.table`."""
_CANNED: Final = frozenset({"openai", "anthropic", "ollama", "plain", "mcp", "a2a"})
"""Dialects in which a text can be made an answer."""
_OWN: Final = ("cached", "command", "python", "reply")

_Node = tuple[str, str]
"""An upstream and a model; the model is empty where any is meant."""


class ChainChecker:
    """Checks of one document's `fallback`s; everything is reported, nothing is raised."""

    def __init__(self, document: Document, upstreams: Mapping[str, Upstream], report: Report) -> None:
        self.document = document
        self.upstreams = upstreams
        self.report = report

    def rule(self, here: Location, rule: RuleSection, fitting: Sequence[tuple[str, Kind]]) -> None:
        """Check the chain of one rule, which fits these targets."""
        chain = rule.fallback
        if chain is None:
            return
        here = (*here, "fallback")
        ends = False
        for index, link in enumerate(chain.to):
            at: Location = (*here, "to", index)
            if link in chain.to[:index]:
                self.report.error(at, "this link is in the chain already: it would fail again")
            elif self._is_one(at, link):
                if ends:
                    self.report.warn(at, "comes behind a `reply`, which always answers: it is never reached")
                self._link(at, link, rule, fitting)
            ends = ends or link.reply is not None
        if chain.on == ("budget",) and all(link.upstream or link.model for link in chain.to):
            self.report.error(
                (*here, "on"), "after `budget` only cached, command, python and reply are tried, and there are none"
            )

    def _is_one(self, at: Location, link: Substitute) -> bool:
        kinds = [key for key in _OWN if getattr(link, key) is not None]
        if link.upstream is not None or link.model is not None:
            kinds.insert(0, "upstream" if link.upstream is not None else "model")
        if not kinds:
            self.report.error(at, "this link names nothing: it needs upstream, model, cached, command, python or reply")
        elif len(kinds) > 1:
            self.report.error(at, f"one link is one thing, and this names {' and '.join(kinds)}: make two of it")
        return len(kinds) == 1

    def _link(self, at: Location, link: Substitute, rule: RuleSection, fitting: Sequence[tuple[str, Kind]]) -> None:
        if link.upstream is not None or link.model is not None:
            self._elsewhere(at, link, rule, fitting)
            return
        if link.command is not None and shutil.which(link.command[0]) is None:
            self.report.warn((*at, "command"), f"there is no program {shown(link.command[0])} here", is_key=True)
        if link.python is not None and not _is_importable(link.python.partition(":")[0]):
            self.report.warn((*at, "python"), f"the module of {shown(link.python)} cannot be found here", is_key=True)
        if link.cached is None:
            dialects: set[str] = {
                self.upstreams[name].dialect if name in self.upstreams else "plain" for name, _ in fitting
            }
            able, unable = dialects & _CANNED, dialects - _CANNED
            self._some(at, unable, able, "nothing makes an answer of a text for {}")

    def _elsewhere(
        self, at: Location, link: Substitute, rule: RuleSection, fitting: Sequence[tuple[str, Kind]]
    ) -> None:
        """Check a link that sends the request to another upstream or asks for another model."""
        if link.model is not None and Kind.LLM not in {kind for _, kind in fitting}:
            self.report.error((*at, "model"), "this rule fits no LLM", is_key=True)
            return
        to = self.upstreams.get(link.upstream) if link.upstream is not None else None
        if link.upstream is not None and to is None:
            known = sorted(self.upstreams)
            hint = nearest(link.upstream, known) or f"; there are: {', '.join(known) or 'none'}"
            self.report.error((*at, "upstream"), f"there is no upstream {shown(link.upstream)}{hint}")
            return
        others = [name for name, _ in fitting if not self._is_own(link, rule, name)]
        if not others:
            self.report.error(at, "this link names the target itself: it would fail again")
        elif to is not None:
            able = {name for name in others if name in self.upstreams and understands(to, self.upstreams[name])}
            words = f"{shown(to.name)} ({to.kind.value}, {to.dialect}) does not understand calls to {{}}"
            self._some((*at, "upstream"), set(others) - able, able, words)
            self._keyless((*at, "upstream"), to, sorted(able))

    def _some(self, at: Location, unable: set[str], able: set[str], words: str) -> None:
        """Report what fits nothing the rule fits as an error, and what fits some of it as a warning."""
        said = words.format(", ".join(sorted(unable)))
        if unable and able:
            self.report.warn(at, f"{said}: for these the link is passed over")
        elif unable:
            self.report.error(at, said)

    def _keyless(self, at: Location, to: Upstream, sources: Sequence[str]) -> None:
        for name in sources:
            source = self.upstreams[name]
            is_elsewhere = (to.scheme, to.host, to.port) != (source.scheme, source.host, source.port)
            if is_elsewhere and to.key_header is None and to.kind is Kind.LLM:
                self.report.warn(
                    at,
                    f"{shown(to.name)} has no `key`, and the caller's for {shown(name)} is never sent to another "
                    "address: requests go there without any",
                )
                return

    @staticmethod
    def _is_own(link: Substitute, rule: RuleSection, name: str) -> bool:
        if link.upstream is not None and link.upstream != name:
            return False
        return link.model is None or (rule.match.model is not None and set(rule.match.model) == {link.model})

    # ------------------------------------------------------------------ chains that lead back

    def cycles(self) -> None:
        """Report links by which the chains of several rules lead back to where they began."""
        reported: set[tuple[int, ...]] = set()
        for index in self._chained():
            for node in self._sources(index):
                self._follow(node, (index,), (node,), reported)

    def _follow(
        self, node: _Node, rules: tuple[int, ...], path: tuple[_Node, ...], reported: set[tuple[int, ...]]
    ) -> None:
        rule = self.document.rules[rules[-1]]
        assert rule.fallback is not None
        for number, link in enumerate(rule.fallback.to):
            if link.upstream is None and link.model is None:
                continue
            to: _Node = (link.upstream or node[0], link.model or node[1])
            following = self._deciding(to, rule)
            if following is None or to[0] not in self.upstreams or following == rules[-1]:
                continue
            if to in path:
                loop = tuple(sorted(set(rules)))
                if len(loop) > 1 and loop not in reported:
                    reported.add(loop)
                    way = " -> ".join(shown("/".join(filter(None, one))) for one in (*path[path.index(to) :], to))
                    self.report.error(
                        ("rules", rules[-1], "fallback", "to", number),
                        f"the chains lead back to where they began: {way}. Put these targets into the match of one "
                        "rule with all of them in its chain, which leaves out the one that failed",
                    )
                continue
            self._follow(to, (*rules, following), (*path, to), reported)

    def _chained(self) -> Iterator[int]:
        for index, rule in enumerate(self.document.rules):
            if rule.fallback is not None and not rule.shadow:
                yield index

    def _sources(self, index: int) -> Iterator[_Node]:
        match = self.document.rules[index].match
        models = [model for model in match.model if is_literal(model)] if match.model is not None else [""]
        for name, upstream in self.upstreams.items():
            if (match.target is None or GlobSet(match.target).fits(name)) and (
                match.kind is None or upstream.kind.value in match.kind
            ):
                for model in models:
                    if self._deciding((name, model), self.document.rules[index]) == index:
                        yield name, model

    def _deciding(self, node: _Node, before: RuleSection) -> int | None:
        """Return the rule whose chain holds for a target, for calls that `before` fits too; None where none surely
        does."""
        name, model = node
        upstream = self.upstreams.get(name)
        if upstream is None:
            return None
        for index in self._chained():
            match = self.document.rules[index].match
            if match.target is not None and not GlobSet(match.target).fits(name):
                continue
            if match.kind is not None and upstream.kind.value not in match.kind:
                continue
            if match.model is not None and not (model and GlobSet(match.model).fits(model)):
                continue
            if all(_meet(getattr(match, key), getattr(before.match, key)) for key in ("agent", "operation", "tool")):
                return index
        return None


def _meet(one: Sequence[str] | None, other: Sequence[str] | None) -> bool:
    """Say whether two lists of globs fit a same text, as far as can be seen."""
    if one is None or other is None:
        return True
    return any(GlobSet((a,)).fits(b) or GlobSet((b,)).fits(a) for a in one for b in other)


def understands(to: Upstream, source: Upstream) -> bool:
    """Say whether requests for `source` can be put to `to`, as they are or translated."""
    if (to.kind, to.is_peer) != (source.kind, source.is_peer):
        return False
    if to.dialect == source.dialect:
        return True
    spoken = {to.dialect} | _SPOKEN_BESIDES.get(to.dialect, frozenset())
    said = {source.dialect} | _SPOKEN_BESIDES.get(source.dialect, frozenset())
    return bool(spoken & said) or {to.dialect, source.dialect} <= _TRANSLATED


def _is_importable(module: str) -> bool:
    """Say whether a module can be found. Of the module itself nothing is run, of the packages around it what is in
    their `__init__`."""
    try:
        return importlib.util.find_spec(module) is not None
    except Exception:  # noqa: BLE001 - a package may raise anything while it is looked into
        return False
