"""The demo as a whole, on real input: it shows what it claims, and leaves nothing behind however it ends."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.demo.program import left_running, read_until, start


def test_every_claim_holds_and_nothing_is_left(tmp_path: Path) -> None:
    process = start(tmp_path)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert "FAIL" not in out
    assert "\x1b" not in out
    assert re.search(r"^34 claims held, 0 did not", out, re.MULTILINE)
    for line in (
        "received hop 3 of workflow report-",
        "stopped after 6 turns, 3 rounds",
        "stopped after 3 rounds",
        "then 403 hop_limit",
        "with 402 budget_exhausted",
        "x-meshd-served-by: spare/stand-in-spare",
        "the shop's books: 1 order",
        "pending    clerk asks for DELETE /customers/jones at the tool shop",
        "the agent is told 403 approval_denied",
        "lists calendar__free_days, calendar__plan_meeting, notes__read_note, notes__write_note",
        "/run went to harbour, which answered 200",
        "added latency",
    ):
        assert line in out
    assert left_running(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_ends_everything(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path)
    read_until(process, "meshd is at")
    assert len(left_running(tmp_path)) > 5
    process.send_signal(number)
    process.communicate()
    assert process.returncode == 128 + number
    assert left_running(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_kept_it_stays_up_says_where_and_ends_well_with_ctrl_c(tmp_path: Path) -> None:
    process = start(tmp_path, "--keep")
    out = read_until(process, "try: curl")
    address = re.search(r"http://127\.0\.0\.1:\d+/metrics", out)
    assert address is not None
    import urllib.request

    with urllib.request.urlopen(address.group()) as reply:
        assert b"meshd_calls_total" in reply.read()
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 0
    assert left_running(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
