"""`meshd events` with a real daemon: publish, follow, groups, dead letters, redrive, and plain errors."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from meshd.cli import main
from tests.end_to_end.sidecar import Sidecar, until

if TYPE_CHECKING:
    from collections.abc import Iterator

POLICY = """
agent: ann
upstreams:
  bob: {url: "http://127.0.0.1:1", kind: agent}
  eve: {url: "http://127.0.0.1:1", kind: agent}
subscriptions:
  - {topic: "dying.*", to: bob}
  - {topic: "counted.*", to: eve}
rules:
  - {match: {topic: ["dying.*", "counted.*"], operation: "HANDLE *"}, deny: nobody may}
"""


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    made = Sidecar(tmp_path_factory.mktemp("events") / "home")
    made.start(POLICY, MESHD_API="127.0.0.1:0")
    yield made
    made.kill()


def run(sidecar: Sidecar, *arguments: str, stdin: bytes = b"") -> Result:
    unset = dict.fromkeys([name for name in os.environ if name.startswith("MESHD_")])
    env = unset | {"MESHD_HOME": str(sidecar.home)}
    return CliRunner(env=env).invoke(main, ["events", *arguments], input=stdin)


def told(sidecar: Sidecar, *arguments: str, stdin: bytes = b"") -> str:
    result = run(sidecar, *arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_publish_topics_and_tail(sidecar: Sidecar) -> None:
    assert told(sidecar, "publish", "cli.one", '{"a": 1}', "--id", "e1").startswith("e1  0000")
    assert "published before" in told(sidecar, "publish", "cli.one", '{"a": 1}', "--id", "e1")
    told(sidecar, "publish", "cli.two", "not json \x1b[31m", "--id", "e2", "--type", "said")
    told(sidecar, "publish", "cli.raw", "--file", "-", "--content-type", "image/png", "--id", "e3", stdin=b"\x00\xff")
    topics = json.loads(told(sidecar, "topics", "--json"))["topics"]
    assert {one["topic"]: one["events"] for one in topics}.items() >= {"cli.one": 1, "cli.two": 1}.items()
    assert "cli.one" in told(sidecar, "topics")
    lines = [json.loads(line) for line in told(sidecar, "tail", "cli.>", "--once", "--json").splitlines()]
    assert [(one["id"], one["type"]) for one in lines] == [("e1", "cli.one"), ("e2", "said"), ("e3", "cli.raw")]
    assert lines[0]["data"] == {"a": 1}
    assert lines[2]["data_base64"] == "AP8="
    shown = told(sidecar, "tail", "cli.two", "--once")
    assert "not json ?[31m" in shown
    assert "\x1b" not in shown


def test_dead_letters_are_shown_with_their_reason_and_redriven(sidecar: Sidecar) -> None:
    told(sidecar, "publish", "dying.now", "1", "--id", "d1")
    told(sidecar, "publish", "dying.now", "2", "--id", "d2")

    def dead() -> list[dict[str, Any]]:
        found = json.loads(told(sidecar, "dead", "--group", "bob", "--json"))["dead"]
        return found if len(found) == 2 else []

    letters = until(dead)
    assert [one["event"]["id"] for one in letters] == ["d1", "d2"]
    assert all(one["reason"].startswith("not_allowed: dying.now is not allowed: nobody may") for one in letters)
    assert "not_allowed" in told(sidecar, "dead")
    first = letters[0]["id"]
    assert told(sidecar, "redrive", "bob", str(first)) == "1 redriven\n"
    again = until(dead)
    assert [one["event"]["id"] for one in again] == ["d2", "d1"], "it died again, behind the other"
    assert again[1]["id"] > letters[1]["id"]
    assert told(sidecar, "redrive", "bob", "--all") == "2 redriven\n"
    until(dead)
    groups = json.loads(told(sidecar, "groups", "--json"))["groups"]
    (one,) = [each for each in groups if (each["group"], each["topic"]) == ("bob", "dying.*")]
    assert (one["dead"], one["waiting"], one["lag"]) == (2, 0, 0)
    assert "bob " in told(sidecar)
    missing = run(sidecar, "redrive", "bob", "99999")
    assert missing.exit_code == 1
    assert "1 of these ids are no dead letters of bob; `meshd events dead --group bob`" in missing.output
    assert json.loads(told(sidecar, "dead", "--group", "nobody", "--json")) == {"dead": []}


def test_metrics_say_what_was_done(sidecar: Sidecar) -> None:
    told(sidecar, "publish", "counted.now", "1")
    assert sidecar.metric("meshd_events_published_total", topic="counted.now", result="new") == 1
    until(lambda: "meshd_events_refused_total{" in sidecar.get("/metrics")[1])

    def is_dead() -> bool:
        told(sidecar, "groups")  # looks at them
        return 'meshd_events_dead{group="eve",topic="counted.*"} 1' in sidecar.get("/metrics")[1]

    until(is_dead)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("publish", "../../x", "1"), 1, "topic"),
        (("publish", "t", "1", "--as", "mallory"), 1, "No agent mallory"),
        (("publish", "t", "--file", "/nowhere/at/all"), 1, "cannot be read"),
        (("redrive", "bob"), 2, "--all"),
        (("redrive", "bob", "1", "--all"), 2, "--all"),
        (("redrive", "bob", "x"), 2, "x"),
        (("redrive", "a b", "--all"), 1, "group"),
        (("redrive", "nobody", "--all"), 1, "there is no group 'nobody'"),
        (("dead", "--group", "a b"), 1, "group"),
        (("dead", "--group", "nobody"), 1, "there is no group 'nobody'"),
        (("tail", "../../x", "--once"), 1, "topic"),
    ],
)
def test_nonsense_is_said_in_a_line(sidecar: Sidecar, arguments: tuple[str, ...], code: int, words: str) -> None:
    result = run(sidecar, *arguments)
    assert result.exit_code == code, result.output
    assert words in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/events/kept?topic=a%20b", None, 400),
        ("GET", "/v1/events/kept?after=x", None, 400),
        ("GET", "/v1/events/dead?limit=0", None, 400),
        ("GET", "/v1/events/topics?what=1", None, 400),
        ("POST", "/v1/events/redrive", b"[]", 400),
        ("POST", "/v1/events/redrive", b'{"group": "g", "ids": ["x"]}', 400),
        ("POST", "/v1/events/redrive", b'{"group": "g", "more": 1}', 400),
    ],
)
def test_the_admin_port_takes_no_nonsense(
    sidecar: Sidecar, method: str, path: str, body: bytes | None, status: int
) -> None:
    assert sidecar.running is not None
    token = (sidecar.home / "admin.token").read_text().strip()
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    url = f"http://{sidecar.running['admin']}{path}"
    request = urllib.request.Request(url, body, headers, method=method)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == status
