"""HTTP/1.1 load by wrk: as many calls as come back, on a fixed number of connections."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from bench.load.request import Load, Request
from bench.processes import NotReadyError, run

if TYPE_CHECKING:
    from pathlib import Path

# `request` is left alone where every call is the same: wrk then sends one prepared buffer and runs no Lua per call.
_TURNS = """
local turns, at = {}, 0
init = function(args)
  for line in io.lines(%s) do turns[#turns + 1] = line end
  for i, turn in ipairs(turns) do
    wrk.headers[%s] = turn
    turns[i] = wrk.format()
  end
end
request = function()
  at = at %% #turns + 1
  return turns[at]
end
"""
_DONE = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\nBENCH {"count": %d, "wall_us": %d, "errors": %d}\\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.timeout + e.status))
end
"""


def is_installed() -> bool:
    """Say whether there is a wrk."""
    return shutil.which("wrk") is not None


def script(request: Request, folder: Path) -> Path:
    """Write the Lua script of a request into `folder`, its body and turns beside it, and return its path."""
    body, file = folder / "body", folder / "request.lua"
    body.write_bytes(request.body)
    text = f'wrk.method = "POST"\nwrk.body = io.open({_lua(str(body))}, "rb"):read("*a")\n'
    for name, value in ({"Host": request.host} | request.headers).items():  # its own name for it, or it sends two
        text += f"wrk.headers[{_lua(name)}] = {_lua(value)}\n"
    if request.turns:
        turns = folder / "turns"
        turns.write_text("\n".join(request.turns) + "\n")
        text += _TURNS % (_lua(str(turns)), _lua(request.turn_header))
    file.write_text(text + _DONE)
    return file


def _lua(text: str) -> str:
    return json.dumps(text)  # Lua reads the escapes that JSON writes for plain ASCII


def read(output: str) -> Load:
    """Read what our `done` printed. Raises NotReadyError where it is not there."""
    for line in output.splitlines():
        if line.startswith("BENCH "):
            values = json.loads(line[6:])
            errors = int(values["errors"])
            return Load(
                int(values["count"]) - min(errors, int(values["count"])), errors, values["wall_us"] / 1e6, "wrk"
            )
    raise NotReadyError(f"wrk printed no summary: {output[-400:]}")


def load(request: Request, *, connections: int, seconds: int, folder: Path, core: int) -> Load:
    """Run wrk for whole `seconds` on one thread."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s"]
    command += [str(script(request, folder)), f"http://127.0.0.1:{request.port}{request.path}"]
    return read(run(command, core=core, timeout_s=seconds + 60))
