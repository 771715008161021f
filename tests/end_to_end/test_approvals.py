"""Approvals with a real daemon: a call is held, a person decides by the command line, and the call goes out once."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from meshd.approvals.keys import hash_of, new_key
from meshd.trace.opening import DIRECTORY
from meshd.trace.reading import Reader
from tests.end_to_end.sidecar import ROOT, Sidecar, environ, fetch, until
from tests.engines.places import place_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ANA, BEN, OLA = new_key(), new_key(), new_key()


class Tool:
    """A tool that keeps what it was asked, and takes notices too."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bytes]] = []
        self.notices: list[tuple[dict[str, str], bytes]] = []
        self.notice_status = 204
        self.answer = b"done"
        self.gate = threading.Event()
        self.gate.set()
        tool = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                status, answer = 200, tool.answer
                if self.path == "/hook":
                    tool.notices.append((dict(self.headers.items()), body))
                    status, answer = tool.notice_status, b""
                else:
                    tool.asked.append((self.command, self.path, body))
                    tool.gate.wait(60)
                self.send_response(status)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_DELETE = do_POST  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def document(tool: Tool, rule: str = "hold: 20s", more: str = "", target: str = "tool") -> str:
    return (
        "agent: researcher\nowner: ola\n"
        "approvers:\n"
        f'  ana: {{key: "sha256:{hash_of(ANA)}"}}\n'
        f'  ben: {{key: "sha256:{hash_of(BEN)}"}}\n'
        f'  ola: {{key: "sha256:{hash_of(OLA)}"}}\n'
        f'upstreams: {{billing: {{url: "{tool.url}", kind: {target}}}}}\n'
        f"{more}"
        f"rules: [{{name: money, match: {{kind: {target}}}, approval: {{{rule}}}}}]\n"
    )


@pytest.fixture
def tool() -> Iterator[Tool]:
    made = Tool()
    yield made
    made.close()


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[Sidecar]:
    made = Sidecar(tmp_path / "home")
    yield made
    made.kill()


class Held:
    """A call in a thread of its own."""

    def __init__(
        self,
        sidecar: Sidecar,
        body: bytes = b'{"amount": 5}',
        method: str = "POST",
        fields: dict[str, str] | None = None,
    ) -> None:
        self.result: tuple[int, str] | None = None
        headers = {"x-meshd-workflow": "w1", "content-type": "application/json", **(fields or {})}
        self._thread = threading.Thread(target=self._run, args=(sidecar.url, method, headers, body))
        self._thread.start()

    def _run(self, url: str, method: str, headers: dict[str, str], body: bytes) -> None:
        self.result = fetch(f"{url}/billing/invoices?key=abc", method, headers, body)

    def end(self) -> tuple[int, str]:
        self._thread.join(60)
        assert self.result is not None
        return self.result


def pending(sidecar: Sidecar, count: int = 1) -> list[dict[str, Any]]:
    """Wait until so many approvals are pending, and return them."""
    found: list[dict[str, Any]] = until(
        lambda: some if len(some := listed(sidecar, "pending")) == count else None, f"{count} pending"
    )
    return found


def listed(sidecar: Sidecar, state: str) -> list[dict[str, Any]]:
    return list(sidecar.admin(f"/v1/approvals?state={state}")["approvals"])


def meshd(sidecar: Sidecar, *arguments: str, key: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command as a person does."""
    env = environ(**({"MESHD_APPROVER_KEY": key} if key else {}))
    return subprocess.run(
        [sys.executable, "-m", "meshd.cli", "approvals", *arguments, "--home", str(sidecar.home)],
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def decide(sidecar: Sidecar, id: str, what: str, key: str, body: dict[str, str] | None = None) -> tuple[int, Any]:
    """Decide over the admin port."""
    assert sidecar.running is not None
    token = (sidecar.home / "admin.token").read_text().strip()
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    if key:
        headers["x-meshd-approver-key"] = key
    status, text = fetch(
        f"http://{sidecar.running['admin']}/v1/approvals/{id}/{what}", "POST", headers, json.dumps(body or {}).encode()
    )
    return status, json.loads(text)


def test_a_person_allows_a_call_and_it_goes_out_once(sidecar: Sidecar, tool: Tool) -> None:
    sidecar.start(document(tool))
    call = Held(sidecar, b'{"amount": 5, "password": "hunter2hunter2"}')
    (asked,) = pending(sidecar)
    assert tool.asked == []
    assert "arguments" not in asked
    shown = meshd(sidecar, "show", asked["id"])
    assert shown.returncode == 0, shown.stderr
    for words in ('"amount": 5', "w1", "billing", "ana, ben", "POST may change something"):
        assert words in shown.stdout
    assert "hunter2" not in shown.stdout
    # The password, and the key in the path.
    assert "2 places are not shown" in shown.stdout
    done = meshd(sidecar, "approve", asked["id"].upper().replace("-", ""), "--reason", "looks right", key=ANA)
    assert done.returncode == 0, done.stderr
    assert call.end() == (200, "done")
    assert [one[0] for one in tool.asked] == ["POST"]
    (used,) = until(lambda: [one for one in listed(sidecar, "used") if one["outcome"]])
    assert (used["outcome"], used["decisions"][0]["approver"]) == ("200", "ana")
    assert sidecar.metric("meshd_approvals_total", result="used") == 1
    assert sidecar.metric("meshd_approvals_pending") == 0
    assert sidecar.metric("meshd_approval_held_seconds_count") == 1
    # Allowed for one call: the next asks anew.
    again = Held(sidecar, b'{"amount": 5, "password": "hunter2hunter2"}')
    (second,) = pending(sidecar)
    assert second["id"] != asked["id"]
    assert decide(sidecar, second["id"], "deny", BEN, {"reason": "enough of it"})[0] == 200
    status, text = again.end()
    assert status == 403
    assert "enough of it" in text
    assert len(tool.asked) == 1


def test_a_call_that_is_told_to_come_back_attaches_to_its_approval(sidecar: Sidecar, tool: Tool) -> None:
    sidecar.start(document(tool, "hold: 0s"))
    status, text = Held(sidecar).end()
    problem = json.loads(text)
    (asked,) = pending(sidecar)
    assert (status, problem["code"]) == (428, "meshd_approval_pending")
    for words in (asked["id"], f"meshd approvals approve {asked['id']}", "attaches to the same approval"):
        assert words in problem["detail"]
    assert Held(sidecar, b'{ "amount":5 }').end()[0] == 428  # the same, written otherwise
    assert [one["id"] for one in pending(sidecar)] == [asked["id"]]
    assert Held(sidecar, b'{"amount": 50}').end()[0] == 428
    assert len(pending(sidecar, 2)) == 2
    assert decide(sidecar, asked["id"], "approve", ANA)[0] == 200
    assert Held(sidecar, b'{"amount": 50}').end()[0] == 428
    assert Held(sidecar, fields={"x-amount": "50"}).end()[0] == 428
    assert Held(sidecar, fields={"x-meshd-workflow": "w2"}).end()[0] == 428
    assert tool.asked == []
    assert Held(sidecar).end() == (200, "done")
    assert Held(sidecar).end()[0] == 428, "it was used"


def test_who_may_not_decide_is_told_so(sidecar: Sidecar, tool: Tool) -> None:
    sidecar.start(document(tool, "hold: 0s, quorum: 2"))
    assert Held(sidecar).end()[0] == 428
    (asked,) = pending(sidecar)
    id = asked["id"]
    token = (sidecar.home / "admin.token").read_text().strip()
    for key, body, status, why in (
        ("", {}, 401, "key"),
        (token, {}, 403, "key"),
        (new_key(), {"approver": "ana"}, 403, "key"),
        (BEN, {"approver": "ana"}, 403, "key"),
        (ANA, {"approver": "nobody"}, 403, "key"),
        (OLA, {}, 403, "own"),
        (ANA, {}, 200, ""),
        (ANA, {}, 409, "twice"),
    ):
        got, answer = decide(sidecar, id, "approve", key, body)
        assert (got, answer["type"] if got >= 400 else "") == (status, f"urn:meshd:approval:{why}" if why else "")
    assert decide(sidecar, id, "deny", BEN, {})[1]["type"] == "urn:meshd:approval:reason"
    assert decide(sidecar, "zzzz-zzzz-zzzz", "approve", ANA)[0] == 404
    assert decide(sidecar, "..%2f..%2fx", "approve", ANA)[0] == 404
    assert pending(sidecar)[0]["decisions"][0]["approver"] == "ana"
    assert sidecar.metric("meshd_approval_keys_refused_total") == 4
    statuses = {decide(sidecar, id, "approve", "hunter2")[0] for _ in range(12)}
    assert 429 in statuses
    assert decide(sidecar, id, "approve", BEN)[0] == 200, "wrong keys keep nobody from deciding"
    assert tool.asked == []


def test_a_caller_that_hangs_up_leaves_its_approval(sidecar: Sidecar, tool: Tool) -> None:
    sidecar.start(document(tool))
    host, _, port = sidecar.url.removeprefix("http://").partition(":")
    caller = http.client.HTTPConnection(host, int(port))
    fields = {"x-meshd-workflow": "w1", "content-type": "application/json"}
    caller.request("POST", "/billing/invoices?key=abc", b'{"amount": 5}', fields)
    (asked,) = pending(sidecar)
    caller.close()
    until(lambda: sidecar.metric("meshd_approval_calls_held") == 0)
    assert decide(sidecar, asked["id"], "approve", ANA)[0] == 200
    assert tool.asked == [], "nobody waits for the answer"
    assert Held(sidecar).end() == (200, "done")
    assert len(tool.asked) == 1


def test_an_approval_is_given_back_where_the_call_never_went_out(sidecar: Sidecar, tool: Tool) -> None:
    sidecar.start(document(tool, "hold: 0s"))
    assert Held(sidecar).end()[0] == 428
    (asked,) = pending(sidecar)
    assert decide(sidecar, asked["id"], "approve", ANA)[0] == 200
    port = tool.server.server_address[1]
    tool.close()
    assert Held(sidecar).end()[0] == 502
    until(lambda: [one["id"] for one in listed(sidecar, "approved")] == [asked["id"]])
    assert port


async def test_two_sidecars_with_one_key_ask_once_and_send_once(tool: Tool, tmp_path: Path) -> None:
    async with place_of("redis", tmp_path) as place:
        pair = [Sidecar(tmp_path / name) for name in ("first", "second")]
        try:
            await asyncio.to_thread(_asked_once, pair, tool, place.url)
        finally:
            for one in pair:
                one.kill()


def _asked_once(pair: list[Sidecar], tool: Tool, store: str) -> None:
    key = (pair[0].home.parent / "mesh.key").as_posix()
    for one in pair:
        # So much of the same would be a loop, as soon as the two have told each other.
        policy = document(tool, "hold: 60s") + "limits: {turns: {ladder: note}}\n"
        one.start(policy, "--store", store, "--mesh-key", key)
    for number in range(3):
        fields = {"idempotency-key": f"order-{number}"}
        tool.gate.clear()
        calls = [Held(one, fields=fields) for one in pair]
        until(lambda: all(one.metric("meshd_approval_calls_held") == 1 for one in pair), "both are held")
        # One question of both.
        (asked,) = pending(pair[0])
        assert decide(pair[number % 2], asked["id"], "approve", ANA)[0] == 200
        until(lambda number=number: len(tool.asked) == number + 1, "one of them went out")
        # It is under way: a third that comes now waits for it as well.
        calls.append(Held(pair[0], fields=fields))
        tool.gate.set()
        assert [call.end() for call in calls] == [(200, "done")] * 3
        assert len(tool.asked) == number + 1
        # Nobody was asked a second time, and nothing is left to be decided.
        assert listed(pair[0], "pending") == []
        assert len(listed(pair[0], "used")) == number + 1
        assert listed(pair[0], "approved") == []
    # What was used for one key is nothing to another.
    other = Held(pair[1], fields={"idempotency-key": "another"})
    (asked,) = pending(pair[1])
    assert decide(pair[1], asked["id"], "deny", BEN, {"reason": "enough"})[0] == 200
    assert other.end()[0] == 403
    assert len(tool.asked) == 3


@pytest.mark.parametrize("engine", ["sqlite", "redis", "nats"])
async def test_a_daemon_that_is_killed_loses_nothing(sidecar: Sidecar, tool: Tool, engine: str, tmp_path: Path) -> None:
    async with place_of(engine, tmp_path) as place:
        await asyncio.to_thread(
            _killed_at_each_step, sidecar, tool, () if engine == "sqlite" else ("--store", place.url)
        )


def _killed_at_each_step(sidecar: Sidecar, tool: Tool, store: tuple[str, ...]) -> None:
    def again(rule: str = "hold: 0s") -> None:
        sidecar.kill()
        sidecar.start(document(tool, rule), *store)

    again()
    assert Held(sidecar).end()[0] == 428
    (asked,) = pending(sidecar)
    again()
    assert [one["id"] for one in pending(sidecar)] == [asked["id"]]
    assert decide(sidecar, asked["id"], "approve", ANA)[0] == 200
    again()
    assert Held(sidecar).end() == (200, "done")
    again()
    assert [one["id"] for one in listed(sidecar, "used")] == [asked["id"]]
    assert Held(sidecar).end()[0] == 428
    assert len(tool.asked) == 1
    # Killed while it is used and the answer is still to come: nobody knows how it ended, and it is not done again.
    (second,) = pending(sidecar)
    assert decide(sidecar, second["id"], "approve", BEN)[0] == 200
    tool.gate.clear()
    call = Held(sidecar)
    until(lambda: len(tool.asked) == 2)
    sidecar.kill()
    tool.gate.set()
    assert call.end()[0] == 0
    again()
    (lost,) = [one for one in listed(sidecar, "used") if one["id"] == second["id"]]
    assert lost["outcome"] == ""
    assert Held(sidecar).end()[0] == 428
    assert len(tool.asked) == 2
    # Killed while the call is held: the approval stays, and the same call made again goes out.
    (third,) = pending(sidecar)
    again("hold: 20s")
    call = Held(sidecar)
    until(lambda: sidecar.metric("meshd_approval_calls_held") == 1)
    again()
    assert call.end()[0] == 0
    assert decide(sidecar, third["id"], "approve", ANA)[0] == 200
    assert Held(sidecar).end() == (200, "done")
    assert len(tool.asked) == 3


def test_people_are_told_by_webhook_and_a_dead_one_holds_nobody_up(sidecar: Sidecar, tool: Tool) -> None:
    hook = f'approvals: {{webhook: "{tool.url}/hook", webhook_key: {{env: HOOK_KEY}}, topic: people.asked}}\n'
    tool.notice_status = 500
    sidecar.start(document(tool, "hold: 0s", hook), HOOK_KEY="s3cret")
    assert Held(sidecar, b'{"amount": 5, "note": "private-words"}').end()[0] == 428
    until(lambda: tool.notices)
    tool.notice_status = 204
    until(lambda: len(tool.notices) >= 2)
    (asked,) = pending(sidecar)
    fields, body = tool.notices[-1]
    notice = json.loads(body)
    assert notice["type"] == "io.meshd.approval.asked"
    assert notice["data"]["id"] == asked["id"]
    assert notice["data"]["decide"].endswith(asked["id"])
    assert b"private-words" not in body
    from meshd.approvals.webhook import signature

    sent = {name.lower(): value for name, value in fields.items()}
    at_s = int(sent["webhook-timestamp"])
    assert sent["webhook-signature"] == signature(b"s3cret", f"{asked['id']}/asked", at_s, body)
    assert decide(sidecar, asked["id"], "deny", BEN, {"reason": "no"})[0] == 200
    until(lambda: json.loads(tool.notices[-1][1])["type"].endswith("denied"))
    assert json.loads(tool.notices[-1][1])["data"]["decided_by"] == ["ben"]
    # On the topic it is an event like any other: counted, once however often the webhook was tried, and in the trace.
    until(lambda: sidecar.metric("meshd_events_published_total", topic="people.asked", result="new") == 2)
    told = [event for event in Reader(sidecar.home / DIRECTORY).events(None) if event.kind == "published"]
    assert {(event.payload.agent, event.facts["topic"]) for event in told} == {("/meshd/researcher", "people.asked")}


def test_with_nobody_to_ask_the_call_is_refused_at_once(sidecar: Sidecar, tool: Tool) -> None:
    sidecar.start("governance: {human_in_the_loop_required: true}", "--upstream", f"billing={tool.url},kind=tool")
    status, text = Held(sidecar).end()
    assert status == 428
    assert "meshd approvals key NAME" in text
    assert "there are no approvers" in sidecar.log
    assert Held(sidecar, b"", "GET").end()[0] == 200


def test_a_key_is_made_and_shown_once() -> None:
    command = [sys.executable, "-m", "meshd.cli", "approvals", "key", "ana"]
    made = subprocess.run(command, capture_output=True, text=True, env=environ(), cwd=ROOT, check=True)
    key = next(line.strip() for line in made.stderr.splitlines() if line.strip().startswith("mak_"))
    assert key not in made.stdout
    assert hash_of(key) in made.stdout
