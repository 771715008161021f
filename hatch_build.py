"""Compiles the way of a call, where that is asked for.

mypyc makes C of the modules below by the types that `mypy --strict` checks. It is the same source: uncompiled, the same
modules run as they are. docs/benchmarks.md says what it brings.

    MESHD_COMPILE=1 pip install .    an installation that is compiled; needs a C compiler and Python's headers
    python hatch_build.py DIR        puts a compiled copy of the package into DIR

MESHD_OPT=0 compiles in a third of the time what then runs slower: for tests of what compiled code does, not how fast.
MESHD_PGO=1 compiles twice (gcc): the first counts what runs under the benchmark's calls, the second is made by that. It
needs an environment that meshd runs in, as `make venv` makes it, and not one of pip's own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # to run it by hand needs no hatchling
    BuildHookInterface = object

ROOT = Path(__file__).resolve().parent
GROUP = "meshd"
"""Name of the one library that holds all of the code; the modules beside it are doors to it."""

COMPILED = (
    "call.py",
    "outcome.py",
    "refusal.py",
    "span.py",
    "chain.py",
    "claims/*.py",
    "filters/*.py",
    "ledger/*.py",
    "prices/*.py",
    "tokens/encodings.py",
    "turns/*.py",
    "wire/*.py",
    "dialects/*.py",
    "proxy/*.py",
    # It makes pools and calls of its own sorts, and what is compiled is inherited from by what is.
    "gateway/*.py",
    "policy/addressing.py",
    "policy/compiled.py",
    "limits.py",
    "policy/matching.py",
    "upstream.py",
    "telemetry/telemetry.py",
    "telemetry/budgets.py",
    "telemetry/names.py",
    "telemetry/provenance.py",
    "telemetry/series.py",
    "telemetry/span_attributes.py",
    "telemetry/span_bytes.py",
    "telemetry/spans.py",
    "telemetry/tally.py",
    "telemetry/endpoint.py",
    "trace/heads.py",
    "trace/kinds.py",
    "trace/knowledge.py",
    "trace/log.py",
    "trace/recorder.py",
    "trace/segment.py",
    "trace/writer.py",
)
LEFT = (
    # pydantic and msgspec read the annotations of these classes while the program runs.
    "filters/*_settings.py",
    "filters/contract.py",
    "filters/units.py",
    "dialects/*_shapes.py",
    "dialects/contract.py",
    "ledger/account.py",
    "claims/record.py",
    # Nothing here is on the way of a call.
    "ledger/charging.py",
    "ledger/desk.py",
    "ledger/directory.py",
    "ledger/orders.py",
    "ledger/recovery.py",
    "ledger/remembered.py",
    "ledger/upkeep.py",
    "ledger/witness.py",
    "prices/table.py",
    "proxy/heuristics.py",
    "turns/record.py",
    "turns/sharing.py",
    "turns/supervision.py",
    "proxy/listener.py",
    "*/__init__.py",
)

_MYPY = """\
[mypy]
explicit_package_bases = True
ignore_missing_imports = True
# `make lint` looks at the modules that are not compiled: where a library's stubs are missing, as where pip builds, they
# may seem wrong.
follow_imports = silent
"""
_SETUP = """\
import sys
from pathlib import Path
from mypyc.build import mypycify
from setuptools import setup
root, group, level, profile, *files = sys.argv[1:]
modules = mypycify(["--config-file", "mypy.ini", *files], opt_level=level, debug_level="0", group_name=group)
sys.path.insert(0, root)
from hatch_build import place, train
place(Path("build", f"__native_internal_{group}.h"))
plain = [(module.extra_compile_args, module.extra_link_args) for module in modules]
def build(*flags):
    for module, (compiled, linked) in zip(modules, plain):
        module.extra_compile_args, module.extra_link_args = [*compiled, *flags], [*linked, *flags]
    command = ["--quiet", "build_ext", "--inplace", "--force"]
    setup(name="compiled", packages=[], ext_modules=modules, script_args=command)
if profile == "0":
    build()
else:
    build("-fprofile-generate")
    train(Path.cwd())
    build("-fprofile-use", "-fprofile-correction", "-Wno-missing-profile")
"""

_ONCE = re.compile(
    r"^extern (?:char CPyDef_\w+_____top_level__\(void\)|int CPyExec_\w+\(PyObject \*module\)"
    r"|PyObject \*CPyInit(?:Only)?_\w+\(void\))(?=;$)",
    re.MULTILINE,
)
_PLACES = """\
#if defined(__GNUC__) && !defined(__clang__) && defined(__ELF__)
#define MESHD_ONCE __attribute__((cold, section(".text.startup")))
__attribute__((cold)) void CPy_AddTraceback(const char *, const char *, int, PyObject *);
__attribute__((cold)) void CPy_TypeError(const char *, PyObject *);
__attribute__((cold)) void CPy_TypeErrorTraceback(
    const char *, const char *, int, PyObject *, const char *, PyObject *);
__attribute__((cold)) void CPy_AttributeError(const char *, const char *, const char *, const char *, int, PyObject *);
__attribute__((cold)) void PyErr_SetString(PyObject *, const char *);
#else
#define MESHD_ONCE
#endif
"""


class CompileError(Exception):
    """The modules could not be compiled; the message says why."""


def modules() -> list[str]:
    """Return the modules to compile, as paths from the root."""
    package = ROOT / "meshd"
    found = {path for pattern in COMPILED for path in package.glob(pattern)}
    return sorted(str(path.relative_to(ROOT)) for path in found - {p for left in LEFT for p in package.glob(left)})


def has_compiler() -> bool:
    """Say whether C can be compiled for this Python."""
    command = os.environ.get("CC") or (sysconfig.get_config_var("CC") or "cc").split()[0]
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    return shutil.which(command) is not None and header.is_file()


def is_gcc() -> bool:
    """Say whether the compiler is gcc: what it counts and how it is told differ from one to the other."""
    command = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    asked = [*command.split(), "-dM", "-E", "-"]
    defined = subprocess.run(asked, input="", capture_output=True, text=True, check=False).stdout
    return " __GNUC__ " in defined and " __clang__ " not in defined


def train(folder: Path) -> None:
    """Run the copy in `folder`, which counts what runs, under calls of every sort. Raises CompileError."""
    paths = [str(folder), str(ROOT), str(ROOT / "sdk")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "bench.training"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise CompileError(f"what was compiled to count could not be run:\n{(done.stdout + done.stderr)[-3000:]}")
    if not list(folder.rglob(f"*native_{GROUP}.gcda")):
        raise CompileError("what was compiled to count has counted nothing")


def place(header: Path) -> None:
    """Say in mypyc's header which code runs once, and which only where something has failed.

    The compiler then puts each of them in a place of its own. Without that they lie between all that runs for every
    call: the system maps code in blocks of 64 kB, so what imported the modules and what makes tracebacks was resident
    as well, and stood in the processor's caches beside what is used. Raises CompileError where there is none of it.
    """
    text, number = _ONCE.subn(r"\g<0> MESHD_ONCE", header.read_text())
    if not number:
        raise CompileError(f"{header} names no module's code: mypyc has changed what it writes")
    first = text.index("extern ")
    header.write_text(text[:first] + _PLACES + text[first:])


def compile_into(folder: Path) -> list[Path]:
    """Copy the package into `folder` and compile it there; return what was made. Raises CompileError."""
    level = os.environ.get("MESHD_OPT") or "3"
    if level not in ("0", "1", "2", "3"):
        raise CompileError(f"MESHD_OPT is {level!r}: how far to optimise is 0, 1, 2 or 3")
    profile = os.environ.get("MESHD_PGO") or "0"
    if profile not in ("0", "1"):
        raise CompileError(f"MESHD_PGO is {profile!r}: 1 compiles by what is counted, 0 does not")
    if profile == "1" and not is_gcc():
        raise CompileError("MESHD_PGO=1 needs gcc, and the C compiler is another: set CC=gcc, or MESHD_PGO=0")
    folder.mkdir(parents=True, exist_ok=True)
    for source, name in ((ROOT / "meshd", "meshd"), (ROOT / "sdk" / "meshd_sdk", "meshd_sdk")):
        shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copytree(ROOT / "policies", folder / "meshd" / "policies")
    (folder / "mypy.ini").write_text(_MYPY)
    command = [sys.executable, "-c", _SETUP, str(ROOT), GROUP, level, profile, *modules()]
    # The caches of a type checker that looked at another tree must not be read here. Nobody replaces a function of the
    # one library from outside: calls within it need no table, and small ones vanish.
    flags = f"{os.environ.get('CFLAGS', '')} -fno-semantic-interposition".strip()
    environment = {**os.environ, "MYPY_CACHE_DIR": os.devnull, "CFLAGS": flags}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    shutil.rmtree(folder / "build", ignore_errors=True)
    made = sorted(folder.rglob("*.so"))
    if done.returncode or not made:
        raise CompileError((done.stdout + done.stderr).strip()[-4000:])
    return made


class CustomBuildHook(BuildHookInterface):  # type: ignore[misc,valid-type]
    """Adds the compiled modules to a wheel, which then is one for this Python and machine."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """See hatchling. An editable installation stays as it is: what is edited must be what runs."""
        if version == "editable" or os.environ.get("MESHD_COMPILE", "") in ("", "0"):
            return
        if not has_compiler():
            raise CompileError("MESHD_COMPILE is set, and there is no C compiler or no headers of this Python")
        self.folder = Path(tempfile.mkdtemp(prefix="meshd-compile-"))
        try:
            made = compile_into(self.folder)
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["force_include"].update({str(path): str(path.relative_to(self.folder)) for path in made})

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """See hatchling."""
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder, ignore_errors=True)


def main() -> int:
    """Put a compiled copy into the folder that is named."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        return 2
    if not has_compiler():
        print("there is no C compiler, or not the headers of this Python: meshd stays Python", file=sys.stderr)
        return 1
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    minutes = 15 if os.environ.get("MESHD_PGO") == "1" else 6
    print(f"compiling {len(modules())} modules, about {minutes} minutes ...", file=sys.stderr)
    try:
        compile_into(folder)
    except CompileError as error:
        print(error, file=sys.stderr)
        return 1
    shutil.rmtree(folder / "meshd_sdk")
    return 0


if __name__ == "__main__":
    sys.exit(main())
