"""How well calls of agents that pass nothing on are attributed: `make attribution`, `python -m
tests.correlation.measure [WORD]...` (only the scenarios whose names have such a word).

Runs go through a real sidecar, from an agent that uses an official SDK and does nothing for meshd, to a stand-in for
the LLM which alone knows what belongs to what. Printed are precision (of the calls that were tied to a run, the part
that was to its own), recall (of all calls, the part that was), and the evidence. Then what it costs, in this process.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import timeit
from typing import TYPE_CHECKING, Any, Final

from meshd.call import Direction
from meshd.dialects.table import DIALECTS
from meshd.filters.context import Context
from meshd.filters.minting import mint_run
from meshd.mesh_key import MeshKeys
from meshd_sdk import context as codec
from tests.correlation.agent import SYSTEM, Plan
from tests.correlation.world import Run, Score, measure, runs_of
from tests.filters.calls import WALL_S, Bytes, Keys, call

if TYPE_CHECKING:
    import random

    from tests.end_to_end.sidecar import Sidecar

RUNS: Final = 200
_NUMBER: Final = 100
_REPEATS: Final = 100


def mixed(dice: random.Random, number: int) -> Plan:
    """Tool loops of 3 to 6 calls, half of them streamed; a quarter prune their history, a fifth has conversations
    beside the first."""
    return Plan(
        turns=dice.randint(3, 6),
        is_streamed=dice.random() < 0.5,
        is_pruned=dice.random() < 0.25,
        is_split=dice.random() < 0.2,
    )


def other(**fields: Any) -> Any:
    """Return the same with some things otherwise."""
    return lambda dice, number: Plan(**{**vars(mixed(dice, number)), **fields})


def late(dice: random.Random, number: int) -> Plan:
    """Half of the runs do something else for a while before they first call the model."""
    return Plan(**{**vars(mixed(dice, number)), "first_pause_s": dice.choice((0.0, 0.2))})


def address(sidecar: Sidecar, run: Run) -> str:
    """Return the per-run address that `meshd exec` would set."""
    keys = MeshKeys(sidecar.home / "mesh.key")
    token = mint_run(keys, workflow=run.name, agent="researcher", wall_s=time.time(), nonce=run.name.encode()[-8:])
    return f"{sidecar.url}/w/{token}/openai/v1"


SCENARIOS: Final[dict[str, dict[str, Any]]] = {
    "one after the other": {"plan": mixed, "concurrency": 1, "same": 0.1, "how_many": 60},
    "10 at a time": {"plan": mixed, "concurrency": 10, "same": 0.1},
    "50 at a time": {"plan": mixed, "concurrency": 50, "same": 0.1},
    "50 at a time, no task twice": {"plan": mixed, "concurrency": 50},
    "50, answers that repeat, ids from 0": {"plan": mixed, "concurrency": 50, "same": 0.1, "deterministic": 0.5},
    "50, tasks of three words and a number": {"plan": mixed, "concurrency": 50, "same": 0.1, "is_short": True},
    "50, other work before": {"plan": late, "concurrency": 50, "same": 0.1},
    "50, and 60 tasks of its own": {"plan": mixed, "concurrency": 50, "same": 0.1, "alone": 60},
    "50, Anthropic's SDK": {"plan": other(api="anthropic", is_pruned=False), "concurrency": 50, "same": 0.1},
    "50, responses": {"plan": other(api="responses", is_pruned=False), "concurrency": 50, "same": 0.1},
    "1, nothing of the task in the prompt": {"plan": other(is_quoting=False), "concurrency": 1, "how_many": 60},
    "10, nothing of the task in the prompt": {"plan": other(is_quoting=False), "concurrency": 10},
    "50, nothing of the task in the prompt": {"plan": other(is_quoting=False), "concurrency": 50},
    "50, five tasks for all": {"plan": mixed, "concurrency": 50, "same": 1.0},
    "50, an address for each run": {"plan": mixed, "concurrency": 50, "same": 0.1, "addressed": address},
}


async def scenario(name: str, how_many: int = RUNS, seed: int = 1) -> Score:
    """Run one of `SCENARIOS`."""
    fields = dict(SCENARIOS[name])
    plan, same = fields.pop("plan"), fields.pop("same", 0.0)
    runs_max = min(fields.pop("how_many", how_many), how_many)
    runs = runs_of(runs_max, seed, plan, same=same, is_short=fields.pop("is_short", False))
    return await measure(runs, **fields)


def row(name: str, score: Score) -> str:
    """Return a line of the table."""
    by = ", ".join(f"{evidence} {count}" for evidence, count in score.right.most_common())
    wrong = f"; wrong: {dict(score.wrong)}" if score.wrong else ""
    broken = f"; {len(score.is_broken)} runs FAILED: {score.is_broken[0]}" if score.is_broken else ""
    return f"| {name} | {score.calls} | {score.precision:.2%} | {score.recall:.2%} | {by}{wrong}{broken} |"


# ---------------------------------------------------------------------- what it costs


def _us(what: Any) -> float:
    """Return the least of many short times: whatever else runs here only adds to them."""
    return min(timeit.repeat(what, number=_NUMBER, repeat=_REPEATS)) / _NUMBER * 1e6


def chat_of(messages: int, task: str = "Compare river, stone and copper in four points.") -> bytes:
    """Return the body of a chat with so many messages."""
    made = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"A colleague asks for this: {task}"}]
    while len(made) < messages:
        made.append({"role": "assistant", "content": f"This is answer number {len(made)}, and it is not a short one."})
        made.append({"role": "user", "content": f"Go on with point {len(made)}, please, and be brief about it."})
    body = {"model": "m", "messages": made[:messages]}
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()


def costs() -> list[tuple[str, float]]:
    """Return what parts of it take, in microseconds."""
    keys = Keys()
    here = Context(keys, Bytes())  # type: ignore[arg-type]
    known = codec.Context("wf-1", "researcher", 2, ("a", "b"), account="workflow/wf-1")

    def token(audience: codec.Audience, number: int = 0) -> bytes:
        nonce = number.to_bytes(8, "big")
        return codec.mint(known, keys.ring, audience=audience, expires_s=int(WALL_S) + 60, nonce=nonce)

    def asked(**fields: Any) -> Any:
        made = call(body=body, **fields)
        made.dialect = DIALECTS["openai"]
        made.ask = made.dialect.read("chat", body)
        return made

    def admit(one: Any) -> None:
        one.agent = ""  # as it arrives: only a session says beforehand who speaks
        here.admit(one)

    body = chat_of(10)
    shown = call(headers=[(codec.HEADER_CONTEXT, token(codec.Audience.LOCAL))])
    bare = asked()
    found = [
        ("admit, with a token", _us(lambda: admit(shown))),
        ("admit, with nothing", _us(lambda: admit(bare))),
    ]
    found.append(
        ("admit and end an inbound call", _us(lambda: here.admit(call(direction=Direction.INBOUND)).settle(_END)))
    )
    for number in range(50):
        live = here.admit(call(direction=Direction.INBOUND))
        live.hear(json.dumps({"task": f"Compare river, stone and copper in {number} points."}).encode())
    task = chat_of(10, "Compare river, stone and copper in 7 points.")
    body = task
    first = asked()
    found.append(("the same with 50 inbound calls alive, with a token", _us(lambda: admit(shown))))
    found.append(("infer from a chat of 10 messages among 50 calls", _us(lambda: admit(first))))
    body = chat_of(100, "Compare river, stone and copper in 9 points.")
    long = asked()
    found.append((f"infer from a chat of 100 messages ({len(body)} bytes)", _us(lambda: admit(long))))
    fresh = [
        call(headers=[(codec.HEADER_CONTEXT, token(codec.Audience.PEER, n))], direction=Direction.INBOUND)
        for n in range(_NUMBER * _REPEATS)
    ]
    for one in fresh:
        one.upstream = one.policy.upstreams["writer"]
    taken = iter(fresh)

    def verify_and_mint() -> None:
        one = next(taken)
        here.admit(one)
        here.forward_headers(one)

    found.append(("verify a token never seen, and mint the next", _us(verify_and_mint)))
    return found


class _End:
    now_s = 1000.0


_END: Any = _End()


def main() -> int:
    """Print the tables; the exit code says whether the goals are met."""
    names = [name for name in SCENARIOS if not sys.argv[1:] or any(word in name for word in sys.argv[1:])]
    print("| runs | calls | precision | recall | by |\n|---|---|---|---|---|")
    is_met = True
    for name in names:
        score = asyncio.run(scenario(name))
        print(row(name, score), flush=True)
        is_met = is_met and score.precision >= 0.99 and not score.is_broken
    print("\n| part | us |\n|---|---|")
    for name, us in costs():
        print(f"| {name} | {us:.1f} |")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
