"""`meshd approvals` against an admin port that is played."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from meshd.cli import approvals


def approval(number: int, state: str) -> dict[str, Any]:
    return {
        "id": f"0000-0000-{number:04d}", "state": state, "decisions": [], "summary": "asks", "expires_s": 2e9,
        "asked_s": float(number),
    }  # fmt: skip


class Admin:
    """Answers as the admin port does: the newest first, and no more than is asked for."""

    def __init__(self, found: list[dict[str, Any]]) -> None:
        self.found = found

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        some = [one for one in self.found if query.get("state") in (None, one["state"])]
        return {"approvals": sorted(some, key=lambda one: -one["asked_s"])[: query["limit"]]}


def test_what_waits_is_not_buried_by_what_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [approval(0, "pending"), *(approval(number, "used") for number in range(1, approvals.LIMIT + 50))]

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(approvals, "_client", lambda home: Admin(found))
    monkeypatch.setattr(time, "sleep", interrupted)
    result = CliRunner().invoke(approvals.command, ["--follow"])
    assert result.exit_code == 130
    assert [line.split()[0] for line in result.output.splitlines()] == ["0000-0000-0000"]


def test_a_key_file_without_a_key_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(approvals, "_client", lambda home: Admin([]))
    (tmp_path / "ana.key").write_text("\n")
    arguments = ["deny", "k7x2-m9qr-tzab", "--reason", "no", "--key-file", str(tmp_path / "ana.key")]
    result = CliRunner().invoke(approvals.command, arguments)
    assert result.exit_code == 1
    assert f"{tmp_path / 'ana.key'} is empty: the key of `meshd approvals key NAME`" in result.output
