"""`meshd budget` with a real daemon: what people see, what their orders do to the next call, and plain errors."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from meshd.cli import budget, main
from tests.end_to_end.documents import document
from tests.end_to_end.provider import Provider
from tests.end_to_end.sidecar import ROOT, Sidecar, environ, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKENS = 2000


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    made = Provider()
    yield made
    made.close()


@pytest.fixture
def sidecar(tmp_path: Path, provider: Provider) -> Iterator[Sidecar]:
    made = Sidecar(tmp_path / "home")
    made.start(document(provider.url, tokens=TOKENS))
    yield made
    made.kill()


def run(home: Path, *arguments: str, stdin: str = "", **env: str) -> Result:
    """Run `meshd budget` on a state directory, as a script would: its output is no terminal."""
    unset = dict.fromkeys([name for name in os.environ if name.startswith("MESHD_")])
    return CliRunner(env=unset | {"MESHD_HOME": str(home)} | env).invoke(main, ["budget", *arguments], input=stdin)


def told(home: Path, *arguments: str) -> str:
    """Run a command that must work, and return what it printed."""
    result = run(home, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def read(home: Path, *arguments: str) -> Any:
    return json.loads(told(home, *arguments, "--json"))


def chat(sidecar: Sidecar, workflow: str, words: int = 40) -> tuple[int, dict[str, str], Any]:
    """Make one call; return its status, header fields and body."""
    body = {"model": "m", "max_tokens": words, "messages": [{"role": "user", "content": "go"}]}
    connection = http.client.HTTPConnection("127.0.0.1", sidecar.port, timeout=30)
    headers = {
        "content-type": "application/json", "authorization": "Bearer k", "x-meshd-workflow": workflow,
        "x-act": json.dumps({"words": words}),
    }  # fmt: skip
    connection.request("POST", "/openai/v1/chat/completions", json.dumps(body), headers)
    reply = connection.getresponse()
    text = reply.read()
    connection.close()
    return reply.status, {name.lower(): value for name, value in reply.getheaders()}, json.loads(text)


def exhaust(sidecar: Sidecar, workflow: str) -> dict[str, str]:
    """Call until the budget refuses; return the refusal's header fields."""
    for _ in range(TOKENS):
        status, headers, _ = chat(sidecar, workflow)
        if status != 200:
            assert status == 402
            return headers
    raise AssertionError("never refused")


def test_the_table_has_the_fullest_account_first(sidecar: Sidecar) -> None:
    assert "No account has been used yet" in told(sidecar.home)
    used = dict.fromkeys(("little", "much"), 0)
    for workflow, calls in (("little", 1), ("much", 5)):
        for _ in range(calls):
            used[workflow] += chat(sidecar, workflow)[2]["usage"]["total_tokens"]
    lines = [line.split() for line in told(sidecar.home).splitlines()]
    assert lines[0] == ["ACCOUNT", "USED", "LIMIT", "IN", "FLIGHT", "LEFT"]
    rows = [[f"workflow/{name}", str(used[name]), f"{used[name] / TOKENS * 100:.0f}%", "2,000", "0"] for name in used]
    assert [line[:5] for line in lines[1:]] == rows[::-1]
    assert told(sidecar.home, "--rows", "1").splitlines()[2] == "and 1 more: --all shows them"
    page = read(sidecar.home)
    assert page["is_whole"]
    assert {one["id"]: one["used"] for one in page["accounts"]} == {f"workflow/{name}": used[name] for name in used}


def test_a_top_up_lets_a_refused_workflow_go_on(sidecar: Sidecar) -> None:
    exhaust(sidecar, "report-42")
    assert "may spend 3,000 tokens in all" in told(sidecar.home, "top-up", "report-42", "1k")
    assert chat(sidecar, "report-42")[0] == 200
    shown = told(sidecar.home, "show", "report-42")
    assert "limit       3,000 tokens, 1,000 tokens of it topped up" in shown
    assert "local (this one)" in shown
    # The refusal at the new end names the new limit, and so does what is kept of the call.
    refused = exhaust(sidecar, "report-42")
    found = read(sidecar.home, "call", refused["x-meshd-call"])
    assert found["refusals"][0]["limit"] == 3000
    assert "of its 3,000 tokens" in found["refusals"][0]["message"]


def test_a_closed_account_refuses_until_it_is_reopened(sidecar: Sidecar) -> None:
    assert chat(sidecar, "w")[0] == 200
    assert "is closed" in told(sidecar.home, "close", "workflow/w")
    until(lambda: chat(sidecar, "w")[0] == 402, "the sidecar hears that it is closed")
    assert "closed" in told(sidecar.home)
    assert "`meshd budget reopen workflow/w` lets it spend again" in told(sidecar.home, "show", "w")
    assert "is open" in told(sidecar.home, "reopen", "w")
    assert chat(sidecar, "w")[0] == 200


def test_orders_outlive_the_daemon(sidecar: Sidecar, provider: Provider) -> None:
    assert "is new: 500 tokens on top" in told(sidecar.home, "top-up", "later", "500")
    assert sidecar.stop() == 0
    sidecar.start(document(provider.url, tokens=TOKENS))
    assert chat(sidecar, "later")[0] == 200
    assert read(sidecar.home, "show", "later")["total"] == TOKENS + 500


def test_each_reply_and_refusal_can_be_looked_up(sidecar: Sidecar) -> None:
    _, headers, body = chat(sidecar, "w", words=7)
    found = read(sidecar.home, "call", headers["x-meshd-call"])
    (attempt,) = found["attempts"]
    (taken,) = attempt["accounts"]
    assert (found["workflow"], found["agent"], found["model"]) == ("w", "researcher", "m")
    assert (taken["account"], taken["limit"], taken["charged"]) == ("workflow/w", TOKENS, body["usage"]["total_tokens"])
    assert (attempt["output_cap"], attempt["input_tokens"]) == (7, body["usage"]["prompt_tokens"])
    assert taken["bound"] == attempt["input_bound"] + 7
    text = told(sidecar.home, "call", headers["x-meshd-call"])
    assert f"workflow/w (limit 2,000): reserved {taken['bound']}, charged {taken['charged']}" in text
    assert "200 success" in text
    refused = exhaust(sidecar, "w")
    assert refused["x-meshd-call"] == refused["x-request-id"]
    text = told(sidecar.home, "call", refused["x-request-id"])
    assert "refused    402 budget_exhausted (rule purse): Budget exhausted: account workflow/w" in text
    (last,) = sidecar.admin("/v1/calls?refused=1&limit=1")["calls"]
    assert last["id"] == refused["x-request-id"]


def test_it_runs_as_a_program_and_says_how(sidecar: Sidecar) -> None:
    command = [sys.executable, "-m", "meshd.cli", "budget"]
    env = environ(MESHD_HOME="/nowhere/at/all")
    done = subprocess.run(
        [*command, "--home", str(sidecar.home)], env=env, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "No account has been used yet" in done.stdout
    done = subprocess.run([*command, "--help"], env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "meshd budget top-up report-42 50k" in done.stdout


def test_writing_off_asks_first(sidecar: Sidecar) -> None:
    assert chat(sidecar, "w")[0] == 200
    result = run(sidecar.home, "write-off", "w", "ghost")
    assert (result.exit_code, "ghost has no open lease on workflow/w" in result.output) == (1, True)
    # The sidecar that is asked is alive, whatever is answered; nobody is asked where nothing can be done.
    result = run(sidecar.home, "write-off", "w", "local", stdin="n\n")
    assert (result.exit_code, "Is it gone for good?" in result.output) == (1, True)
    result = run(sidecar.home, "write-off", "w", "local", "--yes")
    assert (result.exit_code, "it is alive" in result.output) == (1, True)
    assert read(sidecar.home, "show", "w")["leases"][0]["is_open"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "nobody"], "Nobody has used an account workflow/nobody."),
        (["close", "agent/nobody"], "Nobody has used an account agent/nobody."),
        (["top-up", "wrokflow/x", "5k"], "the names of accounts begin with workflow/"),
        (["top-up", "workflow/w/@usd", "5k"], "counts microdollars, not tokens"),
        (["call", "never-seen"], "has forgotten it since"),
        (["call", "a b\n"], "The id of a call"),
        (["call", "../status"], "The id of a call"),
        (["show", "\x1b[31m"], "Bad account"),
        (["show", "x" * 600], "Bad account"),
        (["show", ""], "Nobody has used an account workflow/."),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(sidecar: Sidecar, arguments: list[str], said: str) -> None:
    result = run(sidecar.home, *arguments)
    assert result.exit_code == 1
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_state_directory_that_cannot_be_read_is_not_one_without_a_daemon(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run(tmp_path, "--home", str(tmp_path / "file"))
    assert (result.exit_code, len(result.stderr.strip().splitlines())) == (1, 1)
    assert f"the state directory {tmp_path / 'file'} cannot be read: Not a directory." in result.stderr


def test_without_a_daemon_it_says_where_it_looked_and_what_to_do(tmp_path: Path) -> None:
    for arguments in ([], ["show", "w"], ["top-up", "w", "5k"], ["call", "x"]):
        result = run(tmp_path, *arguments)
        assert result.exit_code == 1
        assert f"no daemon runs in the state directory {tmp_path}." in result.stderr
        assert "`meshd run`" in result.stderr
    other = tmp_path / "other"
    assert f"directory {other}." in run(tmp_path, "--home", str(other)).stderr
    assert f"directory {other}." in run(tmp_path, "show", "w", "--home", str(other)).stderr
    # A port that nothing listens on: the daemon that is meant is named too.
    assert "at 127.0.0.1:1 (MESHD_LISTEN)" in run(tmp_path, MESHD_LISTEN="127.0.0.1:1").stderr
    assert "MESHD_LISTEN" in run(tmp_path, MESHD_LISTEN="nonsense").stderr


def test_a_private_daemon_of_exec_is_pointed_at(sidecar: Sidecar) -> None:
    result = run(sidecar.home.parent)
    assert f"--home {sidecar.home}" in result.stderr


def test_a_token_that_cannot_be_used_is_named(sidecar: Sidecar) -> None:
    token = sidecar.home / "admin.token"
    right = token.read_text()
    token.write_text("x" * 40)
    assert "does not take the token in" in run(sidecar.home).stderr
    token.unlink()
    assert "admin.token cannot be read: No such file" in run(sidecar.home).stderr
    token.write_text(right)
    assert run(sidecar.home).exit_code == 0


def test_a_page_that_leads_nowhere_ends_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name at the end of a page may be hidden, since it looks like a key: no page can be asked for then."""
    asked: list[str] = []

    class Client:
        def get(self, path: str, *, limit: int, after: str) -> dict[str, Any]:
            asked.append(after)
            return {"accounts": [], "next_after": "[redacted]"}

    monkeypatch.setattr(budget, "_client", lambda _home: Client())
    result = CliRunner().invoke(main, ["budget", "--json"])
    assert json.loads(result.stdout) == {"accounts": [], "is_whole": False}
    assert asked == ["", "[redacted]"]
