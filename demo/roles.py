"""What each agent of the demo does when it is given a task: one function a role."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from demo.agent import Agent, Result, Role

_RUNAWAY_WORKERS = 6
_RUNAWAY_CALLS_MAX = 400
_CLARIFICATIONS_MAX = 100
_THINGS = [
    "bees",
    "rivers",
    "trains",
    "letters",
    "bridges",
    "clocks",
    "gardens",
    "harbours",
    "kites",
    "lamps",
    "maps",
    "nests",
    "orchards",
    "pianos",
]
_SIDES = [
    "history",
    "cost",
    "sound",
    "future",
    "colour",
    "keepers",
    "enemies",
    "names",
    "shape",
    "price",
    "smell",
    "weather",
    "making",
    "ending",
]
_QUESTIONS = (
    "Could you clarify which quarter the report is about?",
    "Which quarter is the report about, could you clarify?",
    "Could you please clarify once more which quarter the report is about?",
)


async def manage(agent: Agent, body: Result, carry: dict[str, str]) -> Result:
    """Plan, then have it researched."""
    plan = await agent.think("Plan a report on " + body["task"] + " in 20 words", carry)
    found = await agent.call("researcher", {"task": plan}, carry)
    return {"agent": agent.name, "next": found}


async def research(agent: Agent, body: Result, carry: dict[str, str]) -> Result:
    """Find facts, then have them written up."""
    facts = await agent.think("Find facts for this plan in 30 words", carry)
    written = await agent.call("writer", {"task": facts}, carry)
    return {"agent": agent.name, "next": written}


async def write(agent: Agent, body: Result, carry: dict[str, str]) -> Result:
    """Write the report, streaming."""
    text = await agent.think("Write the report in 60 words", carry)
    return {"agent": agent.name, "text": text}


async def answer_back(agent: Agent, body: Result, carry: dict[str, str]) -> Result:
    """Never content: whatever is said, the other one is asked again."""
    turn = int(body.get("turn", 1))
    await agent.think("Do you agree? Answer in 4 words", carry)
    other = "pong" if agent.name == "ping" else "ping"
    reply = await agent.call(other, {"task": "are you sure?", "turn": turn + 1}, carry)
    return {"turn": turn, "refused": reply["refused"]} if "turn" not in reply else reply


async def pass_on(agent: Agent, body: Result, carry: dict[str, str]) -> Result:
    """Never done: there is always something new to be looked at by the other desk."""
    turn = int(body.get("turn", 1))
    task = f"Now look at it for what is known {_subject(turn)}"
    return await agent.call("desk-b" if turn % 2 else "desk-a", {"task": task, "turn": turn + 1}, carry)


async def want_clarity(agent: Agent, body: Result, carry: dict[str, str]) -> Result:
    """Ask the analyst, get a question back, and ask again in other words, until somebody ends it."""
    for turn in range(_CLARIFICATIONS_MAX):
        question = _QUESTIONS[turn % len(_QUESTIONS)]
        reply = await agent.call("analyst", {"task": question}, carry)
        if "refused" in reply:
            return {"asked": turn, "refused": reply["refused"]}
    return {"asked": _CLARIFICATIONS_MAX}


async def ask_back(agent: Agent, body: Result, carry: dict[str, str]) -> Result:
    """Think about the question, and answer with another one."""
    await agent.think(f"{body['task']} Answer in 4 words", carry)
    return {"text": "Before I can say: which region do you mean? Please clarify."}


async def run_away(agent: Agent, body: Result, carry: dict[str, str]) -> Result:
    """Ask for ever new things, several at once, and stop for nothing but the end of the budget."""
    from openai import APIStatusError, AsyncOpenAI

    counts = {"calls": 0, "answers": 0, "busy": 0, "shortened": 0, "reported_tokens": 0}
    refusals: list[Result] = []

    async def work(client: AsyncOpenAI) -> None:
        while not refusals and counts["calls"] < _RUNAWAY_CALLS_MAX:
            subject = _subject(counts["calls"])
            counts["calls"] += 1
            try:
                reply = await client.chat.completions.create(
                    model=agent.model,
                    messages=[
                        {"role": "user", "content": f"{body['task']} {subject} in {body.get('words', 150)} words"}
                    ],
                    extra_headers=carry,
                )
            except APIStatusError as error:
                if error.status_code == 429:
                    counts["busy"] += 1
                    continue
                refusals.append(_refusal(error))
                return
            counts["answers"] += 1
            counts["shortened"] += reply.choices[0].finish_reason == "length"
            counts["reported_tokens"] += reply.usage.total_tokens if reply.usage else 0
            agent.say("spent", tokens=counts["reported_tokens"], answers=counts["answers"])

    async with AsyncOpenAI() as client:
        await asyncio.gather(*(work(client) for _ in range(_RUNAWAY_WORKERS)))
    return {**counts, "refused": refusals[0] if refusals else None}


def _subject(number: int) -> str:
    """Return something that was not asked about before; every two differ in more than a word."""
    thing, round_ = number % len(_THINGS), number // len(_THINGS)
    return f"about the {_SIDES[(thing + round_) % len(_SIDES)]} of {_THINGS[thing]}"


def _refusal(error: Any) -> Result:
    said = error.body if isinstance(error.body, dict) else {}
    return {
        "status": error.status_code,
        "type": type(error).__name__,
        "reason": error.response.headers.get("x-meshd-reason", ""),
        "message": said.get("message", error.message),
    }


async def probe(agent: Agent, body: Result, carry: dict[str, str]) -> Result:
    """Make a few calls, one after the other, to an upstream that may be dead, without the SDK's own retries.

    Each answer is (status, reason of a refusal, what served it in place of the upstream, milliseconds).
    """
    from openai import APIStatusError, AsyncOpenAI

    answers: list[tuple[int, str, str, float]] = []
    base_url = f"{agent.mesh_url}/{body['upstream']}/v1"
    async with AsyncOpenAI(base_url=base_url, api_key=f"sk-demo-{body['upstream']}", max_retries=0) as client:
        for number in range(int(body.get("count", 1))):
            prompt = f"{body['task']}: well, what {_subject(int(body.get('first', 0)) + number)} in 4 words"
            started_s = time.perf_counter()
            try:
                raw = await client.chat.completions.with_raw_response.create(
                    model="stand-in", messages=[{"role": "user", "content": prompt}], extra_headers=carry
                )
                words = raw.parse().choices[0].message.content
                status, reason = (200 if words else 0), ""
                served_by = raw.headers.get("x-meshd-served-by", "")
            except APIStatusError as error:
                status, reason, served_by = error.status_code, error.response.headers.get("x-meshd-reason", ""), ""
            answers.append((status, reason, served_by, (time.perf_counter() - started_s) * 1e3))
    return {"answers": answers}


async def keep_shop(agent: Agent, body: Result, carry: dict[str, str]) -> Result:
    """Send one request to the shop, as often as it is told: `copies` at once, and as many `again` one by one."""
    assert agent.session is not None
    session = agent.session
    headers = carry | ({"idempotency-key": body["key"]} if body.get("key") else {})

    async def send() -> Result:
        url = f"{agent.mesh_url}/shop{body['path']}"
        async with session.request(body["method"], url, json=body.get("json"), headers=headers) as reply:
            raw = await reply.read()
            return {
                "status": reply.status,
                "reason": reply.headers.get("x-meshd-reason", ""),
                "is_replayed": reply.headers.get("idempotent-replayed") == "true",
                "sha256": hashlib.sha256(raw).hexdigest(),
                "body": raw.decode("utf-8", "replace")[:2000],
            }

    answers = list(await asyncio.gather(*(send() for _ in range(int(body.get("copies", 1))))))
    answers += [await send() for _ in range(int(body.get("again", 0)))]
    return {"answers": answers}


async def look_at_the_sea(agent: Agent, body: Result, carry: dict[str, str]) -> Result:
    """Answer what is asked about tides and water."""
    return {"agent": agent.name, "text": "18 degrees, and high tide at noon"}


ROLES: dict[str, Role] = {
    "manager": manage,
    "researcher": research,
    "writer": write,
    "ping": answer_back,
    "pong": answer_back,
    "planner": want_clarity,
    "analyst": ask_back,
    "desk": pass_on,
    "runaway": run_away,
    "prober": probe,
    "clerk": keep_shop,
    "harbour": look_at_the_sea,
}
WITHOUT_MODEL = frozenset({"desk", "clerk", "harbour"})
