"""What the process lets go of, and that it can do without it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from meshd.heap import clean_code

SMAPS = """\
7f0000000000-7f0000010000 {mode} 00001000 fe:00 {inode} {path}
Size:                 64 kB
Rss:                  64 kB
Anonymous:      {anonymous:>8} kB
Swap:           {swapped:>8} kB
VmFlags: rd ex mr mw me
"""
WHOLE = {"mode": "r-xp", "inode": 81234, "path": "/usr/lib/libx.so", "anonymous": 0, "swapped": 0}


@pytest.mark.parametrize(
    ("change", "is_clean"),
    [
        ({}, True),
        ({"mode": "r--p"}, True),
        ({"mode": "rw-p"}, False),
        ({"mode": "rwxp"}, False),
        ({"mode": "r-xs"}, False),
        ({"mode": "---p"}, False),
        ({"anonymous": 4}, False),  # a linker's, or a debugger's
        ({"swapped": 4}, False),  # the same, written out since
        ({"anonymous": 4, "swapped": 4}, False),
        ({"inode": 0, "path": ""}, False),
        ({"inode": 0, "path": "[vdso]"}, False),
        ({"path": "/tmp/with - and 1-2 r-xp.so"}, True),
    ],
)
def test_only_what_the_file_holds_is_let_go(change: dict[str, object], is_clean: bool) -> None:
    told = SMAPS.format(**(WHOLE | change)) + SMAPS.format(**(WHOLE | {"mode": "rw-p", "anonymous": 12}))
    assert list(clean_code(told.splitlines(keepends=True))) == ([(0x7F0000000000, 0x10000)] if is_clean else [])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what is mapped is told by Linux alone")
def test_what_was_let_go_comes_back_where_it_is_used() -> None:
    program = """
import _decimal, hashlib, json, re, ssl
from meshd.heap import give_back_code

def resident():
    code = r" r-xp [^\\n]*/_decimal[^\\n]*\\n(?:[A-Z][^\\n]*\\n)*?Rss: +(\\d+)"
    return int(re.search(code, open("/proc/self/smaps").read())[1])

third = str(_decimal.Decimal(1) / 3)
before = resident()
give_back_code()
between = resident()
again = str(_decimal.Decimal(1) / 3)
print(before, between, resident(), third == again)
print(hashlib.sha256(b"").hexdigest()[:4], bool(ssl.create_default_context()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, between, after, *rest = done.stdout.split()
    assert rest == ["True", "e3b0", "True"]
    assert int(before) > 0
    assert int(between) == 0
    assert int(after) > 0
