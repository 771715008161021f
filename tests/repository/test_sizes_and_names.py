"""Rooms stay small enough to read at once, and are called after what lives in them."""

from __future__ import annotations

import ast

from tests.repository.tree import modules, name_of

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
NAMES_OF_NOTHING = {"utils", "util", "common", "helpers", "helper", "manager", "managers", "base", "core", "misc"}


def functions_longer_than(source: str, lines_max: int) -> list[tuple[int, str, int]]:
    """Return (line, name, lines) of every function in `source` that spans more than `lines_max` lines."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            lines = node.end_lineno - node.lineno + 1
            if lines > lines_max:
                found.append((node.lineno, node.name, lines))
    return found


def test_there_are_modules_to_judge() -> None:
    assert len(modules()) > 10


def test_no_file_is_too_long() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in modules()}
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES_MAX} == {}


def test_no_function_is_too_long() -> None:
    long = [
        f"{name_of(path)}:{line} {name} has {lines} lines"
        for path in modules()
        for line, name, lines in functions_longer_than(path.read_text(), FUNCTION_LINES_MAX)
    ]
    assert long == []


def test_the_measure_of_functions_counts_what_it_should() -> None:
    source = "class A:\n    async def f(self):\n        x = 1\n        return x\n\ndef g(): ...\n"
    assert functions_longer_than(source, 2) == [(2, "f", 3)]
    assert functions_longer_than(source, 3) == []


def test_no_module_is_called_after_nothing() -> None:
    named = {name_of(path): set(path.with_suffix("").parts[-2:]) & NAMES_OF_NOTHING for path in modules()}
    assert {name for name, bad in named.items() if bad} == set()
