"""`meshd trace` on what a real sidecar wrote: tree, timeline, JSON, verifying, replay, exports, erasing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from meshd.approvals.keys import hash_of, new_key
from meshd.cli import main
from meshd.trace import kinds
from meshd.trace.opening import DIRECTORY
from meshd.trace.reading import Reader, segment_paths
from meshd.trace.verifying import verify
from tests.end_to_end.agents import Agent, call
from tests.end_to_end.provider import Provider
from tests.end_to_end.sidecar import Sidecar, environ, fetch, until
from tests.trace.logs import filled, frames_in, opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POLICY = """agent: ann
limits: {{hops: 3, turns: {{ladder: note}}}}
upstreams:
  llm: {{url: "{provider}", kind: llm, dialect: openai}}
  bob: {{url: "{agent}", kind: agent}}
rules:
  - {{name: purse, match: {{kind: llm}}, budget: {{tokens: {tokens}, output_default: 64}}}}
"""
BEGAN = "2026-11-27T06:00:00Z"


class Ran:
    """One sidecar that has run and ended, and what its policy was."""

    def __init__(self, home: Path, policy: Path, provider: str, agent: str, used: int) -> None:
        self.home = home
        self.policy = policy
        self.used = used
        """Tokens of the workflow, by the sidecar's own books."""
        self._told = {"provider": provider, "agent": agent}

    def other(self, name: str, more: str = "", *, tokens: int = 100_000) -> Path:
        """Another policy for the same upstreams."""
        path = self.policy.with_name(name)
        path.write_text(POLICY.format(tokens=tokens, **self._told) + more)
        return path

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, ["trace", *arguments, "--home", str(self.home)])

    def lines(self, *arguments: str) -> list[dict[str, Any]]:
        found = self.run(*arguments)
        assert found.exit_code == 0, found.output
        return [json.loads(line) for line in found.output.splitlines()]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("ran")
    provider, agent = Provider(), Agent()
    policy = POLICY.format(provider=provider.url, agent=agent.url, tokens=100_000)
    sidecar = Sidecar(folder / "home").start(policy)
    try:
        base, headers = sidecar.url, {"x-meshd-workflow": "demo"}
        for _ in range(3):
            assert call(f"{base}/llm/v1/chat/completions", headers, {})[0] == 200
        assert call(f"{base}/bob/run", headers, {"then": [f"{base}/llm/v1/chat/completions"]})[0] == 200
        assert fetch(f"{base}/nope/x?key=hush", headers=headers)[0] == 404
        token = ask(sidecar, "ContextService/Open", {"workflow": "demo"})["context"]["token"]
        step = {"id": "s", "began": BEGAN, "step": {"name": "plan", "summary": "two tasks"}}
        decision = {"question": "which?", "choice": "a", "rationale": "cheaper \u001b[31m"}
        told = {"id": "d", "parentId": "s", "began": BEGAN, "decision": decision}
        ask(sidecar, "TraceService/Record", {"token": token, "entries": [step, told]})
        used = sidecar.accounts()["workflow/demo"][1]
        sidecar.stop()
        yield Ran(sidecar.home, sidecar.policy, provider.url, agent.url, used)
    finally:
        sidecar.kill()
        provider.close()
        agent.close()


def ask(sidecar: Sidecar, method: str, body: dict[str, Any]) -> Any:
    assert sidecar.running is not None
    url = f"http://{sidecar.running['api']}/meshd.v1.{method}"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def test_without_a_name_the_workflows_are_listed(ran: Ran) -> None:
    (line,) = [line for line in ran.run().output.splitlines() if line.startswith("demo")]
    assert line.split()[3:] == ["13", "5", "1", "36"]
    (told,) = ran.lines("--json")
    assert (told["workflow"], told["events"], told["calls"], told["refused"], told["tokens"]) == ("demo", 13, 5, 1, 36)


def test_the_tree_shows_what_follows_from_what(ran: Ran) -> None:
    lines = [line[14:] for line in ran.run("demo").output.splitlines()[1:]]
    assert [line.split("  =")[0].split(": The")[0] for line in lines] == [
        "ann -> llm chat m",
        "ann -> llm chat m",
        "ann -> llm chat m",
        "ann -> bob POST /run",
        "  bob -> llm chat m",
        "ann -> nope GET /x: refused: unknown_target",
        "ann: plan: two tasks",
        "  ann: decides which? -> a (cheaper  [31m)",
    ]
    assert "200, 4+5 tokens, reserved" in lines[0]
    assert "hush" not in ran.run("demo").output


def test_the_timeline_has_every_event(ran: Ran) -> None:
    lines = ran.run("demo", "--timeline").output.splitlines()
    kinds_of = [line.split()[2] for line in lines]
    assert kinds_of == [*["forwarded", "ended"] * 3, *["forwarded"] * 2, *["ended"] * 2, "refused", "step", "decision"]


def test_any_id_leads_to_the_workflow(ran: Ran) -> None:
    whole = ran.run("demo").output
    event = ran.lines("demo", "--json")[-1]
    for id in (event["id"], event["span_id"], event["trace_id"], ran.lines("demo", "--json")[0]["call"]):
        assert ran.run(id).output == whole
    found = ran.run("nowhere")
    assert (found.exit_code, "no workflow" in found.output) == (1, True)


def test_adding_up_the_log_gives_what_the_books_say(ran: Ran) -> None:
    events = ran.lines("demo", "--json")
    charged = [event["facts"] for event in events if event["kind"] == "ended" and event["facts"]["account"]]
    assert {facts["account"] for facts in charged} == {"workflow/demo"}
    assert sum(facts["charged"] for facts in charged) == ran.used == 36
    # Every attempt that went out has ended once.
    out = [event["id"] for event in events if event["kind"] == "forwarded"]
    assert sorted(event["causes"][0] for event in events if event["kind"] == "ended") == sorted(out)


def test_json_has_clocks_causes_digests_and_what_was_said(ran: Ran) -> None:
    events = ran.lines("demo", "--json")
    first, step, decision = events[0], events[-2], events[-1]
    sidecar = first["id"].split("-")[0]
    assert first["clock"] == {sidecar: 2}
    assert len(first["digest"]) == 64
    assert first["facts"]["model"] == "m"
    assert events[1]["causes"] == [first["id"]]
    assert step["said"]["step"] == {"name": "plan", "summary": "two tasks"}
    assert decision["causes"] == [step["id"]]


def test_verify_exits_by_what_it_finds(ran: Ran, tmp_path: Path) -> None:
    found = ran.run("--verify")
    assert (found.exit_code, "The chain is whole" in found.output) == (0, True)
    bad = tmp_path / "home"
    shutil.copytree(ran.home / DIRECTORY, bad / DIRECTORY)
    path = segment_paths(bad / DIRECTORY)[0]
    data = bytearray(path.read_bytes())
    data[frames_in(path)[2] + 60] ^= 1
    path.write_bytes(data)
    found = CliRunner().invoke(main, ["trace", "--verify", "--home", str(bad)])
    assert (found.exit_code, "BAD" in found.output) == (1, True)
    told = json.loads(CliRunner().invoke(main, ["trace", "--verify", "--json", "--home", str(bad)]).output)
    assert told["is_sound"] is False
    assert told["problems"][0]["record"].endswith("-3")


def test_replay_says_what_another_policy_would_have_decided(ran: Ran) -> None:
    assert "6 calls, 0 of them decided otherwise" in ran.run("demo", "--replay", str(ran.policy)).output
    # What calls have really cost is charged: 9 tokens each, and 213 are reserved for one.
    told = ran.lines("demo", "--json", "--replay", str(ran.other("tight.yaml", tokens=225)))
    assert [one["now"] for one in told] == ["pass", "pass", "refuse", "pass", "refuse", "refuse"]
    assert "budget_exhausted" in told[2]["why"]
    assert [one["was"] for one in told] == ["pass"] * 5 + ["refuse"]
    denied = ran.other("denied.yaml", "  - {name: nobody, match: {target: bob}, deny: nobody is called}\n")
    told = ran.lines("demo", "--json", "--replay", str(denied))
    assert [one["now"] for one in told] == ["pass", "pass", "pass", "refuse", "pass", "refuse"]
    assert "nobody is called" in told[3]["why"]


def test_replay_holds_where_a_person_would_have_been_asked(ran: Ran) -> None:
    rule = "  - {name: people, match: {target: bob}, approval: {expires: 2h}}\n"
    people = f'approvers: {{ana: {{key: "sha256:{hash_of(new_key())}"}}}}\n'
    policy = ran.other("asked.yaml", rule + people)
    told = ran.lines("demo", "--json", "--replay", str(policy))
    assert [one["now"] for one in told] == ["pass", "pass", "pass", "hold", "pass", "refuse"]


def test_replay_of_a_policy_that_does_not_load_says_where(ran: Ran) -> None:
    path = ran.policy.with_name("bad.yaml")
    path.write_text("rules: [{nonsense: 1}]\n")
    found = ran.run("demo", "--replay", str(path))
    assert found.exit_code == 1
    assert "bad.yaml:1:" in found.output


def test_otlp_is_what_a_collector_reads(ran: Ran) -> None:
    from google.protobuf import json_format
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans: list[Any] = []
    for line in ran.run("demo", "--export", "otlp").output.splitlines():
        # OTLP has its ids in hexadecimal digits, where protobuf's own JSON has base64.
        raw = json.loads(line)
        for span in raw["resourceSpans"][0]["scopeSpans"][0]["spans"]:
            assert (len(span["traceId"]), len(span["spanId"])) == (32, 16)
            for key in ("traceId", "spanId", "parentSpanId"):
                span.pop(key, None) if key not in span else span.update({key: "AAAAAAAA"})
        read = json_format.ParseDict(raw, ExportTraceServiceRequest())
        spans += json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"]
        assert len(read.resource_spans[0].scope_spans[0].spans) == len(spans)
    assert len(spans) == 8
    by_id = {span["spanId"]: span for span in spans}
    inner = next(span for span in spans if span.get("parentSpanId"))
    assert by_id[inner["parentSpanId"]]["name"] == "forwarded bob"
    calls = [span for span in spans if span["kind"] == 3]
    assert all(int(span["endTimeUnixNano"]) > int(span["startTimeUnixNano"]) for span in calls)
    assert [span["status"] for span in spans if span["name"].startswith("refused")] == [{"code": 2}]


def test_cloudevents_have_what_the_specification_asks_for(ran: Ran) -> None:
    events = ran.lines("demo", "--export", "cloudevents")
    assert len(events) == 13
    assert len({(event["source"], event["id"]) for event in events}) == 13
    for event in events:
        assert event["specversion"] == "1.0"
        assert all(key.isalnum() and key.islower() for key in event)
        assert event["correlationid"] == event["partitionkey"] == event["subject"] == "demo"
        assert len(event["sequence"]) == 20
    assert sorted(event["sequence"] for event in events) == [event["sequence"] for event in events]
    assert events[1]["causationid"] == events[0]["id"]
    assert events[0]["dataref"].startswith("urn:sha256:")


def test_prov_is_one_document(ran: Ran) -> None:
    document = json.loads(ran.run("demo", "--export", "prov").output)
    activities, agents = set(document["activity"]), set(document["agent"])
    assert len(activities) == 13
    for one in document["wasInformedBy"].values():
        assert {one["prov:informed"], one["prov:informant"]} <= activities
    for one in document["wasAssociatedWith"].values():
        assert one["prov:activity"] in activities
        assert one["prov:agent"] in agents
    for one in document["used"].values():
        assert one["prov:entity"] in document["entity"]


def test_what_was_said_can_be_erased_and_the_log_stays_whole(ran: Ran, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(ran.home / DIRECTORY, home / DIRECTORY)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["trace", *arguments, "--home", str(home)])

    digest = json.loads(run("demo", "--json").output.splitlines()[-1])["digest"]
    assert "1 erased" in run("--erase", digest).output
    assert "decision (its words are not there: erased, or changed)" in run("demo").output
    assert all(b"cheaper" not in path.read_bytes() for path in (home / DIRECTORY).iterdir())
    assert "said" not in json.loads(run("demo", "--json").output.splitlines()[-1])
    assert verify(home / DIRECTORY).problems == []
    assert "two tasks" in run("demo").output
    assert run("--erase", digest).exit_code == 1
    assert run("--erase", "abc").exit_code == 2


def test_follow_prints_what_comes(tmp_path: Path) -> None:
    recorder = filled(tmp_path, 2)
    command = [sys.executable, "-m", "meshd.cli", "trace", "w", "--follow", "--home", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ(), text=True) as process:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        seen: list[str] = []

        def lines() -> int:
            assert process.stdout is not None
            seen.extend(process.stdout.readlines())
            return len(seen)

        until(lambda: lines() == 2, "what was there")
        # Also over the end of a segment.
        for number in range(100):
            recorder.note(kinds.STATE, "w", (f"later-{number}", number, "put"))
            recorder.note(kinds.STATE, "other", ("x", 1, "put"))
        until(lambda: lines() == 102, "what has come")
        process.terminate()
    assert [line.split(": put ")[1].split()[0] for line in seen[2:]] == [f"later-{number}" for number in range(100)]
    recorder.close()


@pytest.mark.parametrize("arguments", [["--replay", "x"], ["--export", "otlp"], ["--follow"], ["--timeline"]])
def test_a_workflow_must_be_named(ran: Ran, arguments: list[str]) -> None:
    found = ran.run(*arguments)
    assert (found.exit_code, "WORKFLOW is missing" in found.output) == (2, True)


@pytest.mark.parametrize(
    "arguments",
    [["--follow", "--export", "prov"], ["--verify", "--replay", "x"], ["--erase", "0" * 64, "--verify"]],
)
def test_one_thing_is_done_at_a_time(ran: Ran, arguments: list[str]) -> None:
    found = ran.run("demo", *arguments)
    assert (found.exit_code, "do not go together" in found.output) == (2, True)


@pytest.mark.parametrize(
    "option", [["--json"], ["--export", "otlp"], ["--export", "cloudevents"], ["--export", "prov"]]
)
def test_json_is_utf8_whatever_the_terminal_is(tmp_path: Path, option: list[str]) -> None:
    recorder = opened(tmp_path)
    recorder.note(kinds.PUBLISHED, "w", ("é日", "topic", "é日", "ann"), agent="ann")
    recorder.close()
    command = [sys.executable, "-m", "meshd.cli", "trace", "w", "--home", str(tmp_path), *option]
    found = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=False)
    assert (found.returncode, found.stderr) == (0, b"")
    assert "é日" in found.stdout.decode()


def test_a_file_that_cannot_be_read_is_said_to_be_left_out(tmp_path: Path) -> None:
    filled(tmp_path, 5).close()
    filled(tmp_path, 5).close()
    first, last = segment_paths(tmp_path / DIRECTORY)
    first.write_bytes(bytes(first.stat().st_size))
    for more, code in ((["w"], 0), (["w", "--json"], 0), ([], 0), (["none"], 1)):
        found = CliRunner().invoke(main, ["trace", *more, "--home", str(tmp_path)])
        assert (found.exit_code, f"{first} is left out: its head is damaged" in found.stderr) == (code, True)
        assert last.name not in found.stderr


def test_a_log_is_read_once_and_never_with_its_copy(tmp_path: Path) -> None:
    filled(tmp_path / "a", 5).close()
    (tmp_path / "link").symlink_to(tmp_path / "a")

    def run(*names: str, more: tuple[str, ...] = ()) -> Result:
        homes = [part for name in names for part in ("--home", str(tmp_path / name))]
        return CliRunner().invoke(main, ["trace", *more, *homes])

    assert "workflow w: 5 events" in run("a", "a", "link", more=("w",)).output
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    for more in (("w",), ("w", "--export", "prov"), ()):
        found = run("a", "copy", more=more)
        assert (found.exit_code, "logs of one sidecar" in found.output) == (1, True)
    assert run("a", "copy", more=("--verify",)).exit_code == 0


def test_where_there_is_no_trace_it_says_so(tmp_path: Path) -> None:
    found = CliRunner().invoke(main, ["trace", "--home", str(tmp_path)])
    assert (found.exit_code, "has no trace" in found.output) == (1, True)
    opened(tmp_path).close()
    assert "no workflow yet" in CliRunner().invoke(main, ["trace", "--home", str(tmp_path)]).output


def test_a_directory_that_cannot_be_looked_at_is_named(tmp_path: Path) -> None:
    # As one of another user is, which these tests cannot make where root runs them.
    home = tmp_path / ("x" * 300)
    found = CliRunner().invoke(main, ["trace", "--home", str(home)])
    assert found.exit_code == 1
    assert f"the trace cannot be read: {home / 'trace'}: File name too long" in found.output


def test_logs_of_two_sidecars_are_read_as_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        filled(tmp_path / name, 5).close()
    arguments = [part for name in ("a", "b") for part in ("--home", str(tmp_path / name))]
    lines = CliRunner().invoke(main, ["trace", "w", "--timeline", *arguments]).output.splitlines()
    assert len(lines) == 10
    assert "workflow w: 10 events" in CliRunner().invoke(main, ["trace", "w", *arguments]).output
    sidecars = {Reader(tmp_path / name / DIRECTORY).sidecar for name in ("a", "b")}
    assert {line.split()[1].split("-")[0] for line in lines} == sidecars
    assert CliRunner().invoke(main, ["trace", "--verify", *arguments]).exit_code == 0
