"""HTTP/2 load by h2load: unary calls on connections of several streams each."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

from bench.load.request import Load, Request
from bench.processes import NotReadyError, run

if TYPE_CHECKING:
    from pathlib import Path

_REQUESTS = re.compile(
    r"requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout"
)
_CODES = re.compile(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx")
_FINISHED = re.compile(r"finished in ([\d.]+)(us|ms|s|m)\b")
_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


def is_installed() -> bool:
    """Say whether there is an h2load."""
    return shutil.which("h2load") is not None


def read(output: str) -> Load:
    """Read its summary. A call that was under way at the end is neither done nor failed. Raises NotReadyError."""
    requests, codes, finished = _REQUESTS.search(output), _CODES.search(output), _FINISHED.search(output)
    if not (requests and codes and finished):
        raise NotReadyError(f"h2load printed no summary: {output[-400:]}")
    good = int(codes[1])
    done, failed = int(requests[3]), int(requests[5])
    errors = failed + int(requests[7]) + sum(int(codes[i]) for i in (2, 3, 4))
    return Load(min(good, done), errors, float(finished[1]) * _UNITS_S[finished[2]], "h2load")


def load(request: Request, *, connections: int, streams: int, seconds: int, folder: Path, core: int) -> Load:
    """Run h2load for whole `seconds` on one thread."""
    body = folder / "unary"
    body.write_bytes(request.body)
    command = ["h2load", "-t1", f"-c{connections}", f"-m{streams}", f"-D{seconds}s", "-d", str(body)]
    command += ["-H", f":authority: {request.host}"]
    for name, value in request.headers.items():
        command += ["-H", f"{name}: {value}"]
    command.append(f"http://127.0.0.1:{request.port}{request.path}")
    return read(run(command, core=core, timeout_s=seconds + 60))
