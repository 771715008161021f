"""Turns: what a call becomes as a turn, what the ladder does, and what is said."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from meshd.call import Direction, NeedBody, Reply, Usage, Wait
from meshd.dialects.event import Event
from meshd.dialects.table import DIALECTS
from meshd.filters.allow_list import judge
from meshd.filters.turns import Turns
from meshd.outcome import Fault, Outcome
from meshd.refusal import Reason, Refused
from meshd.turns.supervision import Story, Verdict
from meshd_sdk.context import Context
from tests.filters.calls import NOW_S, SUCCESS, WALL_S, call, outcome, policy

BODY = b'{"task": "Review the draft of the report"}'
ANSWER = b'{"result": "It needs another pass"}'


def ready(
    target: str = "writer", *, workflow: str = "wf-1", path: tuple[str, ...] = (), of: Any = None, **fields: Any
) -> Any:
    """Return a call as Turns gets it: with its context, and planned."""
    of = of or policy()
    made = call(target, of=of, path=fields.pop("url", "/run"), **fields)
    account = f"workflow/{workflow}" if workflow else "unattributed/researcher/2026-09-21"
    made.context = Context(workflow, fields.get("agent", "researcher"), len(path), path, account=account)
    made.agent = made.context.agent
    made.dialect = DIALECTS["openai" if made.ask is not None else "plain"]
    made.plan = of.plan(made.target, made.agent, f"{made.method} {made.path}")
    return made


def go(turns: Turns, made: Any, body: bytes | None = BODY, answer: bytes = ANSWER, end: Outcome = SUCCESS) -> Any:
    """Take a call through the filter as the proxy does; return what it decided."""
    decision: Any = turns.admit(made)
    if isinstance(decision, NeedBody):
        made.body = body
        decision = turns.admit(made)
    if isinstance(decision, Wait):
        return decision
    if made.heard_by is not None and body is not None:
        made.heard_by.hear(body)
    if made.reply_heard_by is not None:
        made.reply_heard_by.hear(answer)
    if decision is not None:
        decision.settle(end)
    return decision


def looping(turns: Turns, **fields: Any) -> Refused:
    """Repeat a call until it is refused, which is the fourth time."""
    for _ in range(3):
        go(turns, ready(**fields))
    with pytest.raises(Refused) as refused:
        go(turns, ready(**fields))
    return refused.value


def test_the_fourth_time_is_refused_in_words_for_the_model() -> None:
    turns = Turns()
    refused = looping(turns)
    assert (refused.reason, refused.status, refused.is_retryable) == (Reason.LOOP, 403, False)
    for word in ("researcher", "writer", "3 times", "wf-1", "Answer with what you have", "limits.turns.periods"):
        assert word in refused.message
    assert turns.ladder.tally.by_detector["repetition"] == 1
    assert dict(turns.ladder.tally.decisions())["refused"] == 1


def test_a_body_streams_until_it_decides() -> None:
    turns = Turns()
    first = ready()
    go(turns, first)
    assert first.body is None
    for _ in range(2):
        go(turns, ready())
    assert isinstance(turns.admit(ready()), NeedBody)
    other = ready()
    go(turns, other, b'{"task": "Something else that nobody asked for"}')


def test_a_call_whose_body_is_late_is_judged_without() -> None:
    turns = Turns()
    for _ in range(3):
        go(turns, ready())
    made = ready()
    decision = turns.admit(made)
    assert isinstance(decision, NeedBody)
    assert decision.is_wish
    made.is_body_late = True
    assert not isinstance(turns.admit(made), NeedBody)


def test_workflows_do_not_see_one_another() -> None:
    turns = Turns()
    for number in range(20):
        go(turns, ready(workflow=f"wf-{number}"))


def test_dropped_headers_reset_nothing() -> None:
    turns = Turns()
    refused = looping(turns, workflow="")
    assert "no workflow" in refused.message


def test_what_belongs_to_no_workflow_is_counted_by_the_hour() -> None:
    turns = Turns()
    looping(turns, workflow="")
    go(turns, ready(workflow="", wall_s=WALL_S + 3600))


def test_reading_is_never_refused() -> None:
    turns = Turns()
    for number in range(100):
        go(turns, ready("billing", method="GET", now_s=NOW_S + number), None, b'{"ready": false}')


async def test_polling_too_fast_waits_and_goes_on() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    turns = Turns(sleep=sleep)
    decisions = [go(turns, ready("billing", method="GET"), None, b"{}") for _ in range(12)]
    waits = [one for one in decisions if isinstance(one, Wait)]
    assert len(waits) >= 10
    for wait in waits:
        assert not wait.is_hold
        ticket = await wait.coroutine
        ticket.settle(SUCCESS)
    assert all(0 < seconds <= 1 for seconds in slept)


def test_the_path_is_judged_on_both_sides() -> None:
    circle = ("researcher", "writer") * 3
    turns = Turns()
    with pytest.raises(Refused) as out:
        turns.admit(ready(path=circle))
    assert "called again 3 times" in out.value.message
    came = ready("writer", path=("researcher", "writer") * 3, direction=Direction.INBOUND)
    with pytest.raises(Refused) as refused:
        turns.admit(came)
    assert refused.value.reason is Reason.LOOP
    fewer = ready("writer", path=("researcher", "writer") * 2, direction=Direction.INBOUND)
    assert turns.admit(fewer) is None


def test_a_refusal_by_a_later_filter_counts_no_turn() -> None:
    turns = Turns()
    made = ready()
    ticket: Any = turns.admit(made)
    ended = outcome(0, Fault.NONE)
    ended.reason = Reason.NOT_ALLOWED
    ticket.settle(ended)
    assert turns.book.of("wf-1").edges["researcher", "writer"].tenths == 0


def test_failures_of_the_upstream_are_no_answers() -> None:
    turns = Turns()
    gaps = (0.0, 1.0, 3.0, 7.0, 15.0, 31.0)
    for at_s in gaps:
        go(turns, ready("billing", now_s=NOW_S + at_s), end=outcome(503))


def history(rounds: int, result: str = "none found") -> bytes:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Find the report"}]
    for number in range(rounds):
        function = {"name": "search", "arguments": '{"q": "report"}'}
        call_ = {"id": f"call_{number}abcdef", "type": "function", "function": function}
        messages.append({"role": "assistant", "content": None, "tool_calls": [call_]})
        messages.append({"role": "tool", "tool_call_id": f"call_{number}abcdef", "content": result.format(n=number)})
    return json.dumps({"model": "m", "messages": messages}).encode()


def asked(body: bytes, workflow: str = "wf-1", **fields: Any) -> Any:
    of = policy()
    ask = DIALECTS["openai"].read("chat", body, "/v1/chat/completions", [])
    return ready("openai", workflow=workflow, of=of, ask=ask, body=body, url="/v1/chat/completions", **fields)


def test_a_model_that_goes_round_is_told_by_its_own_history() -> None:
    for workflow in ("wf-1", ""):
        turns = Turns()
        assert turns.admit(asked(history(2), workflow)) is None
        with pytest.raises(Refused) as refused:
            turns.admit(asked(history(3), workflow))
        assert "history" in refused.value.message


@pytest.mark.parametrize("result", ["page {n} has {n}5 lines", "status: running", '{{"status": "queued"}}'])
def test_a_model_whose_tool_goes_on_is_not(result: str) -> None:
    turns = Turns()
    for rounds in range(1, 12):
        go(turns, asked(history(rounds, result)), None)


def answered(turns: Turns, made: Any, text: str, tokens: int = 100) -> Any:
    ticket: Any = turns.admit(made)
    if ticket is not None:
        event = Event()
        event.raw = json.dumps({"choices": [{"index": 0, "message": {"content": text}}]}).encode()
        ticket.on_event(event)
        ticket.settle(outcome(200, usage=Usage(tokens, 0)))
    return ticket


def test_a_model_that_is_asked_and_answers_the_same_is_stopped() -> None:
    turns = Turns()
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Is the plan complete?"}]}).encode()
    assert answered(turns, asked(body), "The plan is not complete") is None, "nobody listens to the first"
    for _ in range(2):
        assert answered(turns, asked(body), "The plan is not complete") is not None
    with pytest.raises(Refused):
        turns.admit(asked(body))
    again = Turns()
    for number in range(20):
        answered(again, asked(body), f"Then there is step {number} to be done: {number * 7}")


def test_many_tasks_of_one_agent_may_ask_a_model_the_same() -> None:
    turns = Turns()
    for _ in range(30):
        assert turns.admit(asked(history(0), "")) is None


@pytest.mark.parametrize("rung", ["note", "tell"])
def test_lower_steps_let_the_call_pass(rung: str) -> None:
    turns, of = Turns(), policy(f"limits: {{turns: {{ladder: {rung}}}}}\n")
    for _ in range(3):
        go(turns, ready(of=of))
    made = ready(of=of)
    go(turns, made)
    noted = dict(turns.ladder.tally.decisions())["noted"]
    assert noted == 1
    notices = [value for name, value in made.reply_headers if name == b"x-meshd-notice"]
    assert notices == ([b"repetition: 3 of 3"] if rung == "tell" else [])
    assert made.inject == made.reply_headers


def test_a_rule_on_trial_is_counted_and_refuses_nothing() -> None:
    told: list[Refused] = []
    of = policy("rules:\n  - {name: strict, shadow: true, turns: {periods: 2}, match: {target: writer}}\n")
    turns = Turns(lambda _, refused: told.append(refused))
    for _ in range(3):
        go(turns, ready(of=of))
    assert [(one.rule, one.is_shadow, one.reason) for one in told] == [("strict", True, Reason.LOOP)]


def test_a_rule_may_have_limits_of_its_own() -> None:
    turns, of = Turns(), policy("rules:\n  - {turns: {periods: 2}, match: {target: writer}}\n")
    for _ in range(2):
        go(turns, ready(of=of))
    with pytest.raises(Refused) as refused:
        go(turns, ready(of=of))
    assert refused.value.rule == "rule-1"


class Asked:
    """A supervisor that says what it is told to say."""

    def __init__(self, verdict: Verdict | None, gate: asyncio.Event | None = None) -> None:
        self.verdict = verdict
        self.gate = gate
        self.stories: list[Story] = []

    async def ask(self, story: Story) -> Verdict | None:
        self.stories.append(story)
        if self.gate is not None:
            await self.gate.wait()
        return self.verdict


SUPERVISED = policy("on_exceeded: {url: 'http://127.0.0.1:1'}\n")


async def supervised(verdict: Verdict | None, gate: asyncio.Event | None = None, hold_s: float = 5.0) -> Any:
    turns = Turns(judge=judge)
    supervisor = turns.supervisor = Asked(verdict, gate)
    turns.ladder.hold_s = lambda _: hold_s
    for _ in range(3):
        go(turns, ready(of=SUPERVISED))
    made = ready(of=SUPERVISED)
    wait = go(turns, made)
    assert isinstance(wait, Wait)
    assert wait.is_hold
    try:
        return turns, supervisor, made, await wait.coroutine
    except Refused as refused:
        return turns, supervisor, made, refused


async def test_a_supervisor_is_told_the_story_without_content() -> None:
    _, supervisor, _, _ = await supervised(Verdict(action="stop"))
    (story,) = supervisor.stories
    assert (story.workflow, story.source, story.target, story.detector) == (
        "wf-1", "researcher", "writer", "repetition",
    )  # fmt: skip
    assert [(one.source, one.target, one.rounds) for one in story.edges] == [("researcher", "writer", 3)]
    assert len(story.payloads[0]) == 64
    assert "draft" not in repr(story)
    assert story.actions == ("continue", "redirect", "finish", "stop")


async def test_a_supervisor_gives_room() -> None:
    turns, _, _, result = await supervised(Verdict(action="continue", turns=3))
    assert result is None
    for _ in range(2):
        assert not isinstance(go(turns, ready(of=SUPERVISED)), Wait)
    last = go(turns, ready(of=SUPERVISED))
    assert isinstance(last, Wait), "asked again when the room is used up"
    last.coroutine.close()


async def test_a_supervisor_finishes_with_an_answer() -> None:
    _, _, _, result = await supervised(Verdict(action="finish", answer=b'{"result": "as it is"}'))
    assert isinstance(result, Reply)
    assert (result.status, result.body) == (200, b'{"result": "as it is"}')


async def test_a_supervisor_sends_the_call_elsewhere() -> None:
    of = policy(upstreams=(
        'agent: researcher\nupstreams:\n  writer: {url: "http://127.0.0.1:1", kind: agent}\n'
        '  senior: {url: "http://127.0.0.1:2/base", kind: agent}\n  openai: {url: "https://api.openai.com", '
        "kind: llm, dialect: openai}\non_exceeded: {url: 'http://127.0.0.1:1'}\n"
    ))  # fmt: skip
    turns = Turns(judge=judge)
    turns.supervisor = Asked(Verdict(action="redirect", target="senior"))
    for _ in range(3):
        go(turns, ready(of=of))
    made = ready(of=of)
    wait: Any = go(turns, made)
    assert await wait.coroutine is None
    assert (made.target.name, made.upstream.name, made.path) == ("senior", "senior", "/base/run")


@pytest.mark.parametrize(
    "verdict",
    [
        None,
        Verdict(action="continue", turns=0),
        Verdict(action="redirect", target="nobody"),
        Verdict(action="redirect", target="openai"),
        Verdict(action="stop", reason="enough"),
    ],
)
async def test_what_does_not_help_stops(verdict: Verdict | None) -> None:
    turns, _, made, result = await supervised(verdict)
    assert isinstance(result, Refused)
    assert result.reason is Reason.LOOP
    assert made.target.name == "writer"
    assert "supervisor" in result.message
    assert turns.book.of("wf-1").is_stopped is (verdict is not None and verdict.action == "stop")


async def test_a_supervisor_that_is_silent_stops() -> None:
    _, _, _, result = await supervised(Verdict(action="finish"), asyncio.Event(), hold_s=0.0)
    assert isinstance(result, Refused)
    assert "did not answer in time" in result.message


def test_what_a_supervisor_stopped_stays_stopped_for_every_kind() -> None:
    turns = Turns()
    turns.book.of("wf-1").is_stopped = True
    for target in ("writer", "billing"):
        with pytest.raises(Refused, match="has stopped this task"):
            turns.admit(ready(target))


def event(turns: Turns, data: bytes, *, path: tuple[str, ...] = (), workflow: str = "wf-1", agent: str = "a") -> None:
    context = Context(workflow, agent, len(path), path, account=f"workflow/{workflow}")
    turns.events.publish(context, "task.done", data, policy(), now_s=NOW_S, wall_s=WALL_S)


def test_events_are_turns() -> None:
    turns = Turns()
    for _ in range(21):
        event(turns, b"tick")
    with pytest.raises(Refused) as refused:
        event(turns, b"tick")
    assert refused.value.reason is Reason.MAX_TURNS
    with pytest.raises(Refused) as again:
        event(Turns(), b"x", path=("a", "b") * 3)
    assert again.value.reason is Reason.LOOP
    event(Turns(), b"x", path=("a", "b") * 2)


def test_events_that_follow_from_nothing_are_not_counted() -> None:
    turns = Turns()
    for _ in range(100):
        event(turns, b"heartbeat", workflow="")


def test_explain_says_what_holds() -> None:
    turns = Turns()
    made = ready()
    go(turns, made)
    assert turns.explain(made) == (
        "0.1 of 20 turns from researcher to writer, a loop after 3 rounds of the same; highest step: refuse"
    )


def test_a_model_that_was_told_is_refused_shortly() -> None:
    turns = Turns()
    assert not looping(turns).is_repeated
    with pytest.raises(Refused) as refused:
        go(turns, ready())
    assert refused.value.is_repeated


async def test_calls_that_are_held_together_share_the_turns_of_one_answer() -> None:
    turns = Turns(judge=judge)
    turns.supervisor = Asked(Verdict(action="continue", turns=3))
    for _ in range(3):
        go(turns, ready(of=SUPERVISED))
    waits = [go(turns, ready(of=SUPERVISED)) for _ in range(5)]
    for wait in waits:
        assert await wait.coroutine is None
    assert turns.book.of("wf-1").grace == 2


@pytest.mark.parametrize(("path", "is_polled"), [("/health", True), ("/v1/ping", True), ("/run", False)])
def test_a_check_is_polled_by_any_method(path: str, is_polled: bool) -> None:
    turns, refused = Turns(), False
    try:
        for number in range(30):
            go(turns, ready("billing", url=path, now_s=NOW_S + number))
    except Refused:
        refused = True
    assert refused is not is_polled


def test_samples_of_a_model_are_no_loop() -> None:
    turns = Turns()
    request = {"model": "m", "temperature": 0.7, "messages": [{"role": "user", "content": "What is 2 + 2?"}]}
    for _ in range(40):
        answered(turns, asked(json.dumps(request).encode()), "4")
