"""Prompts that the official SDKs name: what the provider then reads, what is kept to, and what is told of it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import anthropic
import openai
import pytest

from tests.end_to_end.documents import document
from tests.end_to_end.sidecar import Sidecar, environ, fetch, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.end_to_end.provider import Provider

KEY = "sk-prompts"


def meshd(home: Path, *arguments: str, stdin: str = "", status: int = 0, of: str = "prompts") -> str:
    """Run the command line as a person does."""
    command = [sys.executable, "-m", "meshd.cli", of, *arguments, "--home", str(home)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, env=environ(), timeout=60, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def sidecar(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """One sidecar for the whole file, with prompts in its store."""
    one = Sidecar(tmp_path_factory.mktemp("prompts") / "home")
    rules = "rules:\n  - name: some\n    match: {agent: researcher, model: limited}\n    allow: {prompts: [public-*]}\n"
    one.start(document(provider.url, rules))
    for version, text in (("1.2.0", "Summarise {{topic}}."), ("1.3.0", "Summarise {{topic}} briefly.")):
        meshd(one.home, "add", "summarise", version, "-", stdin=text)
    meshd(one.home, "add", "polite", "1.0.0", "-", "--author", "ana", stdin="Be polite. prompt://summarise\n")
    meshd(one.home, "promote", "summarise", "1.2.0")
    meshd(one.home, "promote", "polite", "1.0.0")
    yield one
    one.kill()


def sent(provider: Provider) -> Any:
    """Return the newest body that the provider has seen."""
    return provider.seen[-1].json


def client(sidecar: Sidecar, workflow: str) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{sidecar.url}/openai/v1", api_key=KEY, max_retries=0, default_headers={"x-meshd-workflow": workflow}
    )


def claude(sidecar: Sidecar, workflow: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        base_url=f"{sidecar.url}/anthropic",
        api_key=KEY,
        max_retries=0,
        default_headers={"x-meshd-workflow": workflow},
    )


def ask(one: openai.OpenAI, *texts: str, model: str = "m", **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": text} for text in texts]
    return one.chat.completions.with_raw_response.create(model=model, messages=messages, **more)


def test_what_openais_sdk_names_is_what_the_provider_reads(sidecar: Sidecar, provider: Provider) -> None:
    with client(sidecar, "chat") as one:
        reply = ask(one, "prompt://summarise@^1.2?topic=the+bees")
        assert sent(provider)["messages"] == [{"role": "user", "content": "Summarise the bees briefly."}]
        assert reply.headers["x-meshd-prompt"] == "summarise@1.3.0"
        story = meshd(sidecar.home, "chat", of="trace")
        assert story.index("researcher: prompt summarise@1.3.0") < story.index("-> openai chat m")
        ask(one, "prompt://polite", "see prompt://polite", "prompt://polite is what?")
        assert [each["content"] for each in sent(provider)["messages"]] == [
            "Be polite. prompt://summarise", "see prompt://polite", "prompt://polite is what?",
        ]  # fmt: skip
        stream = one.chat.completions.create(
            model="m",
            messages=[
                {"role": "system", "content": "prompt://polite"},
                {"role": "user", "content": [{"type": "text", "text": "prompt://summarise@1.2.0"}]},
            ],
            extra_body={"prompt_variables": {"topic": "ants"}},
            stream=True,
        )
        assert list(stream)
        body = sent(provider)
        assert [body["messages"][0]["content"], body["messages"][1]["content"][0]["text"]] == [
            "Be polite. prompt://summarise", "Summarise ants.",
        ]  # fmt: skip
        assert "prompt_variables" not in body


def test_responses_are_read_too(sidecar: Sidecar, provider: Provider) -> None:
    with client(sidecar, "responses") as one:
        one.responses.create(model="m", instructions="prompt://polite", input="prompt://summarise@1.2.0?topic=bees")
    body = sent(provider)
    assert (body["instructions"], body["input"]) == ("Be polite. prompt://summarise", "Summarise bees.")


def test_what_anthropics_sdk_names_is_what_the_provider_reads(sidecar: Sidecar, provider: Provider) -> None:
    with claude(sidecar, "messages") as one:
        reply = one.messages.with_raw_response.create(
            model="m",
            max_tokens=3,
            system="prompt://polite",
            messages=[{"role": "user", "content": [{"type": "text", "text": "prompt://summarise?topic=bees"}]}],
        )
    body = sent(provider)
    assert (body["system"], body["messages"][0]["content"][0]["text"]) == (
        "Be polite. prompt://summarise", "Summarise bees.",
    )  # fmt: skip
    assert reply.headers["x-meshd-prompt"] == "polite@1.0.0, summarise@1.2.0"


def test_refusals_are_the_sdks_own_errors(sidecar: Sidecar, provider: Provider) -> None:
    seen = len(provider.seen)
    with client(sidecar, "refused") as one, claude(sidecar, "refused") as other:
        for text, kind, code, word in (
            ("prompt://nothing", openai.NotFoundError, "meshd_prompt_unresolved", "There is no prompt nothing"),
            ("prompt://summarise@^9?topic=x", openai.NotFoundError, "meshd_prompt_unresolved", "no version that fits"),
            ("prompt://summarise@staging", openai.NotFoundError, "meshd_prompt_unresolved", "no label staging"),
            ("prompt://summarise", openai.UnprocessableEntityError, "meshd_prompt_unresolved", "no value is given"),
            (
                "prompt://polite?topic=x",
                openai.UnprocessableEntityError,
                "meshd_prompt_unresolved",
                "no variable topic",
            ),
            ("prompt://Summarise", openai.BadRequestError, "meshd_malformed", "no name of a prompt"),
            ("prompt://summarise?topic", openai.BadRequestError, "meshd_malformed", "no variable with a value"),
        ):
            with pytest.raises(kind, match=word) as caught:
                ask(one, text)
            assert caught.value.code == code  # type: ignore[attr-defined]
        with pytest.raises(openai.UnprocessableEntityError, match="no prompt of the request has a variable spare"):
            ask(one, "prompt://polite", extra_body={"prompt_variables": {"spare": "x"}})
        with pytest.raises(anthropic.NotFoundError, match="There is no prompt nothing"):
            other.messages.create(model="m", max_tokens=3, messages=[{"role": "user", "content": "prompt://nothing"}])
    assert len(provider.seen) == seen, "nothing was sent"


def test_an_agent_is_held_to_the_prompts_that_it_may_use(sidecar: Sidecar, provider: Provider) -> None:
    with client(sidecar, "allowed") as one:
        for name in ("summarise", "nothing"):
            with pytest.raises(openai.PermissionDeniedError, match=f"The prompt {name} is not allowed") as caught:
                ask(one, f"prompt://{name}?topic=x", model="limited")
            assert caught.value.code == "meshd_not_allowed"
        with pytest.raises(openai.NotFoundError):
            ask(one, "prompt://public-one", model="limited")
        ask(one, "see prompt://summarise", model="limited")


def test_tokens_are_reserved_for_the_text_and_not_for_its_name(sidecar: Sidecar) -> None:
    meshd(sidecar.home, "add", "long", "1.0.0", "-", stdin="word " * 2000)
    with client(sidecar, "bound") as one:
        ids = [ask(one, text).headers["x-meshd-call"] for text in ("prompt://long@1.0.0", "short")]
    bounds = [sidecar.admin(f"/v1/calls/{id}")["attempts"][0]["input_bound"] for id in ids]
    assert bounds[0] - bounds[1] > 9_900


def test_a_workflow_keeps_its_version_over_a_promotion_and_a_restart(
    sidecars: Callable[[str], Sidecar], provider: Provider
) -> None:
    one = sidecars("kept").start(document(provider.url))
    for version in ("1.0.0", "1.1.0"):
        meshd(one.home, "add", "greet", version, "-", stdin=f"Hello of {version}")
    meshd(one.home, "promote", "greet", "1.0.0", "--expect", "nowhere")
    assert "stands at 1.0.0, not at nowhere" in meshd(
        one.home, "promote", "greet", "1.1.0", "--expect", "nowhere", status=1
    )
    with client(one, "wf-old") as old, client(one, "wf-new") as new:
        ask(old, "prompt://greet")
        assert "greet@production is 1.1.0" in meshd(one.home, "promote", "greet", "1.1.0", "--expect", "1.0.0")
        assert "stands at 1.1.0" in meshd(one.home, "promote", "greet", "1.0.0", "--expect", "1.0.0", status=1)
        assert ask(new, "prompt://greet").headers["x-meshd-prompt"] == "greet@1.1.0"
        assert ask(old, "prompt://greet").headers["x-meshd-prompt"] == "greet@1.0.0"
    assert "greet@production is 1.0.0" in meshd(one.home, "rollback", "greet")
    one.kill()
    one.start(document(provider.url))
    with client(one, "wf-old") as old, client(one, "wf-new") as new:
        assert ask(new, "prompt://greet").headers["x-meshd-prompt"] == "greet@1.1.0"
        assert ask(old, "prompt://greet").headers["x-meshd-prompt"] == "greet@1.0.0"
        assert sent(provider)["messages"][0]["content"] == "Hello of 1.0.0"


def test_a_canary_gets_its_share_of_workflows(sidecar: Sidecar) -> None:
    for version in ("1.0.0", "1.1.0"):
        meshd(sidecar.home, "add", "shared", version, "-", stdin=f"Text of {version}")
    meshd(sidecar.home, "promote", "shared", "1.0.0")
    assert "1.1.0 (50) and 1.0.0 (50)" in meshd(sidecar.home, "promote", "shared", "1.1.0", "--share", "50")
    got = {}
    for at in range(40):
        with client(sidecar, f"canary-{at}") as one:
            versions = {ask(one, "prompt://shared").headers["x-meshd-prompt"] for _ in range(2)}
        (got[at],) = versions
    assert 8 <= sum(1 for version in got.values() if version == "shared@1.1.0") <= 32


def test_prompts_of_a_folder(sidecars: Callable[[str], Sidecar], provider: Provider, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "greet").mkdir(parents=True)
    (folder / "greet" / "1.0.0.md").write_text("---\nauthor: Ana\n---\nHello {{name}}.\n")
    (folder / "greet" / "labels.yaml").write_text("production: 1.0.0\n")
    one = sidecars("folder").start(document(provider.url, f"prompts: {{dir: {json.dumps(str(folder))}}}\n"))
    with client(one, "wf") as old:
        ask(old, "prompt://greet?name=Bo")
        assert sent(provider)["messages"][0]["content"] == "Hello Bo."
    assert "is kept in the folder" in meshd(one.home, "add", "greet", "2.0.0", "-", stdin="x", status=1)
    (folder / "greet" / "1.1.0.md").write_text("Hi {{name}}.\n")

    def is_new() -> bool:
        return "1.1.0" in meshd(one.home, "list")

    until(is_new, "the new file")
    assert "1.1.0" in meshd(one.home, "show", "greet")


def test_what_is_tested_of_a_prompt(sidecar: Sidecar, provider: Provider, tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    good = """
prompt: summarise@^1.2
cases:
  - name: bees
    variables: {topic: the bees}
    text: {contains: [bees], lacks: ["{{"], matches: ["^Summ"], equals: Summarise the bees briefly., max_tokens: 12}
    answer: {upstream: openai, model: m, matches: ["."], max_tokens: 50, key_env: A_KEY}
  - name: claude
    variables: {topic: ants}
    answer: {upstream: anthropic, model: m, max_output_tokens: 3, matches: ["."]}
"""
    suite.write_text(good)
    command = [sys.executable, "-m", "meshd.cli", "prompts", "test", str(suite), "--home", str(sidecar.home)]
    env = environ(A_KEY=KEY)
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 of 2 cases hold" in done.stdout
    assert [seen.path for seen in provider.seen[-2:]] == ["/v1/chat/completions", "/v1/messages"]
    assert provider.seen[-2].json["messages"][0]["content"] == "Summarise the bees briefly."
    assert provider.seen[-2].headers["authorization"] == f"Bearer {KEY}"
    suite.write_text(good.replace("contains: [bees]", "contains: [wasps]").replace("max_tokens: 12", "max_tokens: 2"))
    done = subprocess.run([*command, "--only-text"], capture_output=True, text=True, env=env, timeout=60, check=False)
    assert done.returncode == 1
    assert "FAIL bees" in done.stdout
    assert "lacks 'wasps'" in done.stdout
    assert "tokens, over 2" in done.stdout


def test_the_admin_api_needs_its_token(sidecar: Sidecar) -> None:
    assert sidecar.running is not None
    url = f"http://{sidecar.running['admin']}/v1/prompts"
    assert fetch(url)[0] == 401
    assert (
        fetch(url, "POST", {"content-type": "application/json"}, b'{"name":"a","version":"1.0.0","text":"x"}')[0] == 401
    )
