"""What answers without a provider: kept answers, programs, functions, texts; good ones, and all that may go wrong."""

from __future__ import annotations

import json
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.end_to_end.provider import Provider
from tests.end_to_end.sidecar import Sidecar, fetch, until
from tests.fallback.conftest import CODE, MARK, PYTHON, act, anthropic_of, chained, command, document, openai_of, saying

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVED = "x-meshd-served-by"
SLOW = ("hangs", "forks")
LAST = {"reply": "the last resort"}


def _patience(name: str) -> str:
    return "500ms" if name in SLOW else "20s"


PROGRAMS = [chained("openai", name, {"command": command(name), "timeout": _patience(name)}, LAST) for name in CODE]
FUNCTIONS = [
    chained("openai", f"py-{name}", {"python": f"{PYTHON}:{name}", "timeout": _patience(name)}, LAST)
    for name in ("shout", "raises", "leaves", "hangs", "floods", "nothing", "absent")
]
RULES = (
    *PROGRAMS,
    *FUNCTIONS,
    chained("openai", "nowhere", {"command": ["/nowhere/at/all"]}, LAST),
    chained("openai", "no-module", {"python": "no.such.module:run"}, LAST),
    chained("openai", "text", LAST),
    chained("openai", "nothing-left", {"command": command("dies")}, {"python": f"{PYTHON}:raises"}),
    chained("anthropic", "text", LAST),
    chained("well", "kept", {"cached": "1h"}, LAST),
    {"name": "shop", "match": {"target": "shop", "operation": "* /kept"}, "retry": {"attempts": 0},
     "fallback": {"to": [{"cached": "1h"}, {"python": f"{PYTHON}:table"}]}},
    {"name": "tool", "match": {"target": "tool"}, "retry": {"attempts": 0}, "fallback": {"to": [{"reply": "closed"}]}},
)  # fmt: skip


@pytest.fixture
def through(provider: Provider, dead: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    one = Sidecar(tmp_path_factory.mktemp("heuristics") / "home")
    yield one.start(document(provider.url, dead, *RULES), MESHD_SECRET="hush", SOME_API_KEY="sk-hush")
    one.kill()


def said(one: Sidecar, model: str, text: str = "hello", upstream: str = "openai", **more: Any) -> tuple[str, str]:
    """Return what served a chat, and its answer's text."""
    with openai_of(one, upstream, timeout=30) as client:
        raw = client.chat.completions.with_raw_response.create(model=model, messages=saying(text), **more)
        answer = raw.parse()
    return raw.headers.get(SERVED, ""), answer.choices[0].message.content


def children() -> set[int]:
    """The processes that the sidecar has started, and theirs, however often they were orphaned since."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if MARK.encode() in words:
                found.add(int(entry.name))
    return found


def test_a_program_reads_the_request_and_writes_the_answer(through: Sidecar) -> None:
    assert said(through, "good") == ("command", "good")


def test_a_program_has_nothing_of_the_daemons_secrets(through: Sidecar) -> None:
    names = said(through, "environment")[1].split(",")
    assert "PATH" in names
    assert not [name for name in names if "MESHD" in name or "KEY" in name or "SECRET" in name]


@pytest.mark.parametrize("name", ["deaf", "complains"])
def test_a_program_need_not_listen_and_may_complain(through: Sidecar, name: str) -> None:
    assert said(through, name)[0] == "command"


@pytest.mark.parametrize("name", ["dies", "floods", "hangs"])
def test_a_bad_program_is_the_next_links_turn_and_leaves_nothing_behind(through: Sidecar, name: str) -> None:
    assert said(through, name) == ("reply", "the last resort")
    until(lambda: not children(), "the programs end")


def test_what_a_program_has_begun_ends_with_it(through: Sidecar) -> None:
    served, _ = said(through, "forks")
    # Its child keeps the answer's pipe open: either way nothing stays behind.
    assert served in ("command", "reply")
    until(lambda: not children(), "the children end")


def test_a_program_that_is_not_there(through: Sidecar) -> None:
    assert said(through, "nowhere")[0] == "reply"


def test_a_function_answers(through: Sidecar) -> None:
    assert said(through, "py-shout", "say it") == ("python", "SAY IT")


@pytest.mark.parametrize("name", ["raises", "leaves", "hangs", "floods", "nothing", "absent"])
def test_a_bad_function_is_the_next_links_turn(through: Sidecar, name: str) -> None:
    assert said(through, f"py-{name}") == ("reply", "the last resort")
    assert said(through, "no-module") == ("reply", "the last resort")
    assert said(through, "py-shout", "still here") == ("python", "STILL HERE")


def test_where_nothing_is_left_the_first_failure_is_told(through: Sidecar) -> None:
    with pytest.raises(openai.InternalServerError) as raised:
        said(through, "nothing-left")
    body: Any = raised.value.body
    assert raised.value.status_code == 502
    assert "command (ended with 4: no idea); python (raised RuntimeError: cannot do chat)" in body["message"]


def test_a_text_is_an_answer_to_every_api_and_costs_nothing(through: Sidecar) -> None:
    with openai_of(through) as client:
        asked: Any = {"model": "text", "messages": saying()}
        answer = client.chat.completions.create(**asked, n=2)
        assert [(c.index, c.message.content, c.finish_reason) for c in answer.choices] == [
            (0, "the last resort", "stop"), (1, "the last resort", "stop"),
        ]  # fmt: skip
        assert (answer.model, answer.usage.total_tokens) == ("meshd-reply", 0)
        chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "the last resort"
        assert chunks[-1].usage.total_tokens == 0
        response = client.responses.create(model="text", input="hello")
        assert (response.output_text, response.status, response.model) == (
            "the last resort", "completed", "meshd-reply",
        )  # fmt: skip
        with client.responses.stream(model="text", input="hello") as stream:
            assert stream.get_final_response().output_text == "the last resort"
        whole = client.completions.create(model="text", prompt="hello")
        assert (whole.choices[0].text, whole.usage.total_tokens) == ("the last resort", 0)
        assert "".join(c.choices[0].text for c in client.completions.create(model="text", prompt="h", stream=True))
        with pytest.raises(openai.InternalServerError):
            client.embeddings.create(model="text", input="no text is an embedding")


def test_a_text_is_a_message(through: Sidecar) -> None:
    with anthropic_of(through) as client:
        asked: Any = {"model": "text", "max_tokens": 9, "messages": saying()}
        answer = client.messages.create(**asked)
        assert (answer.content[0].text, answer.stop_reason, answer.model) == (
            "the last resort", "end_turn", "meshd-reply",
        )  # fmt: skip
        assert answer.usage.input_tokens == answer.usage.output_tokens == 0
        with client.messages.stream(**asked) as stream:
            assert stream.get_final_message().content[0].text == "the last resort"


def test_a_kept_answer_is_for_the_very_same_request(through: Sidecar, provider: Provider) -> None:
    def ask(text: str, statuses: list[int], key: str = "sk-caller", **more: Any) -> tuple[str, str]:
        with (
            openai_of(through, "well", api_key=key)
            if False
            else openai.OpenAI(base_url=f"{through.url}/well/v1", api_key=key, max_retries=0) as client
        ):
            raw = client.chat.completions.with_raw_response.create(
                model="kept", messages=saying(text), extra_headers=act(id=uuid.uuid4().hex, statuses=statuses), **more
            )
            return raw.headers.get(SERVED, ""), raw.headers.get("age", "")

    assert ask("first", [503]) == ("reply", "")
    assert ask("first", [200]) == ("", "")
    assert ask("first", [503])[0] == "cache"
    assert ask("first", [503])[1].isdigit()
    assert ask("second", [503])[0] == "reply"
    assert ask("first", [503], "sk-someone-else")[0] == "reply"
    assert ask("first", [503], temperature=0.5)[0] == "reply"


def test_a_kept_stream_is_replayed_as_one(through: Sidecar) -> None:
    with openai_of(through, "well") as client:
        asked: Any = {"model": "kept", "messages": saying("stream it"), "stream": True}
        first = list(client.chat.completions.create(**asked))
        again = list(client.chat.completions.create(**asked, extra_headers=act(statuses=[500], id=uuid.uuid4().hex)))
        assert [c.model_dump() for c in again] == [c.model_dump() for c in first]
        with pytest.raises(Exception):  # noqa: B017 - httpx's own
            list(client.chat.completions.create(**(asked | {"messages": saying("dies")}), extra_headers=act(dies_at=2)))
        raw = client.chat.completions.with_raw_response.create(
            **(asked | {"messages": saying("dies")}), extra_headers=act(statuses=[500], id=uuid.uuid4().hex)
        )
        assert raw.headers[SERVED] == "reply"


def test_tools_are_answered_with_text_or_json(through: Sidecar) -> None:
    assert fetch(f"{through.url}/tool/anything", "DELETE") == (200, "closed")

    def failing() -> dict[str, str]:
        return act(statuses=[500], id=uuid.uuid4().hex)

    status, text = fetch(f"{through.url}/shop/kept", "GET", failing())
    assert (status, json.loads(text)) == (200, {"seen": "/kept"})
    first_well = act(statuses=[200, 500, 500], id=uuid.uuid4().hex)
    assert json.loads(fetch(f"{through.url}/shop/kept", "GET", first_well)[1]) == {"path": "/kept", "body": 0}
    assert json.loads(fetch(f"{through.url}/shop/kept", "GET", first_well)[1]) == {"path": "/kept", "body": 0}
    # Another's cookie is another's answer.
    status, text = fetch(f"{through.url}/shop/kept", "GET", first_well | {"cookie": "user=2"})
    assert json.loads(text) == {"seen": "/kept"}


def test_more_programs_than_may_run_at_once_pass_the_link_over(through: Sidecar) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(said(through, "hangs")[0])) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == ["reply"] * 24
    until(lambda: not children(), "the programs end")
