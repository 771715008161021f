"""Running a command as if meshd were not there: its streams untouched, signals passed on, its exit code kept."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PASSED_ON = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_SI_KERNEL = 0x80  # asm-generic/siginfo.h: sent by the kernel, so by a terminal, to the whole foreground group


def end_on_sigterm() -> None:
    """Make SIGTERM and SIGHUP unwind this process, with its tidying up, until the command runs."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _unwind)


def _unwind(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def run(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a command to its end and return its exit code, 128 + n where signal n ended it.

    A signal from a terminal has reached the command already, since it is in our group; one that was sent to us
    alone is passed on. Raises OSError where the command cannot be started. PASSED_ON stay blocked afterwards, so
    that nothing interrupts tidying up.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, (*PASSED_ON, signal.SIGCHLD))
    # Python ignores these two, and what is ignored stays so across exec.
    defaults = (signal.SIGPIPE, signal.SIGXFSZ)
    pid = os.posix_spawnp(command[0], list(command), dict(environ), setsigmask=(), setsigdef=defaults)
    # A terminal that is closed tells the leader of its session, and nobody else.
    is_leader = os.getsid(0) == os.getpid()
    while True:
        received = signal.sigwaitinfo((*PASSED_ON, signal.SIGCHLD))
        if received.si_signo != signal.SIGCHLD:
            if received.si_code != _SI_KERNEL or (received.si_signo == signal.SIGHUP and is_leader):
                os.kill(pid, received.si_signo)
            continue
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
