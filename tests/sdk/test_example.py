"""examples/research as its README runs it: a sidecar, a researcher and a manager, each a process of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.provider import Provider
from tests.end_to_end.sidecar import PATIENCE_S, ROOT, Sidecar, environ, fetch, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Start = Callable[..., "subprocess.Popen[str]"]

EXAMPLE = ROOT / "examples" / "research"
POLICY = """
upstreams:
  openai: {{url: "{url}", kind: llm, dialect: openai, key: {{env: MESHD_TEST_KEY}}}}
rules:
  - {{name: purse, match: {{kind: llm}}, budget: {{tokens: 50000, output_default: 64}}}}
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a program; what a test leaves is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*command: str, **env: str) -> subprocess.Popen[str]:
        one = subprocess.Popen(
            [sys.executable, *command],
            env=environ(PYTHONUNBUFFERED="1", **env),
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(one)
        return one

    yield start
    for one in started:
        one.kill()
        one.communicate()


@pytest.fixture
def provider() -> Iterator[Provider]:
    one = Provider()
    yield one
    one.close()


@pytest.mark.parametrize("model", ["", "gpt-4o-mini"])
def test_the_example_runs(tmp_path: Path, start: Start, provider: Provider, model: str) -> None:
    sidecar = Sidecar(tmp_path / "home")
    try:
        sidecar.start(POLICY.format(url=provider.url), MESHD_API="127.0.0.1:0", MESHD_TEST_KEY="sk-example")
        assert sidecar.running is not None
        env = {"MESHD_API": sidecar.running["api"]}
        researcher = start(str(EXAMPLE / "researcher.py"), **env, RESEARCH_MODEL=model)
        manager = start(str(EXAMPLE / "manager.py"), "Why tides?", "Why salt?", **env)
        printed, errors = manager.communicate(timeout=PATIENCE_S)
        assert manager.returncode == 0, errors
        *answers, spent = printed.splitlines()
        if model:
            assert len(answers) == 2
            tokens = re.fullmatch(r"workflow/\S+: (\d+) tokens spent", spent)
            assert tokens is not None
            assert int(tokens[1]) > 0
            keys = [one.headers.get("authorization") for one in provider.seen]
            assert keys == ["Bearer sk-example"] * 2
        else:
            assert sorted(answers) == ["Why salt?: source 1", "Why tides?: source 1"]
            assert spent.endswith(": 0 tokens spent")
        researcher.send_signal(signal.SIGTERM)
        _, errors = researcher.communicate(timeout=PATIENCE_S)
        assert (researcher.returncode, errors) == (0, "")
        assert sidecar.stop() == 0
    finally:
        sidecar.kill()


def test_the_programs_of_the_page_run_as_they_stand(tmp_path: Path, start: Start, provider: Provider) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "sdk.md").read_text(), re.DOTALL)
    (agent,) = [one for one in blocks if "agent.run_forever()" in one]
    (caller,) = [one for one in blocks if "asyncio.run(main())" in one]
    (plain,) = [one for one in blocks if "meshd_sdk.sync" in one]
    sidecar = Sidecar(tmp_path / "home")
    try:
        sidecar.start(POLICY.format(url=provider.url), MESHD_API="127.0.0.1:0", MESHD_TEST_KEY="sk-example")
        assert sidecar.running is not None
        env = {"MESHD_API": sidecar.running["api"]}
        start("-c", agent, **env)
        body = b'{"query": "tides", "limit": 2}'
        is_json = {"content-type": "application/json"}
        until(lambda: fetch(f"{sidecar.url}/researcher/search", "POST", is_json, body)[0] == 200)
        found = [f"tides {number}" for number in range(10)]
        for program in (caller, plain):
            printed, errors = start("-c", program, **env).communicate(timeout=PATIENCE_S)
            assert (printed.splitlines(), errors) == ([str(found), "tides 0", "tides 1", "tides 2"], "")
        assert len(provider.seen) == 1
    finally:
        sidecar.kill()


def test_it_is_short() -> None:
    lines = [line for path in EXAMPLE.glob("*.py") for line in path.read_text().splitlines()]
    assert len(lines) < 60


def test_a_program_finishes_what_runs_when_it_is_told_to_end(start: Start, api: str, tmp_path: Path) -> None:
    program = tmp_path / "slow.py"
    program.write_text(
        "import asyncio\n"
        "from meshd_sdk import Agent\n"
        "agent = Agent('slow-program')\n"
        "@agent.serve\n"
        "async def work():\n"
        "    print('began')\n"
        "    await asyncio.sleep(0.5)\n"
        "    return 'done'\n"
        "agent.run_forever()\n"
    )
    caller = tmp_path / "caller.py"
    caller.write_text(
        "from meshd_sdk.sync import Agent\n"
        "import time\n"
        "with Agent('slow-caller') as agent:\n"
        "    while True:\n"
        "        try:\n"
        "            print(agent.ctx.call('slow-program'))\n"
        "            break\n"
        "        except Exception as error:\n"
        "            if error.reason != 'unknown_target': raise\n"
        "            time.sleep(0.05)\n"
    )
    slow = start(str(program), MESHD_API=api)
    asker = start(str(caller), MESHD_API=api)
    assert slow.stdout is not None
    assert slow.stdout.readline() == "began\n"
    slow.send_signal(signal.SIGINT)
    printed, errors = asker.communicate(timeout=PATIENCE_S)
    assert (printed, errors) == ("done\n", "")
    _, errors = slow.communicate(timeout=PATIENCE_S)
    assert slow.returncode == 0
    assert errors.startswith(
        "slow-program ends when what runs is finished (1 under way, 30 s at most); a second signal"
    )
    assert errors.count("\n") == 1


def test_a_second_signal_ends_it_and_its_callers_hear_of_it(start: Start, api: str, tmp_path: Path) -> None:
    program = tmp_path / "hung.py"
    program.write_text(
        "import asyncio\n"
        "from meshd_sdk import Agent\n"
        "agent = Agent('hung-program')\n"
        "@agent.serve\n"
        "async def work():\n"
        "    print('began')\n"
        "    await asyncio.sleep(3600)\n"
        "agent.run_forever()\n"
    )
    caller = tmp_path / "caller.py"
    caller.write_text(
        "from meshd_sdk.sync import Agent\n"
        "import time\n"
        "with Agent('hung-caller') as agent:\n"
        "    while True:\n"
        "        try:\n"
        "            agent.ctx.call('hung-program')\n"
        "        except Exception as error:\n"
        "            if error.reason != 'unknown_target':\n"
        "                print(type(error).__name__, error)\n"
        "                break\n"
        "            time.sleep(0.05)\n"
    )
    hung, asker = start(str(program), MESHD_API=api), start(str(caller), MESHD_API=api)
    assert hung.stdout is not None
    assert hung.stderr is not None
    assert hung.stdout.readline() == "began\n"
    hung.send_signal(signal.SIGINT)
    assert "a second signal ends it at once" in hung.stderr.readline()
    hung.send_signal(signal.SIGINT)
    # Within the session's resume window of 60 s, for which a call to an agent that only lost its connection waits.
    printed, errors = asker.communicate(timeout=PATIENCE_S)
    assert (printed, errors) == ("CallFailed The agent hung-program ended its session before it replied\n", "")
    _, errors = hung.communicate(timeout=PATIENCE_S)
    assert (hung.returncode, errors) == (0, "")


def test_a_program_without_a_sidecar_ends_with_words(start: Start) -> None:
    one = start(str(EXAMPLE / "researcher.py"), MESHD_API="127.0.0.1:9")
    _, errors = one.communicate(timeout=PATIENCE_S)
    assert one.returncode == 1
    assert errors.count("\n") == 1
    assert "MESHD_WITHOUT=run" in errors


def test_nonsense_in_the_environment_ends_it_with_words(start: Start) -> None:
    one = start(str(EXAMPLE / "researcher.py"), MESHD_API="nowhere")
    _, errors = one.communicate(timeout=PATIENCE_S)
    assert one.returncode != 0
    assert "MESHD_API is `host:port`" in errors


def test_it_is_left_to_itself_without_a_sidecar_where_it_may(start: Start) -> None:
    one = start(str(EXAMPLE / "researcher.py"), MESHD_API="127.0.0.1:9", MESHD_WITHOUT="run")
    assert one.stderr is not None
    assert "UNGOVERNED" in one.stderr.readline()
    one.send_signal(signal.SIGTERM)
    until(lambda: one.poll() is not None)
    assert one.returncode == 0


def test_under_exec_the_run_is_the_root(tmp_path: Path, start: Start) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from meshd_sdk.sync import Agent\n"
        "with Agent('any-name') as agent, agent.workflow() as ctx:\n"
        "    ctx.report_usage('local', 40)\n"
        "    (left,) = ctx.balance()\n"
        "    print(ctx.workflow, left.tokens.total, left.tokens.spent, len(ctx.publish('a.b', 1).sequence))\n"
    )
    ports = dict.fromkeys(("MESHD_LISTEN", "MESHD_API", "MESHD_ADMIN", "MESHD_METRICS"), "127.0.0.1:0")
    command = ("-m", "meshd.cli", "exec", "--workflow", "run-7", "--budget", "5000", "--", sys.executable, str(program))
    one = start(*command, MESHD_HOME=str(tmp_path / "home"), **ports)
    printed, errors = one.communicate(timeout=PATIENCE_S)
    assert one.returncode == 0, errors
    assert printed == "run-7 5000 40 20\n"
