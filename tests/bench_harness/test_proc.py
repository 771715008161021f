"""Reading the kernel's books."""

import os

import pytest

from bench import proc

# A command may hold blanks and brackets, and does so here.
STAT = "4321 (a (b) c) S 17 4321 4321 0 -1 4194560 100 0 0 0 250 50 3 4 20 0 3 0 1000 1000000 500 184467"


def test_stat_counts_from_the_last_bracket() -> None:
    assert proc.parse_stat(STAT) == proc.Stat(parent=17, cpu_ticks=300)


@pytest.mark.parametrize("text", ["", "1 (a", "1 (a) S 2", "nonsense"])
def test_stat_refuses_what_is_no_line_of_it(text: str) -> None:
    with pytest.raises(ValueError, match="not a line"):
        proc.parse_stat(text)


def test_schedstat() -> None:
    assert proc.parse_schedstat("123456789 42 7\n") == 123456789
    for nonsense in ("", "1 2", "a b c"):
        with pytest.raises(ValueError):
            proc.parse_schedstat(nonsense)


def test_idle_and_waiting_ticks_are_not_busy() -> None:
    text = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 10 1 5 100 20 2 3 4 0 0\ncpu1 0 0 0 50 0 0 0 0 0 0\nintr 5\n\nctxt 1\n"
    assert proc.parse_cpu_lines(text) == {0: (25, 145), 1: (0, 50)}


def test_the_tree_begins_with_the_process_itself() -> None:
    assert proc.tree(os.getpid())[0] == os.getpid()
    assert os.getpid() in proc.tree(os.getppid())


def test_cpu_of_this_process_only_grows() -> None:
    before = proc.cpu_ns([os.getpid()])
    assert sum(i * i for i in range(2_000_000)) > 0
    assert proc.cpu_ns([os.getpid()]) > before > 0
    assert proc.rss_bytes([os.getpid()]) > 1_000_000
    assert os.getpid() in proc.threads_cpu_ns(os.getpid())


def test_a_process_that_is_gone_costs_nothing() -> None:
    gone = 2**22 + 1  # above the kernel's largest process id
    assert proc.cpu_ns([gone]) == 0
    assert proc.rss_bytes([gone]) == 0
    assert proc.threads_cpu_ns(gone) == {}
