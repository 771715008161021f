"""Small signs that a talk restates itself, weighed; and agents that go on after a refusal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.turns.heeding import FORGIVEN_S, Refusals
from meshd.turns.restating import LIKELY, NEVER, gloss_of, signs_of, weighed
from meshd.turns.said import Said
from meshd.turns.turn import LLM, LOOP, PASS
from tests.turns.talk import Talk, task

GARDEN = [
    ("When will the fence be mended?", "I'm waiting for the planks, so ask the sawmill."),
    ("Please mend our fence soon.", "Without planks from the sawmill it can't be done."),
    ("The fence still needs mending.", "The sawmill must deliver planks first."),
    ("Could somebody mend that broken fence?", "Only the sawmill knows when the planks come."),
]
ANSWERED = [
    ("I want to register a boat.", "Which kind of boat do you need to register?"),
    ("A sailing boat.", "How long is the boat, please?"),
    ("It is longer than a bus.", "Where will the boat lie?"),
    ("In the old harbour.", "Please tell me the name of the boat."),
    ("She is called Albatross.", "The boat is registered."),
]
GERMAN = [
    ("Wo bleibt die Erstattung für den Koffer?", "Dafür brauche ich zuerst die Gepäcknummer."),
    ("Bitte erstatten Sie mir endlich den Koffer.", "Ohne Gepäcknummer geht das leider nicht."),
    ("Ich warte auf die Kofferrückerstattung.", "Wie lautet denn die Nummer vom Gepäck?"),
    ("Wann wird mir der Koffer erstattet?", "Nennen Sie mir bitte die Gepäcknummer."),
]
FAREWELLS = [
    ("Have a lovely evening!", "You too, goodbye!"),
    ("Take care, see you soon.", "Thanks, likewise!"),
    ("All the best, bye!", "Same to you, it was a pleasure."),
    ("Thanks, stay well!", "Bye for now."),
]
ORDERS = [
    ("Please raise the quota of team Heron.", "Finance must approve it first."),
    ("Finance approved the quota of Heron.", "The quota is raised."),
    ("Please raise the quota of team Stork.", "Finance must approve it first."),
    ("Finance approved the quota of Stork.", "The quota is raised."),
    ("Please raise the quota of team Crane.", "Finance must approve it first."),
]


def weight(talk: list[tuple[str, str]]) -> float:
    questions = [Said(task(question)) for question, _ in talk[:4]]
    answers = [Said(task(answer), True) for _, answer in talk[:3]]
    return weighed(questions, answers)


def stopped_at(talk: list[tuple[str, str]]) -> int:
    """Return which question was stopped, from 1; 0 for none."""
    workflow = Talk()
    for at, (question, answer) in enumerate(talk, 1):
        if workflow.ask(question, answer, after_s=2.0).verdict == LOOP:
            return at
    return 0


@pytest.mark.parametrize("talk", [GARDEN, GERMAN, FAREWELLS], ids=["English", "German", "farewells"])
def test_a_paraphrase_is_stopped_at_its_fourth_question(talk: list[tuple[str, str]]) -> None:
    assert stopped_at(talk) == 4


@pytest.mark.parametrize("talk", [ANSWERED, ORDERS], ids=["answered", "orders by turns"])
def test_what_goes_on_is_not(talk: list[tuple[str, str]]) -> None:
    assert stopped_at(talk) == 0
    assert weight(talk) < LIKELY or talk is ORDERS


def test_each_new_number_speaks_against_it() -> None:
    plain = weight(GARDEN)
    counted = [(f"{question[:-1]} in {at}7 gardens", answer) for at, (question, answer) in enumerate(GARDEN, 1)]
    assert plain >= LIKELY
    assert weight(counted) == NEVER


def test_something_else_for_once_is_asked() -> None:
    talk = Talk()
    for _ in range(3):
        assert talk.ask("Review the draft of the report", "It needs another pass").verdict == PASS
    assert talk.ask("Something else that nobody asked for", "Fine").verdict == PASS


def test_a_question_is_no_thanks() -> None:
    talk = Talk()
    for question in ("Thanks! How do I descale it?", "Thank you, how long?", "Thanks, and then?", "Thanks, which one?"):
        assert talk.ask(question, "You're welcome! Glad to help.", after_s=2.0).verdict == PASS


def test_words_of_one_family_have_parts_in_common() -> None:
    one, other, far = (gloss_of(text).parts for text in ("erstatten", "Rückerstattung", "Kaffeemaschine"))
    assert (one & other).bit_count() >= 4
    assert (one & far).bit_count() <= 1


def test_what_is_refused_leaves_no_round() -> None:
    talk = Talk()
    for question, answer in GARDEN[:3]:
        assert talk.ask(question, answer, after_s=2.0).verdict == PASS
    for again in (
        "Could somebody mend that broken fence?",
        "Is the fence mended yet?",
        "Please have the fence mended.",
    ):
        assert talk.ask(again, "", after_s=2.0).verdict == LOOP


def test_the_model_of_an_agent_that_goes_on_is_refused_until_something_new_comes() -> None:
    talk = Talk()
    for _ in range(3):
        talk.ask("Judge the draft.", "It needs work.")
    for about in ("ink", "paper", "margins", "type", "glue", "covers"):
        assert talk.ask(f"Think about {about}.", "an answer", target="llm", kind=LLM).verdict == PASS
        turn, judgement = talk.judge("Judge the draft.")
        assert judgement.verdict == LOOP
        talk.workflow.refused(turn)
    found = talk.ask("another thought", "an answer", target="llm", kind=LLM)
    assert (found.verdict, found.detector, found.amount) == (LOOP, "unheeded", 6)
    assert talk.ask("Draw the cover.", "Drawn with a heron on it.", target="painter").verdict == PASS
    assert talk.ask("another thought", "an answer", target="llm", kind=LLM).verdict == PASS


def test_a_refusal_is_forgiven() -> None:
    refusals = Refusals()
    refusals.note("lead", 10.0)
    refusals.note("lead", 20.0)
    assert refusals.count("lead", 21.0) == 2
    assert refusals.count("writer", 21.0) == 0
    assert refusals.count("lead", 20.0 + FORGIVEN_S) == 0
    refusals.forget("writer", "lead")
    assert refusals.count("lead", 21.0) == 0


def test_refusals_of_no_end_of_agents_are_bounded() -> None:
    refusals = Refusals()
    for at in range(1000):
        refusals.note(f"agent-{at}", 1.0)
    assert sum(refusals.count(f"agent-{at}", 1.0) for at in range(1000)) == 32


@given(st.lists(st.binary(max_size=80), min_size=4, max_size=4), st.lists(st.text(max_size=40), min_size=3, max_size=3))
def test_anything_can_be_weighed(raw: list[bytes], texts: list[str]) -> None:
    questions = [Said(one) for one in raw]
    answers = [Said(task(text), True) for text in texts]
    signs = signs_of(questions, answers)
    assert signs is None or all(-100 < sign < 100 for sign in signs)
