"""The load that a compiler counts by: every row is answered, and what was counted is written at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench import training
from bench.loads import LOAD_ROWS
from bench.processes import NotReadyError

if TYPE_CHECKING:
    from pathlib import Path

    from bench.peers.contract import Place, Running


def test_every_row_that_it_names_is_one() -> None:
    assert set(training.ROWS) <= {row.name for row in LOAD_ROWS}


def test_calls_of_every_wire_are_answered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(training, "ROWS", ("http", "grpc", "sse-0ms"))
    monkeypatch.setattr(training, "SECONDS", 1)
    assert training.main() == 0
    told = capsys.readouterr().err
    assert [line.split("] ")[1].partition(":")[0] for line in told.splitlines()] == ["http", "grpc", "sse-0ms"]
    assert told.count("answered, 0 not") == 3


def test_a_sidecar_that_does_not_start_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders: list[Path] = []

    def start(_: training.Meshd, place: Place) -> Running:
        folders.append(place.folder)
        raise NotReadyError("it was never ready")

    monkeypatch.setattr(training.Meshd, "start", start)
    assert training.main() == 1
    assert "it was never ready" in capsys.readouterr().err
    assert not folders[0].exists()
