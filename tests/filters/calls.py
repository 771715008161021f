"""Calls, policies and keys for the tests of filters. Policies are read by the real loader."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from meshd.call import Ask, Call, Direction, Kind, Target
from meshd.outcome import Fault, Outcome, Verdict, classify
from meshd.policy.document import DocumentFile, parse
from meshd_sdk.context import Key, Keyring

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.policy.compiled import Policy

NOW_S = 1000.0
WALL_S = 1_790_000_000.0

UPSTREAMS = """
agent: researcher
upstreams:
  openai: {url: "https://api.openai.com", kind: llm, dialect: openai}
  backup: {url: "https://llm.example.com/base", kind: llm, dialect: openai}
  claude: {url: "https://api.anthropic.com", kind: llm, dialect: anthropic}
  writer: {url: "http://127.0.0.1:9001", kind: agent}
  far: {url: "http://127.0.0.1:9002", kind: agent, peer: true}
  billing: {url: "http://127.0.0.1:9003", kind: tool}
  web: {url: "https://www.example.com", kind: host}
"""


def policy(text: str = "", upstreams: str = UPSTREAMS) -> Policy:
    """Load a policy: the upstreams above and whatever `text` adds."""
    return parse([DocumentFile("policy.yaml", (upstreams + text).encode())])


POLICY = policy()


class Keys:
    """Keys as the key file holds them, without the file."""

    def __init__(self, *secrets: bytes) -> None:
        self.ring = Keyring([Key(f"k{secret[0]:02x}", secret) for secret in secrets or (b"\x01" * 32,)])
        self.generation = 0

    def turn(self, *secrets: bytes) -> None:
        """Put other keys in their place, as a reload does."""
        self.ring = Keyring([Key(f"k{secret[0]:02x}", secret) for secret in secrets])
        self.generation += 1


class Bytes:
    """Random bytes that are counted, not random: each call returns others."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def __call__(self, size: int) -> bytes:
        # In numbers of eight bytes at most, so that no two nonces out of one call are equal either.
        return b"".join(next(self._numbers).to_bytes(min(8, size - at), "big") for at in range(0, size, 8))


def call(
    target: str = "openai",
    *,
    headers: Headers | None = None,
    direction: Direction = Direction.OUTBOUND,
    method: str = "POST",
    path: str = "/v1/chat/completions",
    ask: Ask | None = None,
    of: Policy = POLICY,
    now_s: float = NOW_S,
    wall_s: float = WALL_S,
    run_token: str = "",
    body: bytes | None = None,
) -> Call:
    """Make a call as the listener hands it to the chain: located, and read where a dialect reads it."""
    made = Call(
        id="c1",
        direction=direction,
        method=method,
        path=path,
        authority="127.0.0.1:7400",
        headers=headers or [],
        now_s=now_s,
        wall_s=wall_s,
    )
    made.policy = of
    made.upstream = of.upstreams.get(target)
    kind = made.upstream.kind if made.upstream is not None else Kind.HOST
    made.target = Target(kind, target, ask.model if ask is not None else "")
    made.ask = ask
    made.body = body
    made.run_token = run_token
    made.attempt = 1
    return made


def chat(model: str = "gpt-x", *tools: str, **fields: Any) -> Ask:
    """Return what a chat request asks for."""
    return Ask("chat", model, tools=tools, **fields)


def outcome(
    status: int = 200,
    fault: Fault = Fault.NONE,
    *,
    now_s: float = NOW_S,
    is_terminal: bool = True,
    **fields: Any,
) -> Outcome:
    """Return how an attempt ended, classed as the proxy classes it."""
    return Outcome(classify(status, fault, is_terminal), now_s, status=status, fault=fault, **fields)


SUCCESS, FAILURE, BACKPRESSURE = outcome(), outcome(503), outcome(429)
assert (SUCCESS.verdict, FAILURE.verdict) == (Verdict.SUCCESS, Verdict.FAILURE)
