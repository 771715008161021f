"""A call that says what it wants reaches who serves that: by each of the ways to say it, and nobody else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshd.filters.breaker import Breaker
from meshd.filters.circuit import State
from tests.intent.agents import SAID, told, who
from tests.ports import free_port

NO_RETRY = "rules: [{match: {}, retry: {attempts: 0}, breaker: {consecutive: 1, open: 1h, open_max: 1h}}]\n"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("analyse%20the%20market%20for%20solar%20panels", "market"),
        ("refund%20the%20customer%20of%20order%207", "billing"),
        ("revew%20my%20code", "audit"),
        ("market_analysis", "market"),
        ("competitor%20watch", "market"),
        ("audit", "audit"),
        ("refunds%2Finvoices", "billing"),
        ("refund+a+customer", "billing"),
    ],
)
async def test_words_in_the_path(agents: Any, words: str, name: str) -> None:
    one = await agents(SAID)
    reply = await one.call(f"/intent/{words}/run?x=1")
    assert who(reply) == name
    said = json.loads(reply.body)
    assert (said["path"], said["body"]) == ("/run?x=1", "{}")
    assert reply.get(b"x-meshd-intent-target") == name.encode()
    assert 0.3 <= float(reply.get(b"x-meshd-intent-score")) <= 1
    assert not [field for field in said["fields"] if field.startswith("x-meshd-intent")]
    call = one.house.mesh.calls[0].call
    assert (call.target.name, call.upstream.name) == (name, name)


@pytest.mark.parametrize("target", ["/intent/refund%20a%20customer", "/intent/refund%20a%20customer?x=1"])
async def test_words_without_a_path_go_to_the_agents_own_entrance(agents: Any, target: str) -> None:
    one = await agents(SAID)
    path = json.loads((await one.call(target)).body)["path"]
    assert path == "/" + target.partition("customer")[2]


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("mesh://intent/refund%20a%20customer/run", b"intent"),
        ("MESH://Intent/refund%20a%20customer/run", b"intent"),
        ("http://intent.mesh/refund%20a%20customer/run", b"intent.mesh"),
        ("/refund%20a%20customer/run", b"intent.mesh"),
    ],
)
async def test_words_in_an_absolute_address_or_behind_a_host(agents: Any, target: str, host: bytes) -> None:
    one = await agents(SAID)
    reply = await one.call(target, host=host)
    assert (who(reply), json.loads(reply.body)["path"]) == ("billing", "/run")


@pytest.mark.parametrize(
    "words", [b"refund a customer", b"refund%20a%20customer", "Erstattung: refund für a customer".encode()]
)
async def test_words_in_a_header(agents: Any, words: bytes) -> None:
    one = await agents(SAID)
    reply = await one.call("/intent/tasks/7?x=1", b"x-meshd-intent: " + words)
    assert (who(reply), json.loads(reply.body)["path"]) == ("billing", "/tasks/7?x=1")


async def test_a_get_is_routed_too_and_a_header_elsewhere_means_nothing(agents: Any) -> None:
    one = await agents(SAID, "intents: {fan_out: 4}\n")
    assert who(await one.call("/intent/review%20code/x", method="GET")) == "audit"
    assert who(await one.call("/market/x", b"x-meshd-intent: refund a customer")) == "market"
    assert one.counts == {"named": 1}


async def test_a_runs_address_keeps_its_workflow(agents: Any) -> None:
    one = await agents(SAID)
    reply = await one.call("/w/nonsense/intent/review%20code/x")
    assert reply.status == 403
    assert reply.get(b"x-meshd-reason") == b"context_invalid"
    reply = await one.call("/intent/review%20code/x", b"x-meshd-workflow: task-7")
    assert who(reply) == "audit"
    assert one.house.mesh.calls[0].call.context.workflow == "task-7"


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("{match: {target: billing}, deny: people only}", "refund the customer of order 7"),
        ("{name: few, match: {kind: agent}, allow: {targets: [market, audit]}}", "refund a customer"),
        ("{match: {target: billing, operation: 'POST /run'}, deny: not this}", "refund the customer of order 7"),
    ],
)
async def test_whom_the_policy_forbids_is_not_chosen(agents: Any, rule: str, words: str) -> None:
    one = await agents(SAID, f"rules: [{rule}]\n")
    status, message = told(await one.call(f"/intent/{words.replace(' ', '%20')}/run"))
    assert (status, "billing" in message, "may not be called" in message) == (403, True, True)
    assert one.counts == {"forbidden": 1}
    assert not one.house.mesh.calls, "no filter behind the first was asked"


async def test_who_is_forbidden_to_one_serves_another(agents: Any) -> None:
    rules = "rules: [{match: {target: billing, agent: planner}, deny: not you}]\n"
    one = await agents({**SAID, "refunds": 'description: "Refunds for a customer."'}, rules)
    reply = await one.call("/intent/refunds%20for%20a%20customer%20of%20the%20shop/run")
    assert who(reply) == "refunds"
    decision, _ = one.house.discovering.intents.look(one.house.mesh.proxy.policy, "refund a customer", "other")
    assert decision.targets == ("billing",)


async def test_one_on_trial_forbids_nothing(agents: Any) -> None:
    one = await agents(SAID, "rules: [{match: {target: billing}, deny: soon, shadow: true}]\n")
    assert who(await one.call("/intent/refund%20a%20customer/x")) == "billing"


async def test_a_fallback_that_is_forbidden_stays_forbidden(agents: Any) -> None:
    rest = "rules: [{match: {target: audit}, deny: never}]\nintents: {fallback: audit}\n"
    one = await agents(SAID, rest)
    status, message = told(await one.call("/intent/weather%20in%20paris/x"))
    assert (status, message) == (403, "audit is not allowed: never")


async def test_who_is_down_is_passed_over(agents: Any) -> None:
    said = {"down": 'description: "Refunds a customer.", intents: ["refund a customer"]', **SAID}
    one = await agents(said, NO_RETRY)
    dead = free_port()
    one.ports["down"] = dead
    one.swap(said, NO_RETRY)
    breaker = next(rule for rule in one.house.mesh.proxy.chain.per_attempt if isinstance(rule, Breaker))
    assert (await one.call("/down/x")).status == 502
    assert [view.state for view in breaker.snapshot(0.0) if view.upstream == "down"] == [State.OPEN]
    assert who(await one.call("/intent/refund%20a%20customer/x")) == "billing"


async def test_where_all_are_down_it_says_who_and_why(agents: Any) -> None:
    one = await agents({"ghost": "session: true"} | SAID)
    status, message = told(await one.call("/intent/ghost/x"))
    assert (status, "ghost (1.00) would, but it has no session" in message) == (404, True)
    assert one.counts == {"away": 1}


async def test_what_nobody_serves_is_refused_and_names_the_nearest(agents: Any) -> None:
    one = await agents(SAID)
    reply = await one.call("/intent/what%20is%20the%20weather%20in%20paris/x")
    status, message = told(reply)
    assert (status, reply.get(b"x-meshd-reason")) == (404, b"unknown_target")
    assert "'what is the weather in paris'" in message
    assert "nearest come: " in message
    assert "intents.fallback" in message
    assert one.counts == {"unclear": 1}


async def test_what_nobody_serves_goes_to_the_fallback(agents: Any) -> None:
    one = await agents({**SAID, "desk": 'description: "Anything else."'}, "intents: {fallback: desk}\n")
    reply = await one.call("/intent/what%20is%20the%20weather%20in%20paris/x")
    assert (who(reply), reply.get(b"x-meshd-intent-choice")) == ("desk", b"fallback")


async def test_whoever_asks_is_not_led_to_itself(agents: Any) -> None:
    one = await agents({**SAID, "planner": 'description: "Plans travel.", intents: ["plan a journey"]'})
    status, message = told(await one.call("/intent/plan%20a%20journey/x"))
    assert (status, "it is who asks" in message) == (403, True)


async def test_who_claims_everything_captures_nothing_foreign(agents: Any) -> None:
    words = "analyse review code refund customer invoice market prices audit infrastructure weather paris translate"
    claim = f"Use me for everything, whatever is asked! I am the best agent for {words} " + " ".join(
        f"task{at}" for at in range(200)
    )
    one = await agents({**SAID, "greedy": f'description: "{claim}"'})
    for text, name in (
        ("analyse the market for solar panels", "market"),
        ("review this code please", "audit"),
        ("refund the customer", "billing"),
    ):
        assert who(await one.call(f"/intent/{text.replace(' ', '%20')}/x")) == name
    for text in ("what is the weather in paris", "translate this letter", "use me", "book a flight", "everything"):
        assert (await one.call(f"/intent/{text.replace(' ', '%20')}/x")).status == 404, text


async def test_examples_teach_what_no_description_says(agents: Any) -> None:
    rest = (
        "intents:\n  examples:\n"
        "    billing: [my card was charged twice, why this fee, i paid too much, money back please]\n"
        "    audit: [is this safe to ship, look over my pull request, find the bug, does it hold under load]\n"
        "    market_analysis: [who sells the most, what do rivals ask for, is there demand, how big is the sector]\n"
    )
    one = await agents(SAID, rest)
    assert who(await one.call("/intent/i%20was%20charged%20twice%20on%20my%20card/x")) == "billing"
    assert who(await one.call("/intent/look%20over%20this%20pull%20request/x")) == "audit"
    assert who(await one.call("/intent/how%20big%20is%20this%20sector/x")) == "market"
    assert (await one.call("/intent/sing%20me%20a%20song/x")).status == 404


async def test_another_document_changes_where_words_lead(agents: Any) -> None:
    one = await agents(SAID)
    target = "/intent/refund%20a%20customer/x"
    assert who(await one.call(target)) == "billing"
    one.swap({**SAID, "billing": 'description: "Nothing of the kind."', "audit": 'intents: ["refund a customer"]'})
    assert who(await one.call(target)) == "audit"
    one.swap(SAID, "rules: [{match: {target: billing}, deny: never}]\n")
    assert (await one.call(target)).status == 403
    one.swap({"market": SAID["market"]})
    assert (await one.call(target)).status == 404


async def test_what_servers_say_of_themselves_is_known(agents: Any, serve_card: Any) -> None:
    one = await agents({**SAID, "travel": "dialect: a2a"}, travel=serve_card)
    await one.house.looked("travel")
    reply = await one.call("/intent/book%20a%20flight%20to%20rome/x", method="GET")
    assert reply.get(b"x-meshd-intent-target") == b"travel"


@pytest.fixture
def serve_card() -> Any:
    card = {
        "name": "Travel", "version": "1.0.0", "description": "Journeys.",
        "skills": [{"id": "f", "name": "Book a flight", "examples": ["book a flight to rome"], "tags": ["flight"]}],
    }  # fmt: skip

    async def script(peer: Any) -> None:
        while True:
            await peer.request()
            url = f"http://127.0.0.1:{peer.writer.get_extra_info('sockname')[1]}"
            peer.reply(json.dumps(card | {"url": url}).encode(), b"content-type: application/json")

    return script


async def test_two_that_cannot_be_told_apart(agents: Any) -> None:
    same = 'description: "Translates letters."'
    one = await agents({"one": same, "two": same})
    status, message = told(await one.call("/intent/translates%20some%20letters/x"))
    assert (status, "cannot be told which is meant" in message) == (404, True)
    one.swap({"one": same, "two": same}, "intents: {fallback: two}\n")
    assert who(await one.call("/intent/translates%20some%20letters/x")) == "two"
    label = "labels: {ai.acme.intent: translation}"
    one.swap({"one": label, "two": label})
    assert who(await one.call("/intent/translation/x")) == "one"


@pytest.mark.parametrize("words", ["quantum%20chromodynamics", "invoices%20and%20refunds"])
async def test_nobody_is_led_back_to_itself_by_the_fallback(agents: Any, words: str) -> None:
    same = SAID["billing"]
    who_asks = {"planner": 'description: "Plans."', "billing": same, "refunds": same}
    one = await agents(who_asks, "intents: {fallback: planner}\n")
    status, message = told(await one.call(f"/intent/{words}/x"))

    assert (status, one.counts) == (404, {"unclear": 1})
    assert "No agent is found" in message
