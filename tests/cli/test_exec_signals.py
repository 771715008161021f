"""`meshd exec` is not there as far as the command can tell: streams, signals, exit codes."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from typing import IO, cast

import pytest

_RUN = "import sys; from meshd.cli.exec_signals import run; sys.exit(run(sys.argv[1:], __import__('os').environ))"
_ENVIRON = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def start(*command: str, **options: object) -> subprocess.Popen[bytes]:
    """Start a process that runs `command` as `meshd exec` does."""
    return subprocess.Popen([sys.executable, "-c", _RUN, *command], env=_ENVIRON, **options)  # type: ignore[call-overload, no-any-return]


def finish(*command: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    it = start(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = it.communicate(stdin)
    return it.returncode, out, err


def test_streams_and_exit_code_are_the_commands_own() -> None:
    code = "cat; echo complaint >&2; exit 7"
    assert finish("sh", "-c", code, stdin=b"\x00binary\n") == (7, b"\x00binary\n", b"complaint\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGPIPE])
def test_a_signal_that_ends_the_command_is_its_exit_code(number: signal.Signals) -> None:
    assert finish("sh", "-c", f"kill -{number.value} $$")[0] == 128 + number


def test_the_command_begins_with_the_signals_as_a_shell_would_give_them() -> None:
    program = (
        # Of the ignored ones without 32 and 33, which are the C library's own.
        "import signal; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())), "
        "int(open('/proc/self/status').read().split('SigIgn:')[1].split()[0], 16) & 0x7FFFFFFF)"
    )
    shell = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert shell.stdout
    assert finish(sys.executable, "-c", program)[1] == shell.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_sent_to_us_alone_is_passed_on_once(number: signal.Signals) -> None:
    program = (
        "import signal, sys, time\n"
        "seen = []\n"
        f"signal.signal({number.value}, lambda n, f: seen.append(n))\n"
        "print('ready', flush=True)\n"
        # Not pause(): a signal that comes just before it would be waited for in vain.
        "while not seen: time.sleep(0.01)\n"
        "print(seen, flush=True); sys.exit(9)"
    )
    it = start(sys.executable, "-c", program, stdout=subprocess.PIPE)
    stdout = cast("IO[bytes]", it.stdout)
    assert stdout.readline() == b"ready\n"
    it.send_signal(number)
    assert stdout.read() == f"[{number.value}]\n".encode()
    assert it.wait() == 9


def test_a_ctrl_c_at_the_terminal_reaches_the_command_once() -> None:
    program = (
        "import signal, time\n"
        "seen = []\n"
        "signal.signal(signal.SIGINT, lambda n, f: (seen.append('INT'), print('interrupted', flush=True)))\n"
        "signal.signal(signal.SIGUSR1, lambda n, f: seen.append('USR1'))\n"
        "print('ready', flush=True)\n"
        "while 'USR1' not in seen: time.sleep(0.01)\n"
        "print('saw', *seen, flush=True)\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-c", _RUN, sys.executable, "-c", program], _ENVIRON)
    with os.fdopen(terminal, "r+b", buffering=0) as screen:
        lines = iter(screen.readline, b"")
        assert next(lines).strip() == b"ready"
        screen.write(b"\x03")
        assert b"interrupted" in next(lines)
        # Signals are taken in order: an INT that was passed on as well would be seen before this one.
        os.kill(pid, signal.SIGUSR1)
        assert next(line for line in lines if b"saw" in line).split() == [b"saw", b"INT", b"USR1"]
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_terminal_that_is_closed_ends_the_command() -> None:
    program = "import signal, os, sys; os.write(int(sys.argv[1]), b'r'); signal.pause()"
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    pid, terminal = pty.fork()
    if pid == 0:
        command = [sys.executable, "-c", _RUN, sys.executable, "-c", program, str(writer)]
        os.execve(sys.executable, command, _ENVIRON)
    os.close(writer)
    assert os.read(reader, 1) == b"r"
    os.close(terminal)
    # The pipe's end is reached when the last who could write, the command, is gone.
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGHUP
