"""What is compiled, and what must not be: `make test-compiled` runs the rest of the tests on it."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.repository.tree import ROOT


def _hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


HOOK = _hook()


@pytest.mark.parametrize("pattern", [*HOOK.COMPILED, *HOOK.LEFT])
def test_every_pattern_stands_for_something(pattern: str) -> None:
    assert list((ROOT / "meshd").glob(pattern))


@pytest.mark.parametrize("path", HOOK.modules())
def test_no_class_whose_annotations_are_read_at_run_time_is_compiled(path: str) -> None:
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
            assert bases.isdisjoint({"Struct", "BaseModel", "Settings", "Section"}), f"{path}: {node.name}"


def test_the_way_of_a_call_is_compiled_whole() -> None:
    named = set(HOOK.modules())
    for room in ("filters", "proxy", "wire"):
        left = {str(path.relative_to(ROOT)) for path in (ROOT / "meshd" / room).glob("*.py")} - named
        assert all(
            path.endswith(("__init__.py", "_settings.py", "contract.py", "units.py", "listener.py", "heuristics.py"))
            for path in left
        ), left


@pytest.mark.parametrize("level", ["4", "fast", "-O3", "3 "])
def test_how_far_to_optimise_is_one_of_four_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    monkeypatch.setenv("MESHD_OPT", level)
    with pytest.raises(HOOK.CompileError, match="is 0, 1, 2 or 3"):
        HOOK.compile_into(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_an_installation_is_compiled_only_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_folder: object) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr(HOOK, "compile_into", refuse)
    hook = HOOK.CustomBuildHook(str(ROOT), {}, None, None, "", "wheel")
    for version, wanted in (("standard", "0"), ("standard", ""), ("editable", "1")):
        monkeypatch.setenv("MESHD_COMPILE", wanted)
        data: dict[str, object] = {}
        hook.initialize(version, data)
        assert data == {}
    monkeypatch.setenv("MESHD_COMPILE", "1")
    monkeypatch.setattr(HOOK, "has_compiler", lambda: False)
    with pytest.raises(HOOK.CompileError, match="no C compiler"):
        hook.initialize("standard", {})


HEADER = """\
#include <CPy.h>

extern PyObject *CPyStatics[9];
extern int CPyExec_meshd___call(PyObject *module);
extern PyObject *CPyInit_meshd___call(void);
extern PyObject *CPyInitOnly_meshd___call(void);
extern char CPyDef_call_____top_level__(void);
extern char CPyDef_call___Call_____init__(PyObject *cpy_r_self);
#endif
"""


def test_what_runs_once_and_what_has_failed_have_places_of_their_own(tmp_path: Path) -> None:
    header = tmp_path / "header.h"
    header.write_text(HEADER)
    HOOK.place(header)
    lines = header.read_text().splitlines()
    placed = [line for line in lines if line.endswith(" MESHD_ONCE;")]
    assert [line.removesuffix(" MESHD_ONCE;") + ";" for line in placed] == HEADER.splitlines()[3:7]
    assert lines[0] == "#include <CPy.h>", "what it declares anew is declared before"
    assert lines.index("__attribute__((cold)) void PyErr_SetString(PyObject *, const char *);") < lines.index(placed[0])
    assert "extern char CPyDef_call___Call_____init__(PyObject *cpy_r_self);" in lines


def test_code_that_names_no_module_is_not_passed_over(tmp_path: Path) -> None:
    header = tmp_path / "header.h"
    header.write_text("extern char something_else(void);\n")
    with pytest.raises(HOOK.CompileError, match="mypyc has changed"):
        HOOK.place(header)


@pytest.mark.parametrize(
    ("setting", "compiler", "why"), [("yes", "gcc", "MESHD_PGO is 'yes': 1 compiles by"), ("1", "true", "needs gcc")]
)
def test_a_compiler_that_cannot_count_is_not_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, compiler: str, why: str
) -> None:
    monkeypatch.setenv("MESHD_PGO", setting)
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(HOOK.CompileError, match=why):
        HOOK.compile_into(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    ("load", "why"),
    [
        ("raise SystemExit('nobody answered')", "could not be run:\nnobody answered"),
        ("", "has counted nothing"),
        ("from pathlib import Path; Path('x_native_meshd.gcda').touch()", ""),
    ],
)
def test_what_has_counted_nothing_is_not_compiled_by(tmp_path: Path, load: str, why: str) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "training.py").write_text(load)
    (tmp_path / "bench" / "__init__.py").touch()
    if not why:
        HOOK.train(tmp_path)
        return
    with pytest.raises(HOOK.CompileError, match=why):
        HOOK.train(tmp_path)


def test_what_could_not_be_compiled_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def fails(folder: Path) -> None:
        (folder / "begun").touch()
        folders.append(folder)
        raise HOOK.CompileError("it does not compile")

    monkeypatch.setattr(HOOK, "compile_into", fails)
    monkeypatch.setattr(HOOK, "has_compiler", lambda: True)
    monkeypatch.setenv("MESHD_COMPILE", "1")
    with pytest.raises(HOOK.CompileError, match="does not compile"):
        HOOK.CustomBuildHook(str(ROOT), {}, None, None, "", "wheel").initialize("standard", {})
    assert not folders[0].exists()
