"""Routing by examples: what belongs to an intent gets there, what belongs nowhere does not, and why can be said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.discovery.intents import EXAMPLES_MAX, Intent, Router, learned
from meshd.discovery.linear import Linear, fixed
from tests.discovery.sample import IN_SCOPE, INTENTS, NONSENSE, NOWHERE

ROUTER = Router(INTENTS)


@pytest.mark.parametrize(("text", "intent"), IN_SCOPE)
def test_what_belongs_to_an_intent_gets_there(text, intent):
    routed = ROUTER.route(text)
    assert routed.intent == intent
    assert routed.confidence >= routed.threshold
    assert sum(one.share for one in routed.ranked) == pytest.approx(1)


@pytest.mark.parametrize("text", NOWHERE)
def test_what_belongs_nowhere_gets_nowhere(text):
    routed = ROUTER.route(text)
    assert routed.intent is None
    assert routed.confidence < routed.threshold
    assert len(routed.ranked) == len(INTENTS)


@pytest.mark.parametrize("text", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_gets_nowhere(text):
    assert ROUTER.route(text).intent is None
    assert ROUTER.explain(text).known <= 1


@given(st.text(max_size=60))
def test_no_text_raises(text):
    routed = ROUTER.route(text)
    assert 0 <= routed.confidence <= 1
    assert {one.intent for one in routed.ranked} == set(ROUTER.names)


def test_nearly_every_example_is_routed_to_its_own_intent():
    held = [(text, intent.name) for intent in INTENTS for text in intent.examples]
    right = [ROUTER.route(text).intent == name for text, name in held]
    assert sum(right) >= 0.95 * len(held)


def test_the_same_examples_make_the_same_router():
    again = Router(INTENTS)
    assert again.threshold == ROUTER.threshold
    assert again.route("where is my parcel") == ROUTER.route("where is my parcel")


def test_a_route_is_explained_by_words_and_examples():
    why = ROUTER.explain("please reset the password")
    assert any("password" in word for word, weight in why.words if weight > 0)
    assert why.examples[0][0] == "reset my password please"
    assert 0 < why.examples[0][1] <= 1
    assert why.known > 0.5
    assert why.shared > 0.5


def test_where_two_intents_are_near_a_margin_chooses_none():
    text = "return my parcel"
    strict = Router(INTENTS, margin=1.0)
    assert strict.route(text).intent is None
    assert strict.route(text).ranked == Router(INTENTS).route(text).ranked


def test_the_more_may_be_given_up_the_higher_the_threshold():
    assert Router(INTENTS, abstain_share=0.0).threshold < Router(INTENTS, abstain_share=0.5).threshold


@pytest.mark.parametrize(
    "intents",
    [
        [],
        [Intent("", ("x",))],
        [Intent("a", ("x",)), Intent("a", ("y",))],
        [Intent("a", ("x",) * (EXAMPLES_MAX + 1))],
    ],
)
def test_what_is_no_set_of_intents_is_refused(intents):
    with pytest.raises(ValueError, match=r"intents|examples"):
        Router(intents)


def test_one_intent_alone_still_abstains():
    router = Router(INTENTS[:1])
    assert router.route("where is my order").intent == "order_status"
    assert router.route("sing something by the Beatles").intent is None


def test_intents_without_examples_go_by_their_names():
    router = Router([Intent("book_flight", ()), Intent("weather_forecast", ())])
    assert router.route("the weather").ranked[0].intent == "weather_forecast"


def test_vectors_are_learned_with_the_words():
    place = {name: [1.0 if at == number else 0.0 for at in range(4)] for number, name in enumerate(ROUTER.names)}
    vectors = [place[intent.name] for intent in INTENTS for _ in (intent.name, *intent.examples)]
    router = Router(INTENTS, vectors=vectors)
    assert router.route("zzz", place["refund"]).ranked[0].intent == "refund"
    assert router.route("where is my order", place["order_status"]).intent == "order_status"
    with pytest.raises(ValueError, match="vectors"):
        Router(INTENTS, vectors=vectors[1:])
    assert len(learned(INTENTS)) == len(vectors)


ROW = st.dictionaries(st.integers(0, 5), st.integers(-1024, 1024), min_size=1).map(lambda row: list(row.items()))


@given(st.lists(st.tuples(ROW, st.integers(0, 2)), min_size=1, max_size=12), ROW)
def test_lanes_do_not_run_into_each_other(texts, asked):
    linear = Linear(6, 3)
    rows, labels = zip(*texts, strict=True)
    held_out = linear.train(rows, labels)
    assert len(held_out) == len(texts)
    for label, score in enumerate(linear.scores(asked)):
        spoke = sum(value / fixed(1) * linear.weight(feature, label) for feature, value in asked)
        assert score == pytest.approx(spoke, abs=1e-6)
    # What speaks for one label speaks against the others.
    assert sum(linear.scores(asked)) == pytest.approx(0, abs=1e-3)


def test_what_is_learned_without_a_text_does_not_know_it():
    row = [(0, fixed(1))]
    assert Linear(1, 2).train([row], [1]) == [[0, 0]]


def test_a_word_that_no_example_has_is_near_one_that_means_the_same():
    router = Router(
        [Intent("pets", ("feed the kitten", "walk the puppy")), Intent("ships", ("sail the boat", "row a canoe"))]
    )
    assert router.route("the rabbit").ranked[0].intent == "pets"
    assert router.route("a schooner").ranked[0].intent == "ships"


def test_where_the_model_fails_a_sentence_goes_by_its_words():
    place = {name: [1.0 if at == number else 0.0 for at in range(4)] for number, name in enumerate(ROUTER.names)}
    router = Router(INTENTS, vectors=[place[one.name] for one in INTENTS for _ in (one.name, *one.examples)])
    assert (
        router.route("please reset the password").ranked[0] == router.route("please reset the password", None).ranked[0]
    )
    assert router.explain("please reset the password").words
