"""Run by a Python of its own, just before a server: sets what it may use, and sees to it that it ends with meshd.

Stands alone (`python -I launch.py JSON`): it must not import meshd, nor be swayed by the server's environment.

It stays as a guard: it gathers whatever the server's processes leave behind (PR_SET_CHILD_SUBREAPER), and kills all of
them when the server ends, when it is told to (SIGTERM), or when meshd has gone (PR_SET_PDEATHSIG), be it by SIGKILL. A
sandbox ends with its parent by itself, but not while it is being made: the process within it then waits for ever.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
NOT_FOUND = 127
"""Exit status of a program that cannot be run, as shells have it."""
_ending: list = []  # type: ignore[type-arg]


def main() -> int:
    asked = json.loads(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != asked["parent"]:
        return 1  # it has gone already, and would tell nobody
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    guard = os.getpid()
    # Before there is anything to kill: a signal that comes meanwhile must find it.
    signal.signal(signal.SIGTERM, _told)
    server = os.fork()
    if server == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != guard:
            os._exit(1)
        os._exit(_become(asked))
    if _ending:
        _kill_all()  # it was told when there was nothing to kill yet
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        # Else the server's end would not show at the other ends of its pipes.
        os.dup2(nothing, number)
    return _wait(server)


def _become(asked: dict) -> int:  # type: ignore[type-arg]
    try:
        for name, value in asked["limits"].items():
            which = getattr(resource, name)
            hard = resource.getrlimit(which)[1]
            most = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(which, (most, most))
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execvpe(asked["argv"][0], asked["argv"], os.environ)  # noqa: S606 - no shell is what is wanted
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{asked['argv'][0]} cannot be run: {error}\n")
        sys.stderr.flush()
        return NOT_FOUND


def _wait(server: int) -> int:
    """Wait for the server, then for all that it leaves behind; return its exit status as shells have it."""
    code = 1
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return code if code >= 0 else 128 - code
        if pid == server:
            code = os.waitstatus_to_exitcode(status)
            _ending.append(True)
        if _ending:
            # Whatever was forked while the others were killed has come to us by now.
            _kill_all()


def _kill_all() -> None:
    found = _children(os.getpid())
    for pid in found:
        found += _children(pid)
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _told(number: int, frame: object) -> None:
    _ending.append(True)
    _kill_all()


def _children(pid: int) -> list:  # type: ignore[type-arg]
    found = []
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (thread / "children").read_text().split()]
    except (OSError, ValueError):
        return found
    return found


if __name__ == "__main__":
    sys.exit(main())
