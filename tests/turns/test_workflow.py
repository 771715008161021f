"""What is stopped, when, and by what; and what is not."""

from __future__ import annotations

import random

import pytest

from meshd.turns.counting import EDGES_MAX
from meshd.turns.turn import AGENT, EVENT, LLM, LOOP, MAX_TURNS, PASS, TOOL, WAIT, Limits, Turn
from tests.turns.talk import STOPPED, Talk

REWORDED = [
    "Could you please clarify the requirement for the export?",
    "Please clarify the requirements of the export.",
    "I need you to clarify the export requirement, please.",
    "Can you clarify what the requirement for this export is?",
]
EVASIVE = [
    "I need more details before I can clarify the requirement.",
    "More details are needed before I can clarify that requirement.",
    "Before clarifying the requirement I would need more details.",
]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize(
    "suffix", ["", " (message {n})", " #{n}", " [{n}]", ", attempt {n}", " Sent at 2026-01-02T03:04:{n:02d}Z"]
)
def test_a_flat_cycle_is_stopped_after_three_rounds(length: int, suffix: str) -> None:
    calls = [("Review the draft of the report", "It needs another pass")] * length
    rounds = [[(q + suffix.format(n=n), a + suffix.format(n=n + 1)) for q, a in calls] for n in range(12)]
    stopped, judgement = Talk().until_stopped(rounds)
    assert (stopped, judgement.detector) == (4, "repetition")


def test_bare_numbers_are_what_is_said() -> None:
    """A batch over numbers, or events that count: each says something else."""
    talk = Talk()
    for number in range(300):
        turn = Turn("lead", "progress", EVENT, "", b"%d" % number, (), number * 0.01)
        assert talk.workflow.judge(turn, talk.limits).verdict == PASS, number
        talk.workflow.answered(turn, None)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_rewording_is_seen_through(length: int) -> None:
    rounds = [[(REWORDED[(n + at) % 4], EVASIVE[(n + at) % 3]) for at in range(length)] for n in range(12)]
    stopped, judgement = Talk().until_stopped(rounds)
    assert (stopped, judgement.verdict) == (4, LOOP)


@pytest.mark.parametrize("length", [2, 3, 4, 5, 6])
def test_a_nested_cycle_dies_of_its_path_whatever_it_says(length: int) -> None:
    names = [f"agent{number}" for number in range(length)]
    path: list[str] = []
    dice = random.Random(length)
    for step in range(100):
        source, target = names[step % length], names[(step + 1) % length]
        # Without a store: each sidecar has a workflow of its own, and nothing but the path.
        turn, judgement = Talk().judge(str(dice.random()), source=source, target=target, path=tuple(path))
        if judgement.verdict == LOOP:
            break
        path.append(source)
    assert judgement.detector == "reentry"
    assert step == 3 * length - 1, "three rounds, the first call of the fourth is refused"
    assert target in turn.path


def test_an_agent_may_call_itself_as_often_as_it_may_be_called_again() -> None:
    talk = Talk()
    found = [
        talk.judge(f"part {n}", source="solver", target="solver", path=("solver",) * n)[1].verdict for n in range(4)
    ]
    assert found == [PASS, PASS, LOOP, LOOP]


def test_work_that_is_handed_out_counts_a_thirtieth() -> None:
    talk = Talk()
    verdicts = [talk.ask(f"Describe item {n} of the list", f"It weighs {n} kilos").verdict for n in range(599)]
    assert verdicts == [PASS] * 598 + [MAX_TURNS]


def test_turns_of_agents_that_call_back_count_a_tenth() -> None:
    talk = Talk(Limits(connected=1000))
    passed = 0
    for n in range(500):
        source, target = ("lead", "writer") if n % 2 else ("writer", "lead")
        if talk.ask(f"Item {n} of it", f"It weighs {n} kilos", source=source, target=target).verdict == MAX_TURNS:
            break
        passed += 1
    assert 398 <= passed <= 403


def test_what_is_asked_again_after_something_new_counts_three_tenths() -> None:
    talk = Talk(Limits(periods=1000))
    passed = 0
    for n in range(400):
        if talk.ask("ok", "delivered").verdict != PASS:
            break
        talk.ask(f"Describe item {n} of the list", f"It weighs {n} kilos")
        passed += 1
    assert 55 <= passed <= 66


def test_an_agent_that_is_asked_every_five_minutes_and_never_asks_back_is_polled() -> None:
    talk = Talk()
    for _ in range(150):
        assert talk.ask("Is all well with it?", "It is fine", after_s=300).verdict == PASS
    circle = Talk()
    found = []
    for n in range(20):
        source, target = ("lead", "writer") if n % 2 else ("writer", "lead")
        found.append(circle.ask("Is it you now?", "It is not me", source=source, target=target, after_s=90).verdict)
    assert found.index(LOOP) == 6, "who asks back is in a circle, however slow"


def test_a_program_polls_where_a_model_would_be_asked_in_between() -> None:
    talk = Talk()
    talk.ask("Watch the sensor", "I will", kind=LLM, target="model")
    for _ in range(40):
        assert talk.ask({"sensor": 1}, {"celsius": 21}, kind=TOOL, target="web", after_s=2).verdict in (PASS, WAIT)
    stuck = Talk()
    found = []
    for _ in range(6):
        stuck.ask("What is next?", "Look again", kind=LLM, target="model")
        found.append(stuck.ask({"sensor": 1}, {"celsius": 21}, kind=TOOL, target="web", after_s=2).verdict)
    assert found.index(LOOP) == 3


def test_another_question_to_a_model_takes_a_round_back() -> None:
    talk = Talk()
    for n in range(12):
        assert talk.ask(f"Which is the harbour of land {n}?", "?", kind=LLM, target="model").verdict == PASS
        assert talk.ask("Thanks for that one", "With pleasure then", kind=LLM, target="model").verdict == PASS


def test_samples_of_a_model_are_limited_by_what_they_cost() -> None:
    talk = Talk(Limits(stale_tokens=10_000))
    found = []
    for _ in range(60):
        talk.now_s += 1
        turn = Turn("lead", "model", LLM, "chat", b"2 + 2?", at_s=talk.now_s)
        turn.is_sampled = True
        judgement = talk.workflow.judge(turn, talk.limits)
        found.append(judgement.verdict)
        talk.workflow.answered(turn, b"4", 50)
    assert found.index(LOOP) == 41, "a fifth of 10,000 tokens"


def test_an_answer_of_words_that_were_all_said_is_no_polling() -> None:
    talk = Talk()
    answers = ["please proceed, ready", "proceed when ready please", "ready, waiting", "waiting, please proceed"]
    found = [talk.ask("Will you begin now?", answers[n % 4]).verdict for n in range(60)]
    assert MAX_TURNS in found or LOOP in found


def test_nothing_there_yet_is_no_answer_twice() -> None:
    talk = Talk()
    for _ in range(30):
        turn, judgement = talk.judge({"job": 7}, kind=TOOL, target="web")
        assert judgement.verdict in (PASS, WAIT)
        talk.workflow.answered(turn, b"", is_underway=True)


def test_turns_that_bring_nothing_count_whole() -> None:
    talk = Talk(Limits(periods=1000))
    verdicts = [talk.ask("Are you there?", "Yes I am here").verdict for _ in range(22)]
    assert verdicts.index(MAX_TURNS) == 21, "a tenth for the first, then twenty"


def test_agents_that_call_one_another_share_a_count() -> None:
    talk = Talk(Limits(periods=1000, edge=1000))
    names = ("red", "green", "blue")
    judgements = []
    for n in range(60):
        source, target = names[n % 3], names[(n + 1) % 3]
        judgements.append(talk.ask("Is it settled by now?", "It is not settled", source=source, target=target))
    first = next(one for one in judgements if one.verdict in STOPPED)
    assert (first.detector, first.parties) == ("connected", ("blue", "green", "red"))
    assert judgements.index(first) <= 45


def test_a_star_is_no_connected_set() -> None:
    talk = Talk(Limits(periods=1000, edge=1000))
    for n in range(60):
        assert talk.ask("Is it settled by now?", "It is not settled", target=f"worker{n % 3}").verdict == PASS


def test_a_workflow_has_a_limit_over_all_its_edges() -> None:
    talk = Talk(Limits(periods=1000, edge=1000, workflow=30))
    verdicts = [talk.ask("Is it settled by now?", "It is not", target=f"worker{n % 10}").verdict for n in range(60)]
    assert 30 <= verdicts.index(MAX_TURNS) <= 46


def test_forks_do_not_multiply_a_limit() -> None:
    talk = Talk(Limits(periods=1000))
    open_ones = [talk.judge(f"Try branch {n} of the tree")[1].verdict for n in range(700)]
    assert open_ones.count(PASS) == 598


def test_more_edges_than_are_kept_are_counted_together() -> None:
    talk = Talk(Limits(periods=1000))
    dice = random.Random(1)
    verdicts = [talk.ask(str(dice.random()), "x" * n, target=f"agent{n}").verdict for n in range(1000)]
    assert MAX_TURNS in verdicts
    assert len(talk.workflow.edges) <= EDGES_MAX + 1


def test_same_question_and_changing_answer_is_polling_and_only_slowed() -> None:
    talk = Talk()
    found = [talk.ask({"job": 7}, {"status": "x", "percent": n}, kind=TOOL, after_s=0.01).verdict for n in range(200)]
    assert set(found) == {PASS, WAIT}
    slow = [
        talk.ask({"job": 7}, {"status": "x", "percent": n}, kind=TOOL, after_s=0.2).verdict for n in range(200, 230)
    ]
    assert slow[-1] == PASS


def test_what_only_reads_is_never_refused() -> None:
    talk = Talk()
    for _ in range(500):
        judgement = talk.ask(b"/jobs/7", {"ready": False}, kind=TOOL, after_s=0.01, is_read_only=True)
        assert judgement.verdict in (PASS, WAIT)


def test_an_answer_that_says_it_is_under_way_is_no_loop() -> None:
    talk = Talk()
    for _ in range(50):
        assert talk.ask({"job": 7}, {"status": "running"}, kind=TOOL).verdict in (PASS, WAIT)


def test_the_same_between_steps_that_bring_something_is_no_loop() -> None:
    talk = Talk()
    for n in range(18):
        assert talk.ask(f"Write chapter {n} of the book", f"Chapter {n} has {n * 7} pages").verdict == PASS
        assert talk.ask("May I go on?", "approved", target="approver").verdict == PASS


def test_answers_that_alternate_are_a_period() -> None:
    talk = Talk()
    rounds = [[("Is it alpha or beta?", "It is " + ("alpha", "beta")[n % 2] + " for sure")] for n in range(20)]
    stopped, judgement = talk.until_stopped(rounds)
    assert (stopped <= 9, judgement.detector) == (True, "period")


def test_retries_that_back_off_pass_and_hammering_does_not() -> None:
    talk = Talk()
    gaps = [0.1, 1, 2, 4, 8, 16, 32]
    assert all(talk.ask("book", {"error": 503}, kind=TOOL, after_s=s, is_failed=True).verdict == PASS for s in gaps)
    hammered = Talk()
    found = [hammered.ask("book", {"error": 503}, kind=TOOL, after_s=0.1, is_failed=True).verdict for _ in range(5)]
    assert found == [PASS, PASS, PASS, LOOP, LOOP]


def test_tokens_without_news_are_limited() -> None:
    talk = Talk(Limits(periods=1000, stale_tokens=10_000))
    found = [talk.ask("What now?", "Nothing new", kind=LLM, target="model", tokens=3000).detector for _ in range(8)]
    assert found.index("spending") == 5, "the first is new, and four times 3,000 pass 10,000"


def test_news_set_the_spending_back() -> None:
    talk = Talk(Limits(periods=1000, stale_tokens=10_000))
    for n in range(30):
        assert talk.ask("What now?", "Nothing", kind=LLM, target="model", tokens=3000).verdict == PASS
        assert talk.ask(f"Fetch page {n}", f"Page {n} says {n * n}", kind=TOOL, target="web").verdict == PASS


def test_a_history_that_goes_round_is_stopped_without_any_state() -> None:
    assert Talk().judge("x", kind=LLM, target="model", rounds=3, is_many=True)[1].detector == "history"


def test_the_turns_of_many_tasks_do_not_make_an_llm_or_tool_loop() -> None:
    talk = Talk()
    for _ in range(20):
        assert talk.ask("hello", "Hello!", kind=LLM, target="model", is_many=True).verdict == PASS
    found = [talk.ask("weather", "sunny", kind=TOOL, target="web", is_many=True).verdict for _ in range(12)]
    assert found.index(LOOP) == 9


def test_the_same_asked_again_while_none_is_answered_is_a_circle() -> None:
    talk = Talk()
    found = [talk.judge("Please clarify the report", after_s=1)[1].detector for _ in range(5)]
    assert found == ["", "", "", "open", "open"]


def test_a_stopped_turn_counts_nothing_and_stays_stopped() -> None:
    talk = Talk()
    for _ in range(3):
        talk.ask("Review it", "It needs work")
    tenths = talk.workflow.edges["lead", "writer"].tenths
    for _ in range(50):
        assert talk.ask("Review it", "It needs work").verdict == LOOP
    assert talk.workflow.edges["lead", "writer"].tenths == tenths


def test_a_supervisors_turns_are_used_up() -> None:
    talk = Talk()
    for _ in range(3):
        talk.ask("Review it", "It needs work")
    talk.workflow.grace = 2
    assert [talk.ask("Review it", "It needs work").verdict for _ in range(3)] == [PASS, PASS, LOOP]
    talk.workflow.is_stopped = True
    assert talk.ask("Something else entirely", "Yes").detector == "stopped"


def test_a_body_is_asked_for_only_where_it_decides() -> None:
    talk = Talk()
    turn, _ = talk.judge(None)
    assert not talk.workflow.needs_payload(turn, talk.limits)
    talk.workflow.asked(turn, b"the same")
    talk.workflow.answered(turn, b"as before")
    for _ in range(2):
        talk.ask(b"the same", b"as before")
    again, _ = talk.judge(None)
    assert talk.workflow.needs_payload(again, talk.limits)
    other, _ = talk.judge(None, target="critic")
    assert not talk.workflow.needs_payload(other, talk.limits)


@pytest.mark.parametrize("junk", [2, 6, 14])
def test_junk_does_not_make_the_same_refused_question_new(junk: int) -> None:
    dice = random.Random(junk)

    def decorated() -> str:
        words = ["".join(dice.choices("abcdefghijklm", k=6)) for _ in range(junk)]
        return "Please summarise the quarterly sales figures for the northern region " + " ".join(words)

    rounds = [[(decorated(), "I do not have access to the sales figures.")] for _ in range(60)]
    stopped, judgement = Talk().until_stopped(rounds)
    assert (stopped, judgement.verdict) == (4, LOOP)


def test_junk_everywhere_is_stopped_by_the_count() -> None:
    dice = random.Random(5)
    rounds = [[(dice.randbytes(40).hex() + str(n), dice.randbytes(40).hex())] for n in range(700)]
    stopped, judgement = Talk().until_stopped(rounds)
    assert judgement.verdict in STOPPED
    assert stopped <= 599


def test_a_question_built_to_collide_is_another_question() -> None:
    # Same words, same length, another name: a hash of words alone would take them for one.
    talk = Talk()
    for city in ("Lisbon", "Bergen", "Oulu", "Riga", "Turku", "Split"):
        assert talk.ask(f"Please check the harbour of {city} for ice and tell", "There is no ice").verdict == PASS


def test_a_template_with_other_content_and_one_answer_is_honest() -> None:
    talk = Talk()
    for label in ("sign out", "add to basket", "size guide", "gift wrap", "open late", "free returns", "track it"):
        text = f"Classify the sentiment of this label as positive, neutral or negative, in one word: {label}"
        assert talk.ask(text, "neutral").verdict == PASS


def test_kinds_that_are_no_turn_count_nothing() -> None:
    talk = Talk()
    for n in range(30):
        talk.ask(f"item {n}", f"{n}", kind=TOOL, target="shop")
    assert talk.workflow.edges["lead", "shop"].tenths == 0
    assert talk.ask("x", "y", kind=AGENT).verdict == PASS
