"""Reading collapsed stacks."""

from bench.profile import frames

RAW = """thread (0x1): MainThread;run (a.py);admit (b.py:7) 30
thread (0x1): MainThread;run (a.py) 10
thread (0x1): MainThread;run (a.py);run (a.py) 60
thread (0x2): writer;wait (c.py) 900
nonsense
"""


def test_only_the_main_thread_counts_and_recursion_counts_once() -> None:
    text = frames(RAW)
    assert " 70.0% 100.0%  run (a.py)" in text
    assert " 30.0%  30.0%  admit (b.py:7)" in text
    assert "c.py" not in text
    assert " 30.0%  b.py" in text


def test_nothing_gives_an_empty_table() -> None:
    assert "%" not in frames("")
