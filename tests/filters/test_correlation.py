"""Correlation: what evidence says belongs together does, and what it leaves open belongs to nobody."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.call import Ask, Call, Direction, Evidence
from meshd.dialects.event import Event
from meshd.dialects.marks import marks_of
from meshd.dialects.marks_answer import answer_marks
from meshd.dialects.table import DIALECTS
from meshd.filters import correlation, correlation_calls, correlation_words
from meshd.filters.context import Context
from meshd.filters.correlation_calls import KEPT_S, NOBODY, Conversation, Memory
from meshd.span import PassedThrough, Span
from meshd_sdk import context as codec
from meshd_sdk.context import Audience
from tests.filters.calls import NOW_S, SUCCESS, WALL_S, Bytes, Keys, call, outcome, policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.filters.correlation_calls import Live

LONG = "The harbour of Lisbon has seen ships from every part of the world."
OTHER = "Copper was mined on the island long before the first coins were struck."
TASK, TASK_B = "Compare the harbours of Lisbon and Cork.", "Explain how copper came to the island."


class Side:
    """One sidecar's Context, and the calls that pass it."""

    def __init__(self, text: str = "") -> None:
        self.keys = Keys()
        self.context = Context(self.keys, Bytes())  # type: ignore[arg-type]
        self.policy = policy(text)
        self.now_s = NOW_S
        self._number = 0

    def inbound(self, task: str = "", workflow: str = "", body: bytes | None = None, **fields: Any) -> Live:
        """Let a call in from another sidecar; `workflow` names the one that its token says."""
        self.now_s += 0.01
        headers = []
        if workflow:
            self._number += 1
            known = codec.Context(workflow, "boss", account="workflow/" + workflow, **fields)
            made = codec.mint(
                known, self.keys.ring, audience=Audience.PEER, expires_s=int(WALL_S) + 9999,
                nonce=self._number.to_bytes(8, "big"),
            )  # fmt: skip
            headers = [(codec.HEADER_CONTEXT, made)]
        made_call = call("app", headers=headers, direction=Direction.INBOUND, of=self.policy, now_s=self.now_s)
        live: Any = self.context.admit(made_call)
        live.hear(json.dumps({"params": {"message": task}}).encode() if body is None else body)
        return live

    def end(self, live: Live) -> None:
        """The inbound call ends."""
        self.now_s += 0.01
        live.settle(outcome(now_s=self.now_s))

    def outbound(self, body: dict[str, Any] | None = None, api: str = "openai", **fields: Any) -> tuple[Call, Any]:
        """Let the agent call; return the call, judged, and its ticket."""
        self.now_s += 0.01
        headers = fields.pop("headers", [])
        made = call(headers=headers, of=self.policy, now_s=self.now_s, **fields)
        made.dialect = DIALECTS[api if body is not None else "plain"]
        if body is not None:
            made.body = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
            made.ask = made.dialect.read(fields.get("operation", "chat"), made.body, made.path)
        return made, self.context.admit(made)

    def chat(self, *messages: Any, answer: Any = None, **fields: Any) -> Call:
        """Let the agent chat, and its model answer."""
        made, ticket = self.outbound({"model": "m", "messages": list(messages)}, **fields)
        if answer is not None and ticket is not None:
            body = {"choices": [{"index": 0, "message": answer, "finish_reason": "stop"}]}
            watch(ticket, json.dumps(body).encode())
        if ticket is not None:
            ticket.settle(SUCCESS)
        return made


def watch(ticket: Any, *raws: bytes) -> None:
    for raw in raws:
        event = Event()
        event.raw = raw
        assert ticket.on_event(event) is event


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def asks(id: str, query: str = "x") -> dict[str, Any]:
    function = {"name": "look_up", "arguments": json.dumps({"query": query})}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": id, "type": "function", "function": function}]}


def result(id: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": "Nothing."}


def tied(made: Call) -> tuple[str, str]:
    assert made.context is not None
    return made.evidence.value, made.context.workflow


NONE = ("none", "")


@pytest.fixture
def side() -> Side:
    return Side()


# ---------------------------------------------------------------------- the rungs


def test_what_an_agent_does_with_nobody_calling_is_its_own(side: Side) -> None:
    made = side.chat(user(TASK))
    assert tied(made) == NONE
    assert made.context is not None
    assert made.context.account.startswith("unattributed/researcher/")


def test_one_call_alone_is_what_the_agent_works_for(side: Side) -> None:
    live = side.inbound(workflow="wf-a")
    assert tied(side.chat(user("Go."))) == ("alone", "wf-a")
    assert tied(side.outbound()[0]) == ("alone", "wf-a")
    other = side.inbound(workflow="wf-b")
    assert tied(side.chat(user("Other."))) == NONE
    assert tied(side.outbound()[0]) == NONE
    side.end(other)
    side.end(live)
    assert tied(side.chat(user("At last."))) == NONE


def test_a_trace_of_one_inbound_call_ties_and_of_two_does_not(side: Side) -> None:
    def traced(digit: str) -> Live:
        made = call("app", direction=Direction.INBOUND, of=side.policy, now_s=side.now_s)
        made.span = PassedThrough(False, f"00-{digit * 32}-{'b' * 16}-01", int(digit * 32, 16), 11)
        live: Any = side.context.admit(made)
        return live

    def ask(digit: str) -> Call:
        return side.outbound(headers=[(b"traceparent", f"00-{digit * 32}-{'c' * 16}-01".encode())])[0]

    first, second = traced("1"), traced("2")
    assert tied(ask("1")) == ("trace", first.context.workflow)
    assert tied(ask("2")) == ("trace", second.context.workflow)
    assert tied(ask("3")) == NONE
    third = traced("2")
    assert tied(ask("2")) == NONE
    side.end(second)
    assert tied(ask("2")) == ("trace", third.context.workflow)
    assert tied(side.outbound(headers=[(b"traceparent", b"00-" + b"2" * 32 + b"-zz-01")])[0]) == NONE


def test_a_tool_call_that_was_relayed_is_quoted_back(side: Side) -> None:
    a, b = side.inbound(TASK, "wf-a"), side.inbound(TASK_B, "wf-b")
    assert tied(side.chat(user(TASK), answer=asks("call_a"))) == ("quoted", "wf-a")
    assert tied(side.chat(user(TASK_B), answer=asks("call_b"))) == ("quoted", "wf-b")
    # The history is pruned: nothing of the task is left in it.
    assert tied(side.chat(asks("call_b"), result("call_b"))) == ("relayed", "wf-b")
    side.end(a)
    side.end(b)
    assert tied(side.chat(asks("call_a"), result("call_a"))) == ("relayed", "wf-a")
    # What nobody relayed proves nothing.
    assert tied(side.chat(asks("call_c"), result("call_c"))) == NONE


def test_an_answer_that_was_relayed_is_quoted_back_and_short_ones_are_nobodys(side: Side) -> None:
    side.inbound(TASK, "wf-a")
    side.inbound(TASK_B, "wf-b")
    side.chat(user(TASK), answer=said(LONG))
    side.chat(user(TASK_B), answer=said("Done."))
    assert tied(side.chat(user("Earlier:"), said(LONG + "\n"), user("Go on."))) == ("relayed", "wf-a")
    assert tied(side.chat(user("Earlier:"), said("Done."), user("Go on."))) == NONE


def test_the_longest_history_decides(side: Side) -> None:
    side.inbound(TASK, "wf-a")
    side.inbound(TASK_B, "wf-b")
    opening = user("Say the first thing.")
    # Two conversations that begin alike; what came to neither is told apart by what was said since.
    side.chat(user(TASK), said("A."), opening, answer=said("One."))
    side.chat(user(TASK_B), said("B."), opening, answer=said("Two."))
    one = side.chat(user(TASK), said("A."), opening, said("One."), user("And?"))
    assert tied(one) == ("history", "wf-a")
    assert tied(side.chat(user(TASK_B), said("B."), opening, said("Two."), user("And?"))) == ("history", "wf-b")
    cached = [{"type": "text", "text": TASK, "cache_control": {"type": "ephemeral"}}]
    marked = {"role": "user", "content": cached}
    assert tied(side.chat(marked, said("A."), opening, said("One."), user("Or?"))) == ("history", "wf-a")


def test_the_same_beginning_is_no_history(side: Side) -> None:
    side.inbound(workflow="wf-a")
    assert tied(side.chat(user("Begin."))) == ("alone", "wf-a")
    side.inbound(workflow="wf-b")
    assert tied(side.chat(user("Begin."))) == NONE
    again = side.chat(user("Begin."), headers=[(b"x-stainless-retry-count", b"1")])
    assert tied(again) == NONE  # By now two have begun so.


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("is_ascii", [True, False])
@pytest.mark.parametrize("task", ["Wäge “Häfen” gegen\nStraßen ab, in drei Punkten.", "Sum up item 17", "ORDER-10293b"])
def test_a_task_is_found_in_the_prompt_however_it_is_spelled(
    side: Side, task: str, is_ascii: bool, separators: tuple[str, str]
) -> None:
    side.inbound(task, "wf-a", body=json.dumps({"task": task}, ensure_ascii=not is_ascii).encode())
    side.inbound("Sum up item 171", "wf-b")
    made = call(of=side.policy, now_s=side.now_s)
    made.dialect = DIALECTS["openai"]
    body = {"model": "m", "messages": [user(f"Somebody asks: {task}.")]}
    made.body = json.dumps(body, ensure_ascii=is_ascii, separators=separators).encode()
    made.ask = made.dialect.read("chat", made.body)
    side.context.admit(made)
    assert tied(made) == ("quoted", "wf-a")


def test_a_task_that_came_twice_is_for_whoever_has_not_begun(side: Side) -> None:
    side.inbound(TASK, "wf-a")
    assert tied(side.chat(user(TASK))) == ("quoted", "wf-a")
    side.inbound(TASK, "wf-b")
    assert tied(side.chat(user(TASK), headers=[(b"x-stainless-retry-count", b"1")])) != ("quoted", "wf-b")
    assert tied(side.chat(user(TASK))) == ("quoted", "wf-b")
    assert tied(side.chat(user(TASK))) == NONE


def test_answers_begin_other_conversations(side: Side) -> None:
    side.inbound(TASK, "wf-a")
    side.inbound(TASK_B, "wf-b")
    side.chat(user(TASK), answer=said(LONG))
    assert tied(side.chat(user(f"Shorten this: {LONG}"))) == ("quoted", "wf-a")


# ---------------------------------------------------------------------- what is left open


def test_two_candidates_are_none_and_a_weaker_rung_adds_none(side: Side) -> None:
    a, b, c = side.inbound(TASK, "wf-a"), side.inbound(TASK, "wf-b"), side.inbound(TASK_B, "wf-c")
    made = side.chat(user(TASK), answer=asks("call_1"))
    assert tied(made) == NONE
    assert made.context is not None
    assert made.context.account.startswith("unattributed/")
    # What it was given can be for the first two alone, whatever else stands in it.
    assert tied(side.chat(asks("call_1"), result("call_1"), user(TASK_B))) == NONE
    side.end(c)
    assert tied(side.chat(asks("call_1"), result("call_1"))) == NONE
    side.end(a)
    assert tied(side.chat(asks("call_1"), result("call_1"))) == ("alone", "wf-b")
    side.end(b)


def test_ids_that_come_in_every_conversation_tell_nothing_and_take_nothing(side: Side) -> None:
    for number in range(12):
        side.inbound(f"Write at length about the harbour number {number}.", f"wf-{number}")
    for number in range(12):
        opening = user(f"Write at length about the harbour number {number}.")
        side.chat(opening, answer=asks("call_0", f"harbour number {number}, please"))
    for number in range(12):
        made = side.chat(asks("call_0", f"harbour number {number}, please"), result("call_0"))
        assert tied(made) == ("relayed", f"wf-{number}")
    assert tied(side.chat(asks("call_0"), result("call_0"))) == NONE


def test_what_the_agent_began_of_its_own_accord_stays_its_own(side: Side) -> None:
    side.end(side.inbound(workflow="wf-0"))
    opening = user("Tidy up the archive.")
    assert tied(side.chat(opening, answer=said(LONG))) == NONE
    side.inbound(workflow="wf-a")
    assert tied(side.chat(opening, said(LONG), user("Go on."))) == NONE
    assert tied(side.chat(user("Something new."))) == ("alone", "wf-a")


def test_that_others_end_does_not_give_the_agents_own_work_to_the_last(side: Side) -> None:
    live = side.inbound(TASK, "wf-a")
    side.inbound(TASK_B, "wf-b")
    opening = user("Tidy up the archive.")
    assert tied(side.chat(opening, answer=said(LONG))) == NONE
    side.end(live)
    assert tied(side.chat(opening, said(LONG), user("Go on."))) == NONE
    # Until something in it speaks for somebody.
    made = side.chat(opening, said(LONG), user("Go on."), said(OTHER), user(TASK_B), answer=asks("call_b"))
    assert tied(made) == ("quoted", "wf-b")
    assert tied(side.chat(asks("call_b"), result("call_b"))) == ("relayed", "wf-b")


def test_calls_of_one_workflow_are_told_apart_by_none_and_the_tightest_holds(side: Side) -> None:
    near, far = WALL_S + 60, WALL_S + 600
    side.inbound(TASK, "wf-a", hops=1, path=("x",), deadline_s=far, ceiling=500)
    side.inbound(TASK, "wf-a", hops=4, path=("x", "y"), deadline_s=near, ceiling=900)
    made = side.chat(user(TASK))
    assert tied(made) == ("quoted", "wf-a")
    assert made.context is not None
    assert (made.context.hops, made.context.path) == (5, ("x", "y"))
    assert (made.context.deadline_s, made.context.ceiling) == (near, 500)


def test_evidence_ends_an_hour_after_the_call_or_at_its_deadline(side: Side) -> None:
    live = side.inbound(TASK, "wf-a")
    side.inbound(TASK_B, "wf-b")
    side.chat(user(TASK), answer=asks("call_a"))
    side.end(live)
    side.now_s += KEPT_S - 1
    assert tied(side.chat(asks("call_a"), result("call_a"))) == ("relayed", "wf-a")
    side.now_s += 2
    # It was another's: that one who is alive may be meant is no reason to charge it.
    assert tied(side.chat(asks("call_a"), result("call_a"))) == NONE
    short = side.inbound(OTHER, "wf-c", deadline_s=WALL_S + 5)
    side.chat(user(OTHER), answer=asks("call_c"))
    side.end(short)
    assert tied(side.chat(asks("call_c"), result("call_c"))) == ("relayed", "wf-c")
    assert tied(side.chat(asks("call_c"), result("call_c"), wall_s=WALL_S + 6)) == NONE


# ---------------------------------------------------------------------- strength, and the switch


def test_what_a_caller_says_itself_is_stronger(side: Side) -> None:
    side.inbound(TASK, "wf-a")
    named = side.chat(user(TASK), headers=[(codec.HEADER_WORKFLOW, b"nightly")])
    assert tied(named) == ("named", "nightly")
    mine = codec.Context("wf-9", "researcher", account="workflow/wf-9")
    shown = codec.mint(
        mine, side.keys.ring, audience=Audience.LOCAL, expires_s=int(WALL_S) + 60, nonce=b"12345678"
    )  # fmt: skip
    made, ticket = side.outbound(
        {"model": "m", "messages": [user(TASK)]}, headers=[(codec.HEADER_CONTEXT, shown)]
    )  # fmt: skip
    assert (tied(made), ticket) == (("token", "wf-9"), None)


def test_the_policy_can_forbid_to_infer() -> None:
    side = Side("limits: {infers_context: false}")
    made = call("app", direction=Direction.INBOUND, of=side.policy)
    assert side.context.admit(made) is None
    assert made.heard_by is None
    outbound, ticket = side.outbound({"model": "m", "messages": [user(TASK)]})
    assert (tied(outbound), ticket) == (NONE, None)


def test_inferred_context_is_the_inbound_calls_and_a_claim_still_narrows_it(side: Side) -> None:
    live = side.inbound(TASK, "wf-a", hops=3, path=("x",), deadline_s=WALL_S + 90, ceiling=700)
    headers = [(codec.HEADER_HOPS, b"9"), (codec.HEADER_DEADLINE, b"500")]
    made = side.chat(user(TASK), headers=headers)
    assert made.evidence.is_inferred
    assert made.context is not None
    assert (made.context.hops, made.context.deadline_s, made.context.ceiling) == (9, WALL_S + 90, 700)
    plain = side.chat(user(TASK + " "))
    assert plain.context == live.context
    assert "inferred" in side.context.explain(plain)
    assert plain.context is side.chat(user(TASK + "  ")).context, "tokens of it are minted once"


def test_the_span_of_an_inferred_call_lies_under_the_inbound_calls(side: Side) -> None:
    made = call("app", direction=Direction.INBOUND, of=side.policy, now_s=side.now_s)
    made.span = Span(True)
    side.context.admit(made)
    mine, _ = side.outbound()
    assert mine.context is not None
    assert mine.context.parent == made.span.traceparent


# ---------------------------------------------------------------------- nonsense, and bounds


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "own"]), st.integers(0, 3)), max_size=24), st.booleans())
def test_no_call_is_ever_tied_to_anothers_workflow(moves: list[tuple[str, int]], is_same: bool) -> None:
    """Two tasks, told apart or not, and what the agent does of its own accord, in any order."""
    side = Side()
    tasks = {"a": TASK, "b": TASK if is_same else TASK_B, "own": "Tidy up the archive of the island."}
    live = {name: side.inbound(tasks[name], f"wf-{name}") for name in ("a", "b")}
    chats: dict[str, list[list[Any]]] = {name: [] for name in tasks}
    for number, (name, at) in enumerate(moves):
        if at == 3 and name in live and len(live) > 1:
            side.end(live.pop(name))
            chats[name].clear()
            continue
        if name != "own" and name not in live:
            continue
        if name == "own" and len(live) < 2:
            continue  # With one call alive, what the agent does is taken to be for it: the rule says so.
        if at >= len(chats[name]):
            chats[name].append([user(tasks[name])])
        chat = chats[name][min(at, len(chats[name]) - 1)]
        if is_same and len(chat) == 1 and chats[name][0] is not chat:
            chats[name].pop()
            continue  # To begin twice just as another does cannot be told from the other's beginning.
        made = side.chat(*chat, answer=asks(f"call_{number}"))
        if made.evidence is not Evidence.NONE and not (is_same and len(chat) == 1):
            assert tied(made)[1] == f"wf-{name}"
        chat += [asks(f"call_{number}"), result(f"call_{number}")]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "type", "text", "id", "tool_calls", "call_id", "parts", "function", "x"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=16,
)


@given(st.sampled_from(["openai", "anthropic", "gemini", "ollama"]), json_values, st.binary(max_size=80))
def test_nonsense_in_bodies_and_answers_ties_nothing_and_breaks_nothing(api: str, value: Any, raw: bytes) -> None:
    pairs = {name: json.dumps(value).encode() for name in ("messages", "input", "contents", "conversation")}
    for operation in ("chat", "responses"):
        marks_of(api, Ask(operation, "m", fields=SimpleNamespace(pairs=pairs)))
        answer = answer_marks(api, operation)
        if answer is not None:
            for data in (json.dumps(value).encode(), raw, b"data: " + raw + b"\n\n", b'{"choices": ' + raw):
                answer.read(data)
            assert all(type(text) is str for text in answer.texts() + answer.arguments() + answer.ids)


@given(st.binary(max_size=400), st.text(max_size=60))
def test_an_inbound_body_may_be_anything(body: bytes, prompt: str) -> None:
    side = Side()
    side.inbound(workflow="wf-a", body=body)
    side.inbound(workflow="wf-b", body=body)
    made = side.chat(user(prompt))
    assert tied(made) == NONE, "two calls that say the same are never told apart"


def test_memory_is_bounded() -> None:
    memory = Memory()
    many = correlation_calls.KEYS_MAX
    for key in range(many + 42):
        memory.add(key, Conversation(NOBODY, None, 0.0, 0.0))
    assert len(memory) == many
    assert memory.get(many + 41)
    assert memory.get(41) is None


def test_what_is_kept_of_calls_is_bounded(side: Side) -> None:
    side.inbound(workflow="wf")
    side.chat(user("x"))
    for number in range(correlation.ENDED_MAX + 20):
        live = side.inbound(f"Write about the harbour number {number} at length.", f"wf-{number}")
        live.hear(b"z" * 100_000)
        assert len(live.heard()) <= correlation_calls.HEARD_BYTES_MAX
        side.end(live)
        assert live.heard() == b""
    words: Callable[[], int] = side.context._correlation.words.__len__
    assert words() == correlation.ENDED_MAX * 2


def test_calls_that_nobody_asked_about_leave_no_words(side: Side) -> None:
    """Where every call says what it belongs to, nothing is ever looked for, and nothing may pile up."""
    words = side.context._correlation.words
    for number in range(5):
        made = call(
            "app", path=f"/find?q=the+harbours+of+country+{number}", direction=Direction.INBOUND, of=side.policy,
            now_s=side.now_s,
        )  # fmt: skip
        live: Any = side.context.admit(made)
        side.end(live)
    assert len(words) == 0


def test_what_is_kept_of_answers_is_bounded_in_bytes(side: Side) -> None:
    """An answer of JSON in one line is one piece, however long it is."""
    live = side.inbound(TASK, "wf")
    for number in range(40):
        side.chat(user(f"{TASK} {number}"), answer=said(f"{number:06}" * 5_000))
    answers = side.context._correlation.answers
    kept = answers._of.get(live, [])
    assert sum(len(piece) for piece in kept) <= correlation_words.BROUGHT_BYTES_MAX
    side.chat(user(f"{TASK} once more"), answer=said(LONG))
    assert tied(side.chat(user(f"Say it again: {LONG}"))) == ("quoted", "wf")
    answers.drop(live)
    assert len(answers) == 0
    assert not answers._sizes
