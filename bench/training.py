"""`python -m bench.training`: meshd under calls of every sort, for a compiler that counts what runs (hatch_build.py).

It is the benchmark's own stage and loads, each for a moment: nothing is measured, so nothing runs beside another proxy.
"""

from __future__ import annotations

import shutil
import signal
import sys

from bench.loads import LOAD_ROWS
from bench.options import Options
from bench.peers.meshd import Meshd
from bench.processes import NotReadyError, end_all_on_signals
from bench.stage import Stage

ROWS = ("http", "http-100kb", "http-tls", "h2", "grpc", "grpc-stream", "grpc-flood", "sse-0ms", "sse-5ms")
SECONDS = 2
END_S = 60
"""What was counted is written when the process ends."""


def main() -> int:
    """Return 0 where every load was answered and the process has ended well."""
    end_all_on_signals()
    stage = Stage(Options(rounds=1, seconds=SECONDS, rows=ROWS))
    try:
        running = Meshd().start(stage.place("meshd"))
        for row in LOAD_ROWS:
            if row.wire in running.addresses and stage.options.wants_row(row.name):
                request = row.request(running)
                row.probe(stage, running, request)
                seen = row.load(stage, request, SECONDS)
                stage.say(f"{row.name}: {seen.count} answered, {seen.errors} not")
                if seen.errors or not seen.count:
                    raise NotReadyError(f"{row.name} was not answered:\n{running.child.tail()}")
        running.child.process.send_signal(signal.SIGTERM)
        code = running.child.process.wait(END_S)
        if code:
            raise NotReadyError(f"meshd ended with {code}:\n{running.child.tail()}")
    except NotReadyError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        stage.close()
        shutil.rmtree(stage.folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
