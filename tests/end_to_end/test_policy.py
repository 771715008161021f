"""Documents are swapped whole or not at all, and a call keeps the one that it began with."""

from __future__ import annotations

import json
import signal
import threading
import uuid
from typing import TYPE_CHECKING, Any

from tests.end_to_end.documents import document
from tests.end_to_end.provider import Provider
from tests.end_to_end.sidecar import Sidecar, fetch, until

if TYPE_CHECKING:
    from pathlib import Path

CHAT = "/openai/v1/chat/completions"
ASK: dict[str, Any] = {"model": "m", "max_tokens": 8, "messages": [{"role": "user", "content": "go"}]}
DENY = "rules:\n  - {name: shut, match: {target: openai}, deny: closed today}\n"


def chat(sidecar: Sidecar, headers: dict[str, str] | None = None, **more: Any) -> tuple[int, str]:
    found: tuple[int, str] = fetch(sidecar.url + CHAT, "POST", headers or {}, json.dumps(ASK | more).encode())
    return found


def test_sighup_takes_a_new_document(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(document(provider.url))
    assert chat(sidecar)[0] == 200
    before = sidecar.admin("/v1/policy")["digest"]
    sidecar.policy.write_text(document(provider.url, DENY))
    sidecar.signal(signal.SIGHUP)
    until(lambda: chat(sidecar)[0] == 403)
    assert sidecar.admin("/v1/policy")["digest"] != before


def test_a_changed_file_is_noticed_by_itself(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(document(provider.url))
    assert chat(sidecar)[0] == 200
    sidecar.policy.write_text(document(provider.url, DENY))
    until(lambda: chat(sidecar)[0] == 403)
    sidecar.policy.write_text(document(provider.url))
    until(lambda: chat(sidecar)[0] == 200)


def test_a_configmaps_symlink_swap_is_noticed(sidecar: Sidecar, provider: Provider, tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()

    def project(name: str, text: str) -> None:
        """As the kubelet does it: a new directory, then `..data` is renamed over."""
        (mount / name).mkdir()
        (mount / name / "policy.yaml").write_text(text)
        (mount / "..data_tmp").symlink_to(name)
        (mount / "..data_tmp").rename(mount / "..data")

    project("..2026_1", document(provider.url))
    (mount / "policy.yaml").symlink_to("..data/policy.yaml")
    sidecar.start(None, "--policy", str(mount))
    assert chat(sidecar)[0] == 200
    project("..2026_2", document(provider.url, DENY))
    until(lambda: chat(sidecar)[0] == 403)


def test_a_bad_document_keeps_the_old_one_and_is_said_everywhere(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(document(provider.url))
    good = sidecar.admin("/v1/policy")
    for number, bad in enumerate(
        ("agent: [", "agent: a\nagent: b\n", "nonsense: 1\n", "", "upstreams: {x: {url: 'ftp://x'}}\n", "\x00")
    ):
        sidecar.policy.write_text(bad)
        sidecar.signal(signal.SIGHUP)
        until(lambda number=number: refused_reloads(sidecar) > number, bad)
        assert chat(sidecar)[0] == 200
        now = sidecar.admin("/v1/policy")
        assert now["digest"] == good["digest"]
        assert now["reload_error"]
    assert "the one before stays in force" in sidecar.log
    assert sidecar.get("/readyz")[0] == 200
    answer = sidecar.admin("/v1/reload", "POST")
    assert (answer["http_status"], answer["is_taken"]) == (422, False)
    assert answer["problems"]
    sidecar.policy.unlink()
    sidecar.signal(signal.SIGHUP)
    assert sidecar.admin("/v1/reload", "POST")["http_status"] == 422
    assert chat(sidecar)[0] == 200
    sidecar.policy.write_text(document(provider.url, DENY))
    answer = sidecar.admin("/v1/reload", "POST")
    assert (answer["http_status"], answer["is_taken"]) == (200, True)
    assert chat(sidecar)[0] == 403
    assert sidecar.admin("/v1/policy")["reload_error"] == ""


def refused_reloads(sidecar: Sidecar) -> float:
    return sidecar.metric("meshd_policy_reloads_total", result="failed")


def test_a_call_under_way_keeps_the_document_it_began_with(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(document(provider.url))
    id, answers = uuid.uuid4().hex, []
    headers = {"x-act": json.dumps({"id": id, "pause_at": 2, "words": 6})}
    call = threading.Thread(target=lambda: answers.append(chat(sidecar, headers, stream=True)))
    call.start()
    until(lambda: provider.of(id))
    # Its upstream is gone from the new document, and its pool with it.
    other = document(provider.url).replace("openai:", "renamed:")
    sidecar.policy.write_text(other)
    sidecar.signal(signal.SIGHUP)
    until(lambda: chat(sidecar)[0] == 404)
    provider.go_on(id)
    call.join(30)
    assert answers[0][0] == 200
    assert answers[0][1].endswith("data: [DONE]\n\n")


def test_meshd_exec_finds_what_a_reload_has_brought(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(document(provider.url))
    sidecar.policy.write_text(document(provider.url).replace("plain:", "newcomer:"))
    until(lambda: "newcomer" in str(sidecar.running))


def test_shadow_decides_and_lets_pass_beside_a_rule_that_binds(sidecar: Sidecar, provider: Provider) -> None:
    rules = (
        "rules:\n"
        "  - {name: trial-deny, match: {target: openai}, deny: not yet, shadow: true}\n"
        "  - {name: trial-models, match: {kind: llm}, allow: {models: [tiny]}, shadow: true}\n"
        "  - {name: trial-purse, match: {kind: llm}, budget: {tokens: 1}, shadow: true}\n"
        "  - {name: binds, match: {kind: llm}, allow: {models: [m]}}\n"
    )
    sidecar.start(document(provider.url, rules))
    workflow = {"x-meshd-workflow": "w"}
    assert chat(sidecar, workflow)[0] == 200
    assert chat(sidecar, workflow, model="other")[0] == 403
    shadowed = {labels["rule"]: value for labels, value in sidecar.series("meshd_shadow_refusals_total")}
    assert shadowed["trial-deny"] == 2
    assert shadowed["trial-models"] == 2
    assert shadowed["trial-purse"] == 1, "the second never came to its budget"
    assert sidecar.metric("meshd_refusals_total", reason="not_allowed") == 1
    rules_ = {rule["name"]: rule for rule in sidecar.admin("/v1/policy")["rules"]}
    assert rules_["trial-deny"]["is_shadow"]
    assert not rules_["binds"]["is_shadow"]


def test_a_shadow_rule_alone(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(
        document(provider.url, "rules:\n  - {name: t, match: {kind: llm}, deny: closed, shadow: true}\n", tokens=None)
    )
    assert chat(sidecar)[0] == 200
    assert sidecar.metric("meshd_shadow_refusals_total", rule="t") == 1
    assert sidecar.metric("meshd_refusals_total") == 0


def test_a_rule_for_tools_that_nobody_can_see_is_refused(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.spawn(document(provider.url, "rules:\n  - {name: r, match: {tool: x}, deny: x}\n"))
    assert sidecar.wait() == 1
    assert "only calls to a tool have one" in sidecar.log
    assert "Traceback" not in sidecar.log


GOVERNANCE = """governance:
  max_tokens_per_workflow: 50000
  human_in_the_loop_required: true
  allowed_tools: ["web_search", "python_interpreter", "db_query"]
"""


def test_the_short_form_alone(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(
        GOVERNANCE,
        *("--upstream", f"openai={provider.url}", "--upstream", f"shell={provider.url},kind=tool"),
        *("--upstream", f"db_query={provider.url},kind=tool"),
    )
    workflow = {"x-meshd-workflow": "w"}
    assert chat(sidecar, workflow)[0] == 200
    assert next(iter(sidecar.accounts().values()))[0] == 50_000
    function = {"type": "function", "function": {"name": "rm", "parameters": {}}}
    status, text = chat(sidecar, workflow, tools=[function])
    assert (status, "'rm'" in text) == (403, True)
    function["function"]["name"] = "web_search"  # type: ignore[index]
    assert chat(sidecar, workflow, tools=[function])[0] == 200
    assert fetch(f"{sidecar.url}/db_query/rows")[0] == 200
    status, text = fetch(f"{sidecar.url}/db_query/rows", "POST", {}, b"{}")
    assert (status, "approval" in text) == (428, True)
    assert fetch(f"{sidecar.url}/shell/x")[0] == 403


def test_a_document_that_does_not_load_starts_nothing(sidecar: Sidecar) -> None:
    sidecar.spawn("agent: a\nrules:\n  - {match: {kind: llmm}, budgett: {}}\nupstreams: {x: {url: nonsense}}\n")
    assert sidecar.wait() == 1
    lines = [line for line in sidecar.log.splitlines() if "home.yaml:" in line]
    assert len(lines) >= 3, "every error at once"
    assert all(line.split(":")[1].isdigit() for line in lines)
    assert "Traceback" not in sidecar.log
    assert not (sidecar.home / "daemon.json").exists()


def test_a_state_directory_that_is_a_file_is_named(sidecar: Sidecar) -> None:
    sidecar.home.write_text("in the way")
    sidecar.spawn("agent: a\n")
    assert sidecar.wait() == 1
    assert f"{sidecar.home} cannot be made: it is no directory. MESHD_HOME names another one." in sidecar.log
