"""Prompts over the admin port: added, shown, moved, filled in; and whatever else is asked of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from meshd.engines.port import Change
from meshd.prompts.record import HEADS
from meshd.prompts.terms import PromptTerms

if TYPE_CHECKING:
    from pathlib import Path

    from tests.admin.daemon import Ports

SECRET = "sk-proj-aB3dE6gH9jK2mN5pQ8sT1vW4yZ7aB3dE6gH9"


async def add(ports: Ports, version: str = "1.0.0", text: str = "Say {{topic}}.", **more: Any) -> tuple[int, Any]:
    body = {"name": "say", "version": version, "text": text, **more}
    status, found, _ = await ports.admin("/v1/prompts", "POST", json=body)
    return status, found


async def move(ports: Ports, what: str, **body: Any) -> tuple[int, Any]:
    status, found, _ = await ports.admin(f"/v1/prompts/say/{what}", "POST", json={"label": "production", **body})
    return status, found


async def test_what_is_added_is_shown_as_it_is(ports: Ports) -> None:
    text = f"Use {{{{token}}}} and {SECRET}.\nüñ"
    status, found = await add(ports, text=text, author="ana", notes="new", models=["gpt-4o"])
    assert (status, found["is_new"], found["variables"]) == (201, True, ["token"])
    assert (await add(ports, text=text, author="ana", notes="new", models=["gpt-4o"]))[0] == 200
    status, shown, _ = await ports.admin("/v1/prompts/say/1.0.0")
    assert status == 200
    assert (shown["text"], shown["author"], shown["notes"], shown["models"]) == (text, "ana", "new", ["gpt-4o"])
    assert (await add(ports, text="Other."))[0] == 409
    _, page, _ = await ports.admin("/v1/prompts")
    assert page == {
        "prompts": [{"name": "say", "source": "store", "versions": 1, "newest": "1.0.0", "labels": {}}],
        "next_after": "", "problems": [],
    }  # fmt: skip


async def test_labels_are_moved_and_moved_back(ports: Ports) -> None:
    for version in ("1.0.0", "1.1.0"):
        await add(ports, version)
    assert (await move(ports, "promote", version="1.0.0", expected={}))[1]["labels"] == {"production": {"1.0.0": 1}}
    status, found = await move(ports, "promote", version="1.1.0", expected={"9.0.0": 1})
    assert (status, found["detail"]) == (409, "The label production of say stands at 1.0.0, not at 9.0.0.")
    status, found = await move(ports, "promote", version="1.1.0", share=10)
    assert (status, found["labels"]) == (200, {"production": {"1.0.0": 90, "1.1.0": 10}})
    status, found = await move(ports, "rollback")
    assert (status, found["labels"]) == (200, {"production": {"1.0.0": 1}})
    assert [one["is_rollback"] for one in found["history"]] == [True, False, False]
    _, shown, _ = await ports.admin("/v1/prompts/say")
    assert shown == found
    assert [one["version"] for one in shown["versions"]] == ["1.1.0", "1.0.0"]


async def test_what_a_reference_comes_to(ports: Ports) -> None:
    await add(ports)
    await move(ports, "promote", version="1.0.0")
    for reference, variables in (("prompt://say", {"topic": "it"}), ("prompt://say@^1?topic=it", {})):
        body = {"reference": reference, "variables": variables, "workflow": "wf"}
        status, found, _ = await ports.admin("/v1/prompts/render", "POST", json=body)
        assert (status, found["version"], found["text"]) == (200, "1.0.0", "Say it.")
    assert await ports.daemon.store.keys("prompt-pin") == [], "looking keeps nothing"
    for reference, variables, status in (
        ("say", {}, 400), ("prompt://Say", {}, 400), ("prompt://say", {}, 422), ("prompt://say", {"x": "y"}, 422),
        ("prompt://none", {}, 404), ("prompt://say@^2", {}, 404),
    ):  # fmt: skip
        body = {"reference": reference, "variables": variables}
        assert (await ports.admin("/v1/prompts/render", "POST", json=body))[0] == status


async def test_names_come_page_by_page(ports: Ports, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        await add(ports, name=name)
    _, page, _ = await ports.admin("/v1/prompts?limit=2")
    assert ([one["name"] for one in page["prompts"]], page["next_after"]) == (["a", "b"], "b")
    _, page, _ = await ports.admin("/v1/prompts?limit=2&after=b")
    assert ([one["name"] for one in page["prompts"]], page["next_after"]) == (["c"], "")


async def test_a_folders_prompts_are_shown_and_cannot_be_changed_here(ports: Ports, tmp_path: Path) -> None:
    await add(ports)
    (tmp_path / "say").mkdir()
    (tmp_path / "say" / "2.0.0.md").write_text("Of the folder.")
    (tmp_path / "say" / "2.1.0.md").write_text("{{")
    ports.daemon.terms = PromptTerms(str(tmp_path))
    _, page, _ = await ports.admin("/v1/prompts")
    assert [(one["source"], one["newest"]) for one in page["prompts"]] == [("folder", "2.0.0")]
    assert "2.1.0.md:1:1" in page["problems"][0]
    assert (await ports.admin("/v1/prompts/say/1.0.0"))[0] == 404
    assert (await ports.admin("/v1/prompts/say/2.0.0"))[1]["text"] == "Of the folder."
    assert (await add(ports, "3.0.0"))[0] == 409
    assert (await move(ports, "promote", version="2.0.0"))[0] == 409
    assert (await move(ports, "rollback"))[0] == 409


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"name": "A b"}, 400, "name is of"),
        ({"name": ""}, 400, "name"),
        ({"name": "a" * 64}, 400, "name"),
        ({"name": "../../x"}, 400, "name is of"),
        ({"version": "1"}, 422, "no version"),
        ({"version": "latest"}, 422, "no version"),
        ({"text": ""}, 422, "has a text"),
        ({"text": "a\n {{x y}}"}, 422, "line 2, column 2"),
        ({"text": "x" * 65_537}, 422, "65537 bytes"),
        ({"text": "x" * 600_000}, 413, "at most"),
        ({"text": 7}, 400, "text"),
        ({"more": 1}, 400, "more"),
        ({"models": [""]}, 422, "models"),
        ({"author": "a" * 129}, 400, "author"),
    ],
)
async def test_what_cannot_be_added(ports: Ports, body: dict[str, Any], status: int, word: str) -> None:
    got, found = await add(ports, **body)
    assert (got, word in found["detail"]) == (status, True), found
    assert (await ports.admin("/v1/prompts"))[1]["prompts"] == []


@pytest.mark.parametrize(
    ("what", "body", "status"),
    [
        ("promote", {"version": "9.9.9"}, 404),
        ("promote", {"version": "1"}, 400),
        ("promote", {"version": "1.0.0", "label": "v1"}, 400),
        ("promote", {"version": "1.0.0", "label": "Prod uction"}, 400),
        ("promote", {"version": "1.0.0", "share": 0}, 400),
        ("promote", {"version": "1.0.0", "share": 101}, 400),
        ("promote", {"version": "1.0.0", "share": 50}, 422),
        ("promote", {"version": "1.0.0", "expected": {"1.0.0": "x"}}, 400),
        ("promote", {}, 400),
        ("rollback", {"label": "staging"}, 409),
        ("rollback", {"version": "1.0.0"}, 400),
    ],
)
async def test_labels_that_cannot_be_moved(ports: Ports, what: str, body: dict[str, Any], status: int) -> None:
    await add(ports)
    assert (await move(ports, what, **body))[0] == status
    assert (await ports.admin("/v1/prompts/say"))[1]["labels"] == {}


async def test_what_else_is_asked(ports: Ports) -> None:
    await add(ports)
    for path, status in (
        ("/v1/prompts/none", 404), ("/v1/prompts/A%20b", 400), ("/v1/prompts/say/latest", 400),
        ("/v1/prompts/say/9.9.9", 404), ("/v1/prompts?limit=0", 400), ("/v1/prompts?x=1", 400),
        ("/v1/prompts/say?x=1", 400),
    ):  # fmt: skip
        assert (await ports.admin(path))[0] == status, path
    assert (await ports.admin("/v1/prompts/none/promote", "POST", json={"label": "a", "version": "1.0.0"}))[0] == 404
    for data in (b"", b"[", b"{}", b"null", b"\xff", b"[" * 5000):
        assert (await ports.admin("/v1/prompts", "POST", data=data))[0] == 400
    for method, path in (("GET", "/v1/prompts"), ("POST", "/v1/prompts"), ("POST", "/v1/prompts/say/promote")):
        assert (await ports.admin(path, method, token="wrong"))[0] == 401


async def test_a_damaged_record_hides_no_other(ports: Ports) -> None:
    await add(ports)
    await add(ports, name="other")
    await ports.daemon.store.write([Change(HEADS, "acme/say", b"{")])
    status, found, _ = await ports.admin("/v1/prompts")
    assert (status, [one["name"] for one in found["prompts"]]) == (200, ["other", "say"])
    assert "acme/say in the store is damaged" in found["problems"][0]
    ports.daemon.registry._heads.clear()
    assert (await ports.admin("/v1/prompts/say"))[0] == 410
