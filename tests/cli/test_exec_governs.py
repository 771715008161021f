"""`meshd exec` with real daemons: unmodified programs that use the official SDKs, each run in one workflow."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import pytest

from meshd import running as registry
from meshd.cli.exec_daemon import _named
from tests.engines.places import place_of

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
PORTS = ("MESHD_INBOUND", "MESHD_API", "MESHD_ADMIN", "MESHD_METRICS")
_OPENAI = """
import openai
client = openai.OpenAI(max_retries=0)
spent = 0
try:
    for number in range(200):
        # Something else each time: the same again and again would be a loop.
        subject = "bdfghklmnprstvz"[number % 15] + "aeiou"[number // 15 % 5] + "rtik"
        spent += client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": subject + " in 50 words"}]
        ).usage.total_tokens
except openai.APIStatusError as error:
    print(error.status_code, spent)
else:
    print("never stopped", spent)
"""
_BOTH = """
import openai, anthropic
with openai.OpenAI().chat.completions.create(
    model="m", messages=[{"role": "user", "content": "hi in 5 words"}], stream=True
) as stream:
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
message = anthropic.Anthropic().messages.create(
    model="m", max_tokens=9, messages=[{"role": "user", "content": "hi in 6 words"}]
)
print(len(text.split()), len(message.content[0].text.split()))
"""


class Provider:
    """The stand-in provider in a process of its own."""

    def __init__(self) -> None:
        arguments = [sys.executable, "-m", "demo.llm_server"]
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, env=_environ(), cwd=ROOT)
        ready = json.loads(cast("IO[bytes]", self.process.stdout).readline())
        self.url, self._control = f"http://127.0.0.1:{ready['port']}", ready["control_port"]

    def billed(self, key: str) -> int:
        import urllib.request

        with urllib.request.urlopen(f"http://127.0.0.1:{self._control}/books") as reply:
            account = json.load(reply)["accounts"].get(key, {})
        return int(account.get("input_tokens", 0)) + int(account.get("output_tokens", 0))


def _environ(**more: str) -> dict[str, str]:
    steering = ("MESHD_", "OPENAI_", "ANTHROPIC_", "OTEL_", "HTTP_PROXY", "http_proxy")
    environ = {key: value for key, value in os.environ.items() if not key.startswith(steering)}
    return environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])} | more


class Bench:
    """A state directory, a policy and a provider."""

    def __init__(self, home: Path, provider: Provider) -> None:
        self.home = home
        self.provider = provider
        self.policy = home.parent / "policy.yaml"
        self.policy.write_text(
            f"upstreams:\n"
            f'  openai: {{url: "{provider.url}", kind: llm, dialect: openai}}\n'
            f'  anthropic: {{url: "{provider.url}", kind: llm, dialect: anthropic}}\n'
            f'prices: {{"*": {{input: 1, output: 1}}}}\n'
            f"rules:\n"
            f"  - {{name: all, match: {{kind: llm}}, budget: {{tokens: 2000, output_default: 100, floor: 1}}}}\n"
        )

    def environ(self, key: str) -> dict[str, str]:
        return _environ(MESHD_HOME=str(self.home), OPENAI_API_KEY=key, ANTHROPIC_API_KEY=key)

    def start(self, key: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "meshd.cli", "exec", *arguments]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        return subprocess.Popen(command, env=self.environ(key), cwd=ROOT, **pipes)

    def run(self, key: str, *arguments: str) -> tuple[int, str, str]:
        process = self.start(key, *arguments)
        out, err = process.communicate()
        return process.returncode, out, err

    def left_over(self) -> list[str]:
        """What a daemon of a run's own leaves beside the state of the one that serves all."""
        return sorted(path.name for path in self.home.iterdir() if path.is_dir() and path.name != "trace")


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    found = Provider()
    yield found
    found.process.terminate()
    found.process.wait()


@pytest.fixture
def bench(tmp_path: Path, provider: Provider) -> Bench:
    (tmp_path / "home").mkdir()
    return Bench(tmp_path / "home", provider)


def test_an_unmodified_program_is_governed_by_a_private_daemon(bench: Bench) -> None:
    code, out, err = bench.run("k-private", "--policy", str(bench.policy), "--", sys.executable, "-c", _BOTH)
    assert (code, out) == (0, "5 6\n"), err
    lines = err.splitlines()
    assert lines[0].startswith("meshd: workflow run-")
    assert "a private daemon" in lines[0]
    assert lines[-1].endswith(f"has spent {bench.provider.billed('k-private'):,} tokens")
    assert bench.left_over() == []


@pytest.mark.parametrize(("arguments", "limit"), [([], 2000), (["--budget", "600"], 600), (["--budget", "9k"], 2000)])
def test_the_smaller_of_the_two_budgets_stops_a_run_to_the_token(
    bench: Bench, arguments: list[str], limit: int
) -> None:
    key = f"k-{limit}-{len(arguments)}-{bench.home.parent.name}"
    policy = ["--policy", str(bench.policy)]
    code, out, err = bench.run(key, *policy, *arguments, "--", sys.executable, "-c", _OPENAI)
    status, spent = out.split()
    assert (code, status) == (0, "402"), err
    assert int(spent) == bench.provider.billed(key)
    assert 0 < int(spent) <= limit
    assert f"has spent {int(spent):,} tokens" in err


def test_dollars_stop_a_run_as_tokens_do(bench: Bench) -> None:
    """A token costs a micro-dollar here."""
    policy = ("--policy", str(bench.policy), "--dollars", "0.0006")
    code, out, err = bench.run("k-dollars", *policy, "--", sys.executable, "-c", _OPENAI)
    status, spent = out.split()
    assert (code, status) == (0, "402"), err
    assert 0 < int(spent) == bench.provider.billed("k-dollars") <= 600
    assert "at most $0.0006," in err
    assert f"has spent {int(spent):,} tokens and $0.000{int(spent)}"[:-1] in err


def test_a_named_workflow_keeps_its_account_between_runs(bench: Bench) -> None:
    arguments = ("--policy", str(bench.policy), "--workflow", "nightly", "--", sys.executable, "-c", _OPENAI)
    first, second = bench.run("k-nightly", *arguments), bench.run("k-nightly", *arguments)
    assert first[1].startswith("402 "), first[2]
    assert second[1] == "402 0\n", second[2]
    assert bench.left_over() == [_named("nightly")]
    assert registry.find(bench.home / _named("nightly")) is None


async def test_two_machines_share_the_account_of_a_workflow_in_a_store(bench: Bench, tmp_path: Path) -> None:
    async with place_of("redis", tmp_path) as place:
        arguments = ("--policy", str(bench.policy), "--workflow", "nightly", "--", sys.executable, "-c", _OPENAI)
        first = await asyncio.to_thread(bench.run, "k-one", "--store", place.url, *arguments)
        assert first[1].startswith("402 "), first[2]
        # Another state directory, as another machine has; its own policy would let it spend as much again.
        bench.home = tmp_path / "another home"
        bench.home.mkdir()
        second = await asyncio.to_thread(bench.run, "k-two", "--store", place.url, *arguments)
        assert second[1] == "402 0\n", second[2]


def test_a_store_that_does_not_exist_is_refused_without_its_password(bench: Bench) -> None:
    arguments = ("--store", "kafka://me:canary@127.0.0.1:1", "--", sys.executable, "-c", "raise SystemExit(7)")
    code, out, err = bench.run("k", *arguments)
    assert (code, out) == (125, ""), err
    assert "Kafka keeps no store" in err
    assert "canary" not in err


@pytest.mark.parametrize("key_file", ["", "shared.key"])
def test_a_daemon_that_runs_already_is_used_and_left_alone(bench: Bench, key_file: str) -> None:
    environ = bench.environ("k") | dict.fromkeys(PORTS, "127.0.0.1:0")
    arguments = [sys.executable, "-m", "meshd.cli", "run", "--listen", "127.0.0.1:0", "--policy", str(bench.policy)]
    # From where the daemon stands; the program stands elsewhere.
    arguments += ["--mesh-key", key_file] if key_file else []
    daemon = subprocess.Popen(
        arguments, env=environ, cwd=bench.policy.parent, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        while (found := registry.find(bench.home)) is None:
            assert daemon.poll() is None, cast("IO[bytes]", daemon.stderr).read()
        code, out, err = bench.run(f"k-shared{key_file}", "--", sys.executable, "-c", _BOTH)
        assert (code, out) == (0, "5 6\n"), err
        assert "the daemon that runs" in err
        assert f"has spent {bench.provider.billed(f'k-shared{key_file}'):,} tokens" in err
        assert (bench.home / "mesh.key").exists() == (not key_file)
        assert registry.find(bench.home) == found
        assert bench.left_over() == []
    finally:
        daemon.terminate()
        daemon.communicate()
    assert registry.read(bench.home) is None


def test_a_signal_goes_to_the_command_and_the_daemon_ends_all_the_same(bench: Bench) -> None:
    program = "import signal, os; print(os.environ['MESHD_URL'], flush=True); signal.pause()"
    process = bench.start("k", "--policy", str(bench.policy), "--", sys.executable, "-c", program)
    address = cast("IO[str]", process.stdout).readline().removeprefix("http://").partition("/")[0]
    assert registry.accepts(address)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert not registry.accepts(address)
    assert bench.left_over() == []


def test_what_a_killed_run_leaves_is_swept_away_by_the_next(bench: Bench) -> None:
    program = "import signal, os; print(os.environ['MESHD_URL'], os.getpid(), flush=True); signal.pause()"
    process = bench.start("k", "--policy", str(bench.policy), "--", sys.executable, "-c", program)
    url, pid = cast("IO[str]", process.stdout).readline().split()
    address = url.removeprefix("http://").partition("/")[0]
    process.kill()
    process.wait()
    os.kill(int(pid), signal.SIGKILL)  # nobody's child now
    # The private daemon ends with the run that started it.
    while registry.accepts(address):
        pass
    assert len(bench.left_over()) == 1
    assert bench.run("k", "--policy", str(bench.policy), "--", "true")[0] == 0
    assert bench.left_over() == []


def test_a_policy_that_does_not_load_is_shown_and_nothing_runs(bench: Bench) -> None:
    bench.policy.write_text("no_such_key: 1\n")
    code, out, err = bench.run("k", "--policy", str(bench.policy), "--", "echo", "ran")
    assert (code, out) == (125, "")
    assert "no_such_key" in err
    assert bench.left_over() == []
