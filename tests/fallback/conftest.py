"""One provider that is well, an address where nobody listens, and a sidecar with a chain for each model's name."""

from __future__ import annotations

import json
import sys
import uuid
from typing import TYPE_CHECKING, Any

import anthropic
import openai
import pytest

from tests.end_to_end.provider import Provider
from tests.end_to_end.sidecar import Sidecar
from tests.ports import free_port
from tests.proxy.conftest import mesh, upstream

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["mesh", "upstream"]

PYTHON = "tests.fallback.heuristics"
CODE = {
    "good": "import json,sys; print(json.load(sys.stdin)['body']['model'])",
    "dies": "import sys; sys.stderr.write('no idea'); sys.exit(4)",
    "floods": "import sys\nwhile True: sys.stdout.write('x' * 65536)",
    "complains": "import sys\nfor _ in range(256): sys.stderr.write('x' * 65536)\nprint('done all the same')",
    "hangs": "import time; time.sleep(600)",
    "forks": "import os,time\nif os.fork() == 0: time.sleep(600)\nprint('parent')",
    "deaf": "import os; os.close(0); print('without reading')",
    "environment": "import os; print(','.join(sorted(os.environ)))",
}
"""Programs, by what becomes of them."""
MARK = f"of-{uuid.uuid4().hex}"
"""An argument of every program of this run, by which what is left of them is known."""


def command(name: str) -> list[str]:
    """Return the program of CODE by that name, as a policy names it."""
    return [sys.executable, "-c", CODE[name], MARK]


def chained(target: str, model: str, *links: dict[str, Any], on: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a rule that gives one model of a target a chain, and no retries."""
    chain: dict[str, Any] = {"to": list(links)}
    if on:
        chain["on"] = list(on)
    match = {"target": target, "model": model}
    return {"name": f"{target}-{model}", "match": match, "retry": {"attempts": 0}, "fallback": chain}


def document(provider: str, dead: int, *rules: dict[str, Any]) -> str:
    """Return a policy; YAML reads JSON."""
    gone = f"http://127.0.0.1:{dead}"
    return json.dumps(
        {
            "agent": "researcher",
            "limits": {"unattributed_tokens": 10_000_000},
            "upstreams": {
                "openai": {"url": gone, "kind": "llm", "dialect": "openai"},
                "anthropic": {"url": gone, "kind": "llm", "dialect": "anthropic"},
                "well": {"url": provider, "kind": "llm", "dialect": "openai"},
                "backup": {"url": provider, "kind": "llm", "dialect": "openai", "key": {"env": "BACKUP_KEY"}},
                "other": {"url": gone, "kind": "llm", "dialect": "openai"},
                "claude": {"url": provider, "kind": "llm", "dialect": "anthropic", "key": {"env": "CLAUDE_KEY"}},
                "tool": {"url": gone, "kind": "tool"},
                "shop": {"url": provider, "kind": "tool"},
                "store": {"url": provider, "kind": "tool"},
            },
            "rules": list(rules),
        }
    )


@pytest.fixture(scope="session")
def provider() -> Iterator[Provider]:
    made = Provider()
    yield made
    made.close()


@pytest.fixture(scope="session")
def dead() -> int:
    """A port where nobody listens."""
    return free_port()


@pytest.fixture
def sidecar(tmp_path: Any) -> Iterator[Sidecar]:
    one = Sidecar(tmp_path / "home")
    yield one
    one.kill()


KEYS: Any = {"BACKUP_KEY": "sk-backup", "CLAUDE_KEY": "sk-claude"}


def openai_of(one: Sidecar, upstream: str = "openai", **options: Any) -> Any:
    settings: Any = {"api_key": "sk-caller", "max_retries": 0} | options
    return openai.OpenAI(base_url=f"{one.url}/{upstream}/v1", **settings)


def anthropic_of(one: Sidecar, upstream: str = "anthropic", **options: Any) -> Any:
    settings: Any = {"api_key": "sk-caller", "max_retries": 0} | options
    return anthropic.Anthropic(base_url=f"{one.url}/{upstream}", **settings)


def act(**what: Any) -> dict[str, str]:
    return {"x-act": json.dumps(what)}


def saying(text: str = "say something short") -> list[Any]:
    return [{"role": "user", "content": text}]
