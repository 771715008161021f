"""Write meshd_sdk/sync.pyi, what the sync face is for type checkers, from the async classes. `--check` only compares.

python sdk/derive.py [--check]
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent / "meshd_sdk"
OUTPUT = PACKAGE / "sync.pyi"
CLASSES: tuple[tuple[str, str, set[str]], ...] = (
    ("agent.py", "Agent", {"run"}),
    ("ctx.py", "Ctx", {"record", "record_later"}),
    ("state.py", "SharedState", set()),
    ("state.py", "CheckedOut", set()),
)
HEAD = '''"""Written by sdk/derive.py from agent.py, ctx.py and state.py: not to be edited."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, ParamSpec, TypeVar, overload

from meshd_sdk import ctx as _async
from meshd_sdk.approvals import Approval
from meshd_sdk.current import Current
from meshd_sdk.link import Balance, Charged, Event, Published
from meshd_sdk.state_values import State
from meshd_sdk.step import Step

P = ParamSpec("P")
R = TypeVar("R")

__all__ = ["Agent", "CheckedOut", "Ctx", "SharedState", "State", "Step", "face"]

def face(ctx: _async.Ctx) -> Ctx: ...
'''
LINE_CHARS_MAX = 116
RENAMED = {"__aenter__": "__enter__", "__aexit__": "__exit__"}


def derive() -> str:
    """Return the text of the file."""
    parts = [HEAD]
    for file, name, without in CLASSES:
        tree = ast.parse((PACKAGE / file).read_text())
        found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
        parts.append(f"class {name}:")
        for node in found.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name in without:
                continue
            is_made = (name, node.name) == ("Agent", "__init__")
            if is_made or node.name in RENAMED or not node.name.startswith("_"):
                parts += method(node, is_overloaded=has_overloads(found, node.name))
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def has_overloads(of: ast.ClassDef, name: str) -> bool:
    """Say whether a method of a class is overloaded."""
    functions = [node for node in of.body if isinstance(node, ast.FunctionDef) and node.name == name]
    return len(functions) > 1


def method(node: ast.FunctionDef | ast.AsyncFunctionDef, *, is_overloaded: bool) -> list[str]:
    """Return the lines of one method as it is in the sync class; none for the body of an overloaded one."""
    decorators = [ast.unparse(one) for one in node.decorator_list]
    if is_overloaded and "overload" not in decorators:
        return []
    returns = ast.unparse(node.returns) if node.returns is not None else "None"
    if "asynccontextmanager" in decorators:
        returns = returns.replace("AsyncIterator", "AbstractContextManager")
        decorators.remove("asynccontextmanager")
    returns = returns.replace("AsyncIterator", "Iterator")
    name = RENAMED.get(node.name, node.name)
    lines = [f"    @{one}" for one in decorators]
    docstring = ast.get_docstring(node, clean=False)
    head = "\n".join(head_of(name, node.args, returns))
    if docstring is None or "overload" in decorators:
        return [*lines, f"{head} ..."]
    return [*lines, head, f'        """{docstring}"""']


def head_of(name: str, args: ast.arguments, returns: str) -> list[str]:
    """Return the lines of a method's head; defaults are dots."""
    args.defaults = [ast.Constant(...) for _ in args.defaults]
    args.kw_defaults = [None if one is None else ast.Constant(...) for one in args.kw_defaults]
    said = ast.unparse(args).replace("=...", " = ...")
    line = f"    def {name}({said}) -> {returns}:"
    if len(line) <= LINE_CHARS_MAX:
        return [line]
    # No type of a parameter has a comma in it, but within brackets.
    parts, depth = [""], 0
    for character in said:
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [f"    def {name}(", *(f"        {part.strip()}," for part in parts), f"    ) -> {returns}:"]


def main() -> int:
    """Write the file, or say whether it is fresh."""
    text = derive()
    if "--check" in sys.argv[1:]:
        return 0 if OUTPUT.read_text() == text else 1
    OUTPUT.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
