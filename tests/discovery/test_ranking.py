"""Which agent serves what: by words, by what is near, by examples, and by name."""

import pytest

from meshd.discovery.intents import Intent, Router
from meshd.discovery.nearness import nearness, pieces
from meshd.discovery.ranking import CLAIMS_FREE, THRESHOLD, Candidate, Ranking, words_of

AGENTS = (
    Candidate("market", description="Analyses markets and prices.", told=("market_analysis", "compare competitors")),
    Candidate("audit", description="Audits code.", told=("technical_audit",), tools=("lint_code finds bugs",)),
    Candidate("travel", claimed=("book a flight to rome", "find a hotel")),
)


def best(text, *agents, **more):
    return Ranking(agents or AGENTS, **more).rank(text)[0]


@pytest.mark.parametrize(
    ("text", "name", "is_named"),
    [
        ("market analysis", "market", True),
        ("Market_Analysis", "market", True),
        ("marketAnalysis", "market", True),
        ("an analysis of the market", "market", False),
        ("audit", "audit", True),
        ("find the bugs that lint finds", "audit", False),
        ("booking flights to rome", "travel", False),
        ("comparing our many competitors", "market", False),
    ],
)
def test_who_is_best(text, name, is_named):
    found = best(text)
    assert (found.name, found.is_named) == (name, is_named)
    assert found.score == 1.0 if is_named else THRESHOLD <= found.score < 1.0


@pytest.mark.parametrize("text", ["", " ", "the of and", "\u202e", "?!", "\x00", "a" * 100_000, "\ud800", "\U0001f30d"])
def test_nonsense_is_near_nobody(text):
    assert all(score.score < THRESHOLD for score in Ranking(AGENTS).rank(text))


def test_whoever_claims_more_counts_less():
    honest = Candidate("honest", claimed=("refund a customer",))
    greedy = Candidate("greedy", claimed=("refund a customer", *(f"do thing {at}" for at in range(10 * CLAIMS_FREE))))
    found = Ranking([greedy, honest]).rank("refund the customer now")
    assert [score.name for score in found] == ["honest", "greedy"]
    assert found[1].score < THRESHOLD < found[0].score


def test_what_an_operator_says_counts_however_much_it_is():
    told = Candidate("told", told=("refund a customer", *(f"do thing {at}" for at in range(100))))
    assert best("refund a customer", told).is_named


def test_examples_of_an_intent_are_those_of_who_serves_it():
    router = Router(
        [
            Intent("market_analysis", ("who sells most", "how big is demand", "what do rivals ask")),
            Intent("audit", ("is it safe to ship", "look over my change", "does it hold under load")),
        ]
    )
    found = best("how big is the demand", router=router)
    assert found.name == "market"
    assert found.examples > THRESHOLD
    assert Ranking(AGENTS, router=router).rank("who sells most")[-1].examples == 0.0, "travel has no examples"
    words, examples = Ranking(AGENTS, router=router).explain("how big is the demand")
    assert words
    assert examples[0][0] == "how big is demand"


def test_the_same_words_are_the_same_name():
    assert words_of("market_analysis") == words_of("Market analysis") == words_of("marketAnalysis")
    assert words_of("the of") == "the of", "what says nothing is still itself"


def test_nearness():
    assert nearness(pieces("refund a customer"), pieces("refund the customer")) == pytest.approx(1.0)
    assert 0.5 < nearness(pieces("refnd customer"), pieces("refund customer")) < 1.0
    assert nearness(pieces("refund"), pieces("weather")) < 0.1
    assert nearness({}, pieces("refund")) == 0.0
    assert pieces("the of") == {}
