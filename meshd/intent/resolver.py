"""Routing by intent for one sidecar: what the way of a call asks where a call names nobody.

Nothing here waits. What was worked out for some words is kept while the policy and the catalogue stay as they are;
whether an agent may and can be called is looked at for each call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.call import Kind, Target
from meshd.dialects.scatter import Scatter
from meshd.discovery.intent_terms import IntentTerms
from meshd.discovery.ranking import Ranking
from meshd.intent.asking import asked
from meshd.intent.barring import Health, barred_by
from meshd.intent.candidates import candidates_of
from meshd.intent.deciding import Bar, Choice, decide, refusal
from meshd.policy.addressing import INTENT, AddressBook, Located

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call
    from meshd.discovery.catalogue import Catalogue
    from meshd.discovery.ranking import Candidate, Score
    from meshd.intent.deciding import Barred, Decision
    from meshd.policy.compiled import Policy
    from meshd.wire.message import Request

TARGET: Final = b"x-meshd-intent-target"
SCORE: Final = b"x-meshd-intent-score"
CHOICE: Final = b"x-meshd-intent-choice"
KNOWN_MAX: Final = 1024
KNOWN_CHARACTERS_MAX: Final = 200
"""Longer words are ranked, and not remembered: callers write them, and would fill the memory."""


class Seen(NamedTuple):
    """One agent, as it was looked at."""

    score: Score
    barred: Barred | None


class Resolver:
    """One for the process, or for a document that is looked at."""

    def __init__(
        self,
        book: Callable[[], AddressBook],
        speaker: Callable[[Call], str],
        catalogue: Catalogue | None = None,
        health: Health | None = None,
    ) -> None:
        """`book` returns the addresses of the moment; `speaker(call)` returns who calls, or raises Refused."""
        self._book = book
        self._speaker = speaker
        self._catalogue = catalogue
        self._health = health if health is not None else Health()
        self._of: tuple[Policy | None, int] = (None, -1)
        """What was looked at last."""
        self._made_of: tuple[list[Candidate], IntentTerms] = ([], IntentTerms())
        """Of what `_ranking` was made."""
        self._ranking = Ranking([])
        self._known: dict[str, list[Score]] = {}
        self.counts: dict[str, int] = {choice.value: 0 for choice in Choice}
        """Calls, by what was decided for them."""

    def locate(self, call: Call, request: Request, located: Located) -> Located:
        """See `meshd.proxy.arrival.Intents`. Raises Refused: malformed, not_allowed, unknown_target."""
        fields = request.fields
        # Whatever becomes of it: the words are content, which is in no span and no label.
        call.path, call.target = "/", Target(Kind.AGENT, INTENT)
        wanted = asked(located.path, fields.governed, is_grpc=fields.is_grpc)
        policy: Policy = call.policy
        may_share = call.method == "POST" and not fields.is_grpc and not request.upgrade
        most = policy.intents.fan_out if wanted.fan_out is None else min(wanted.fan_out, policy.intents.fan_out)
        agent = self._speaker(call)
        bar = barred_by(policy, self._health, agent, call.method, wanted.path)
        decision = decide(self.rank(policy, wanted.words), bar, policy.intents, most if may_share else 1)
        self.counts[decision.choice.value] += 1
        if not decision.targets:
            raise refusal(decision, wanted.words)
        self._tell(call, decision)
        if len(decision.targets) > 1:
            call.dialect = Scatter(decision.targets, wanted.path)
            return Located(INTENT, None, wanted.path, located.run_token, Target(Kind.AGENT, INTENT))
        return self._book().named(decision.targets[0], wanted.path, located.run_token)

    def rank(self, policy: Policy, words: str) -> list[Score]:
        """Return what speaks for each agent, the best first."""
        ranking = self.ranking(policy)
        found = self._known.get(words)
        if found is None:
            found = ranking.rank(words)
            if len(words) <= KNOWN_CHARACTERS_MAX:
                if len(self._known) >= KNOWN_MAX:
                    del self._known[next(iter(self._known))]
                self._known[words] = found
        return found

    def ranking(self, policy: Policy) -> Ranking:
        """Return what ranks the agents of a policy, as the catalogue is now."""
        catalogue = self._catalogue
        generation = catalogue.generation if catalogue is not None else 0
        if self._of[0] is not policy or self._of[1] != generation:
            known = {} if catalogue is None else {name: catalogue.of(name) for name in policy.upstreams}
            made_of = candidates_of(policy, known), policy.intents
            # Most changes of a catalogue are of tools that no agent has, and most of a policy are of its rules.
            if made_of != self._made_of:
                terms = policy.intents
                self._ranking = Ranking(made_of[0], router=terms.router, threshold=terms.threshold)
                self._known, self._made_of = {}, made_of
            self._of = policy, generation
        return self._ranking

    @property
    def health(self) -> Health:
        """How the agents stand."""
        return self._health

    def led(self, policy: Policy, words: str, agent: str, most: int) -> Decision:
        """Say who gets an event of `agent` that wants `words`: all that it fits, at most `most`. Who cannot be called
        now gets it too: the bus keeps it for them."""
        barred = barred_by(policy, self._health, agent, "POST", "/")

        def bar(name: str) -> Barred | None:
            found = barred(name)
            return None if found is not None and found.bar is Bar.HEALTH else found

        # Whoever else is as near takes nobody's place: each gets a copy of its own.
        terms = policy.intents._replace(margin=2.0 if most > 1 else 0.0)
        return decide(self.rank(policy, words), bar, terms, most)

    def look(self, policy: Policy, words: str, agent: str) -> tuple[Decision, list[Seen]]:
        """Say what would become of a POST of `agent` to an agent's address, and how each candidate was seen."""
        bar = barred_by(policy, self._health, agent, "POST", "/")
        scores = self.rank(policy, words)
        decision = decide(scores, bar, policy.intents, policy.intents.fan_out)
        return decision, [Seen(score, bar(score.name)) for score in scores]

    @staticmethod
    def _tell(call: Call, decision: Decision) -> None:
        call.reply_headers += [
            (TARGET, ", ".join(decision.targets).encode("ascii")),
            (SCORE, b"%.3f" % decision.score),
            (CHOICE, decision.choice.value.encode("ascii")),
        ]


def alone(policy: Policy) -> Resolver:
    """Return one that knows what a document says, and nothing else: no server was asked, and nobody is down."""
    book = AddressBook(policy)
    return Resolver(lambda: book, lambda call: call.agent or policy.agent)
