"""The replay of requests: it runs the real ledger in virtual time, and reads traces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import pytest

from bench import replay

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", replay.SHAPES)
@pytest.mark.parametrize("sidecars", [1, 4])
def test_a_drawn_trace_is_played_to_its_end(name: str, sidecars: int) -> None:
    trace = replay.drawn(replay.SHAPES[name], 300, seed=1)
    budget = sum(one.given + one.made for one in trace) // 2
    got = replay.run_in_virtual_time(replay.replay(trace, budget, sidecars, 1000, is_exact=False))
    assert 0.9 * budget < got.spent <= budget
    assert got.bound > got.cost == got.spent
    assert 0 < got.admitted < len(trace)


def test_a_budget_that_is_too_small_for_any_call_refuses_all() -> None:
    trace = [replay.Request(float(at), 100, 10) for at in range(5)]
    got = replay.run_in_virtual_time(replay.replay(trace, 50, 1, None, is_exact=False))
    assert (got.admitted, got.spent) == (0, 0)


def test_a_trace_is_read_and_nonsense_in_it_named_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n")
    assert [(one.given, one.made) for one in replay.read(file, 10)] == [(374, 44)]
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,374,many\n")
    with pytest.raises(click.ClickException, match="line 2"):
        replay.read(file, 10)
    file.write_text("a,b\n1,2\n")
    with pytest.raises(click.ClickException, match="line 2"):
        replay.read(file, 10)
