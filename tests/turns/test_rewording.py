"""Talks that go round in other words, and honest ones on a narrow topic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.turns.asking import reworded_round_of
from meshd.turns.rewording import says_the_same
from meshd.turns.said import Said
from meshd.turns.turn import AGENT, LOOP, PASS, TOOL
from tests.turns.talk import Talk, task

RECEIPT = [
    ("Please check invoice 2231 against its purchase order.", "I need the goods receipt from the bookkeeper first."),
    ("Does invoice 2231 agree with the purchase order?", "Without the goods receipt of the bookkeeper I cannot say."),
    (
        "We want invoice 2231 compared with the purchase order.",
        "The bookkeeper has to send the goods receipt for that.",
    ),
    ("Kindly verify invoice 2231 and its purchase order.", "The goods receipt is still with the bookkeeper."),
]
HEADER = [
    ("Set the header colour to blue.", "done"),
    ("Set the header font to bold.", "done"),
    ("Make the header sticky.", "done"),
    ("Hide the header on phones.", "done"),
    ("Add a border below the header.", "done"),
]
CONTRACT = [
    ("When does the contract end?", "The contract ends on the last day of this year."),
    ("Can the contract be ended earlier?", "Yes, with six months' notice to the end of a quarter."),
    ("Who may end the contract?", "Either party may."),
    ("Is there a penalty in the contract?", "Half a percent a day for late delivery."),
    ("Does the contract limit liability?", "Up to the annual fee, except for gross negligence."),
]


def said(texts: list[str], *, is_answer: bool = False) -> list[Said]:
    return [Said(task(text), is_answer) for text in texts]


def stopped_at(talk: list[tuple[str, str]]) -> int:
    """Return which question was stopped, from 1; 0 for none."""
    workflow = Talk()
    for at, (question, answer) in enumerate(talk, 1):
        if workflow.ask(question, answer, after_s=2.0).verdict == LOOP:
            return at
    return 0


def test_a_talk_in_other_words_is_stopped_at_its_fourth_round() -> None:
    assert stopped_at(RECEIPT) == 4


@pytest.mark.parametrize("talk", [HEADER, CONTRACT], ids=["orders", "questions"])
def test_a_narrow_topic_is_no_loop(talk: list[tuple[str, str]]) -> None:
    assert stopped_at(talk) == 0


def test_a_number_that_was_not_there_is_something_new() -> None:
    talk = [(question.replace("2231", str(2231 + at)), answer) for at, (question, answer) in enumerate(RECEIPT)]
    assert stopped_at(talk) == 0


def test_two_talks_may_take_turns_on_an_edge() -> None:
    other = [(f"{text}.", f"{text} is closed, come back on Monday morning.") for text in ("Museum", "Museum ")]
    workflow, verdicts = Talk(), []
    for round_ in RECEIPT:
        verdicts.append(workflow.ask(*round_, after_s=2.0).verdict)
        verdicts.append(workflow.ask(*other[0], after_s=2.0).verdict)
    assert verdicts.index(LOOP) == 6


def test_thanks_for_thanks_are_nothing_new() -> None:
    thanks = ["Thank you so much!", "Many thanks, you were kind.", "Cheers, I appreciate it.", "Thanks again!"]
    welcome = ["You're welcome!", "My pleasure.", "Glad to be of service.", "Always welcome."]
    assert stopped_at(list(zip(thanks, welcome, strict=True))) == 4
    assert says_the_same(said(thanks), said(welcome[:3], is_answer=True), AGENT, is_polled=False)


def test_the_same_question_denied_in_other_words_is_stopped() -> None:
    answers = [
        "I'm sorry, I am not able to.",
        "Unfortunately this cannot be reset.",
        "That failed: no permission.",
        "No.",
    ]
    assert stopped_at([("Reset the password of this user.", answer) for answer in answers]) == 4


def test_a_tool_is_compared_strictly() -> None:
    queries = ["report of Halvorsen Marine", "Halvorsen Marine results", "Halvorsen Marine figures", "Halvorsen Marine"]
    found = said(["Nothing was found."] * 3, is_answer=True)
    assert not says_the_same(said(queries), found, TOOL, is_polled=False)


def test_an_answer_that_is_under_way_is_no_round() -> None:
    answers = [
        "The export is still being written.",
        "It is still being written, the export.",
        "The export is in progress.",
    ]
    questions = ["Is the export done?", "Is the export there?", "How is the export?", "The export?"]
    assert not says_the_same(said(questions), said(answers, is_answer=True), AGENT, is_polled=False)


def test_a_history_that_goes_round_in_other_words_shows_it() -> None:
    messages = [(False, task("Settle the matter."), False)]
    for question, answer in RECEIPT:
        messages += [(False, task(question), False), (True, task(answer), False)]
    assert reworded_round_of(messages[:-1], 3) == 2
    assert reworded_round_of(messages, 3) == 0, "the model spoke last"
    with_a_tool = [*messages[:-2], (False, messages[-2][1], True)]
    assert reworded_round_of(with_a_tool, 3) == 0


def test_many_at_once_are_handed_out_and_not_a_circle() -> None:
    workflow = Talk()
    verdicts = [workflow.judge("Is this review sarcastic?", after_s=0.001)[1].verdict for _ in range(8)]
    assert verdicts == [PASS] * 8
    circle = Talk()
    assert LOOP in [circle.judge("Is this review sarcastic?", after_s=0.6)[1].verdict for _ in range(8)]


def test_what_is_asked_by_a_clock_is_polled_and_not_refused() -> None:
    by_clock, by_hand = Talk(), Talk()
    lease = ({"renew": "lease-3"}, {"renewed": "lease-3"})
    assert {by_clock.ask(*lease, kind=TOOL, after_s=10.0).verdict for _ in range(30)} == {PASS}
    gaps = [2.0, 5.0, 3.0, 7.0, 2.0]
    assert LOOP in [by_hand.ask(*lease, kind=TOOL, after_s=gap).verdict for gap in gaps]


def test_a_tool_that_says_later_is_asked_later() -> None:
    def verdicts(answer: str) -> list[str]:
        talk = Talk()
        return [
            talk.ask("convert it", answer, kind=TOOL, after_s=gap).verdict for gap in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
        ]

    assert LOOP not in verdicts("Timeout after 30 s, try again later")
    assert LOOP in verdicts("The file is broken")


@given(st.lists(st.binary(max_size=80), min_size=7, max_size=7), st.sampled_from([AGENT, TOOL]), st.booleans())
def test_any_bytes_can_be_compared(raw: list[bytes], kind: str, is_polled: bool) -> None:
    questions, answers = [Said(one) for one in raw[:4]], [Said(one, True) for one in raw[4:]]
    assert says_the_same(questions, answers, kind, is_polled=is_polled) in (True, False)
