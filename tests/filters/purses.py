"""Calls that come to Budget, and what it made of them, for the tests of budgets that are more than tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshd.call import Ask, Call, Usage, Wait
from meshd.dialects.openai import OpenAI
from meshd.filters.budget import Budget
from meshd.filters.held import Held
from meshd.ledger import Ledger
from meshd.policy.compiled import Policy
from meshd.refusal import Refused
from meshd_sdk.context import Context
from tests.filters.calls import call as make_call
from tests.filters.calls import outcome, policy

CONTEXT = Context(workflow="w1", agent="researcher", account="workflow/w1")
PRICES = """
prices:
  "big": {input: 10, output: 40}
  "small": {input: 1, output: 4}
  "free": {input: 0, output: 0}
"""
"""A token of `big` costs 10 and 40 micro-dollars, of `small` 1 and 4."""


OF_ASK = ("input_bound", "output_cap", "choices", "is_stream", "has_output")


def document(rules: str, more: str = "") -> Policy:
    """Load a policy with these rules, and with the prices above."""
    return policy(f"{PRICES}{more}\nrules: [{rules}]")


def asked(of: Policy, model: str = "big", *, context: Context = CONTEXT, target: str = "openai", **fields: Any) -> Call:
    """A call as it comes to Budget: 100 tokens of input at most, an answer of 50, unless `fields` say otherwise."""
    made_of = {"input_bound": 100, "output_cap": 50}
    made_of |= {key: fields.pop(key) for key in OF_ASK if key in fields}
    ask = Ask("chat", model, **made_of)
    made = make_call(target, ask=ask, of=of, **fields)
    made.agent, made.context, made.dialect = context.agent, context, OpenAI()
    made.plan = of.plan(made.target, made.agent, ask.operation)
    return made


def read(of: Policy, model: str = "big", **members: Any) -> Call:
    """A call whose body the dialect has read."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}], **members}).encode()
    made = make_call(ask=OpenAI().read("chat", body), of=of, body=body)
    made.agent, made.context, made.dialect = CONTEXT.agent, CONTEXT, OpenAI()
    made.plan = of.plan(made.target, made.agent, "chat")
    return made


async def admitted(budget: Budget, call: Call) -> Held | None:
    """Admit a call, waiting where it must wait."""
    decision = budget.admit(call)
    if isinstance(decision, Wait):
        decision = await decision.coroutine
    assert decision is None or isinstance(decision, Held)
    return decision


async def held(budget: Budget, call: Call) -> Held:
    """The same where it must hold something."""
    ticket = await admitted(budget, call)
    assert ticket is not None
    return ticket


async def refused(budget: Budget, call: Call) -> Refused:
    """The same where it must be refused."""
    with pytest.raises(Refused) as info:
        await admitted(budget, call)
    return info.value


def settle(ticket: Held, given: int | None = None, made: int = 0, **fields: Any) -> None:
    """End an attempt that was sent, with a usage where `given` says one."""
    usage = None if given is None else Usage(given, made)
    ticket.settle(outcome(is_forwarded=True, usage=usage, **fields))


def books(ledger: Ledger) -> dict[str, tuple[int, int]]:
    """Return what each account has spent and holds."""
    return {view.id: (view.spent, view.reserved) for view in ledger.snapshot()}


def header(call: Call, name: bytes) -> list[str]:
    """Return the values of a reply header that meshd adds."""
    return [value.decode() for key, value in call.reply_headers if key == name]
