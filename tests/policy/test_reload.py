"""Changes are noticed on real files, links and directories; a document with a mistake never takes effect."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from meshd.call import Kind, Target
from meshd.policy.document import load
from meshd.policy.reload import Reloader, Watch

GOOD = "limits: {hops: 3}\nrules: [{name: a, match: {kind: llm}, retry: {attempts: 0}}]\n"
BETTER = "limits: {hops: 4}\nrules: [{name: a, match: {kind: llm}, retry: {attempts: 1}}, {deny: x}]\n"
BAD = "limits: {hops: x}\nrule: []\n"


def replace(path: Path, text: str) -> None:
    """Write as editors do: beside it, then renamed over it."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(GOOD)
    watch = Watch([path])
    assert not watch.changed()
    path.write_text(GOOD + "# more\n")
    assert watch.changed()
    assert not watch.changed()
    replace(path, GOOD + "# same\n")
    assert watch.changed()
    path.unlink()
    assert watch.changed()
    assert not watch.changed()
    path.write_text(GOOD)
    assert watch.changed()


def test_the_same_size_and_time_in_another_file(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("agent: a\n")
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    watch = Watch([path])
    replace(path, "agent: b\n")
    os.utime(path, ns=times)
    assert watch.changed()


def test_a_directory(tmp_path: Path) -> None:
    watch = Watch([tmp_path])
    assert not watch.changed()
    (tmp_path / "a.yaml").write_text(GOOD)
    assert watch.changed()
    (tmp_path / "b.txt").write_text("x")
    assert not watch.changed()
    (tmp_path / "b.yaml").write_text("agent: b")
    assert watch.changed()
    (tmp_path / "a.yaml").unlink()
    assert watch.changed()


def config_map(root: Path, revision: str, text: str) -> None:
    """Put a revision in place as a kubelet does: a new directory, then one rename of the `..data` link."""
    (root / revision).mkdir()
    (root / revision / "policy.yaml").write_text(text)
    (root / "..data_tmp").symlink_to(revision)
    (root / "..data_tmp").rename(root / "..data")
    if not (root / "policy.yaml").is_symlink():
        (root / "policy.yaml").symlink_to("..data/policy.yaml")


@pytest.mark.parametrize("watched", ["", "policy.yaml"])
def test_a_config_map(tmp_path: Path, watched: str) -> None:
    config_map(tmp_path, "..2026_01", GOOD)
    path = tmp_path / watched
    watch = Watch([path])
    policy = load([path])
    reloader = Reloader(policy, [path])
    assert (policy.limits.hops, watch.changed()) == (3, False)
    config_map(tmp_path, "..2026_02", BETTER)
    assert watch.changed()
    assert reloader.reload() is reloader.policy
    assert (reloader.policy.limits.hops, watch.changed()) == (4, False)
    config_map(tmp_path, "..2026_03", BAD)
    assert watch.changed()
    assert reloader.reload() is None
    assert reloader.policy.limits.hops == 4


def test_a_link_that_is_turned(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(GOOD)
        os.utime(tmp_path / name, ns=(1, 1))
    link = tmp_path / "p.yaml"
    link.symlink_to("a")
    watch = Watch([link])
    link.unlink()
    link.symlink_to("b")
    assert watch.changed()


def test_a_mistake_keeps_the_old_document_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(GOOD)
    policy = load([path])
    reloader = Reloader(policy, [path])
    for text, words in ((BAD, f'{path}:2:1: unknown key "rule"'), ("a: [", "not YAML"), ("\0", "may not stand")):
        path.write_text(text)
        assert reloader.reload() is None
        assert words in reloader.error
        assert reloader.policy is policy
    path.unlink()
    assert reloader.reload() is None
    assert "cannot be read" in reloader.error
    assert (reloader.failures, reloader.reloads) == (4, 0)
    path.write_text(BETTER)
    new = reloader.reload()
    assert new is reloader.policy
    assert new is not policy
    assert (reloader.error, reloader.failures, reloader.reloads) == ("", 4, 1)


def test_a_fault_of_our_own_keeps_the_old_document_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(GOOD)
    reloader = Reloader(load([path]), [path])

    def fail(*_args: object, **_given: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr("meshd.policy.reload.load", fail)
    assert reloader.reload() is None
    assert reloader.error == "RuntimeError: out of order"


def test_counters_go_on_and_a_call_keeps_the_plan_it_began_with(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(GOOD)
    policy = load([path])
    reloader = Reloader(policy, [path])
    plan = policy.plan(Target(Kind.LLM, "openai"), "agent", "chat")
    plan.hit()
    path.write_text(BETTER)
    new = reloader.reload()
    assert new is not None
    assert new.hits() == {"a": 1, "rule-2": 0}
    assert plan.retry is not None
    assert plan.retry.attempts == 0


@pytest.mark.parametrize("text", ["", "\n\n", "# agent: a\n", "  # x\n\n"])
def test_a_document_that_became_empty_takes_nothing_away(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(GOOD)
    reloader = Reloader(load([path]), [path])
    path.write_text(text)
    assert reloader.reload() is None
    assert "empty now" in reloader.error
    assert str(path) in reloader.error
    assert reloader.policy.limits.hops == 3
    path.write_text("{}\n")
    assert reloader.reload() is not None, "this says that it is meant"
    path.write_text(BETTER)
    assert reloader.reload() is not None
    assert reloader.policy.limits.hops == 4


def test_a_document_that_was_empty_all_along_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# nothing yet\n")
    (tmp_path / "b.yaml").write_text(GOOD)
    reloader = Reloader(load([tmp_path]), [tmp_path])
    (tmp_path / "b.yaml").write_text(BETTER)
    assert reloader.reload() is not None
    (tmp_path / "b.yaml").write_text("")
    assert reloader.reload() is None
    assert reloader.policy.limits.hops == 4
