"""The TypeScript example, built and run with the official grpc-js package against a real sidecar."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.end_to_end.sidecar import Sidecar, until
from tests.examples.conftest import EXAMPLE
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Counter:
    """The example in a process of its own."""

    def __init__(self, node: str, api: str, log: Path) -> None:
        self._log = log
        with log.open("wb") as out:
            environment = os.environ | {"MESHD_API": api}
            self.process = subprocess.Popen(
                [node, str(EXAMPLE / "build" / "agent.js")], stdout=out, stderr=out, env=environment
            )

    @property
    def said(self) -> str:
        """All that it printed."""
        return self._log.read_text()


@pytest.fixture
def counter(built: str, tmp_path: Path) -> Iterator[Callable[[str], Counter]]:
    """Start the example against an API's address; it is gone after the test."""
    started: list[Counter] = []

    def start(api: str) -> Counter:
        started.append(Counter(built, api, tmp_path / f"counter{len(started)}.log"))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[Sidecar]:
    """A sidecar that is gone after the test."""
    one = Sidecar(tmp_path / "home")
    yield one
    one.kill()


def count(sidecar: Sidecar, body: Any, operation: str = "count_words", **headers: str) -> tuple[int, Any]:
    """Call the agent as anybody would: with HTTP, through the sidecar."""
    connection = http.client.HTTPConnection(urlsplit(sidecar.url).netloc, timeout=30)
    connection.request("POST", f"/counter/{operation}", json.dumps(body), headers)
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read())


def test_it_answers_and_publishes_in_its_callers_workflow(sidecar: Sidecar, counter: Callable[[str], Counter]) -> None:
    api = f"127.0.0.1:{free_port()}"
    agent = counter(sidecar.start(None, MESHD_API=api) and api)
    until(lambda: "counter is open" in agent.said)
    named = {"x-meshd-workflow": "report-42"}
    assert count(sidecar, {"text": "to be or not to be"}, **named) == (200, {"words": 6})
    until(lambda: 'words.counted: {"words":6}, workflow report-42' in agent.said)


def test_an_operation_that_it_has_not_is_a_failure_with_words(
    sidecar: Sidecar, counter: Callable[[str], Counter]
) -> None:
    api = f"127.0.0.1:{free_port()}"
    agent = counter(sidecar.start(None, MESHD_API=api) and api)
    until(lambda: "counter is open" in agent.said)
    status, problem = count(sidecar, {}, operation="add_words")
    assert status == 404
    assert "no tool add_words" in json.dumps(problem)
    status, problem = count(sidecar, {"txt": "to be"})
    assert status == 400
    assert "the arguments are JSON such as" in json.dumps(problem)


def test_it_goes_on_when_the_sidecar_was_killed(sidecar: Sidecar, counter: Callable[[str], Counter]) -> None:
    api = f"127.0.0.1:{free_port()}"
    agent = counter(sidecar.start(None, MESHD_API=api) and api)
    until(lambda: "counter is open" in agent.said)
    sidecar.kill()
    sidecar.start(None, MESHD_API=api)
    until(lambda: count(sidecar, {"text": "still here"}) == (200, {"words": 2}))
    until(lambda: 'words.counted: {"words":2}' in agent.said)


def test_it_says_good_bye(sidecar: Sidecar, counter: Callable[[str], Counter]) -> None:
    api = f"127.0.0.1:{free_port()}"
    agent = counter(sidecar.start(None, MESHD_API=api) and api)
    until(lambda: "counter is open" in agent.said)
    agent.process.send_signal(signal.SIGTERM)
    assert agent.process.wait(30) == 0
    status, problem = count(sidecar, {"text": "anybody?"})
    assert status in (404, 502)
    assert re.search(r"counter", problem["detail"])
