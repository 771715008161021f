"""A server over standard input and output that misbehaves as it is told: `bad_server.py WHAT`.

Stands alone, so that it starts fast and runs in any sandbox.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path


def put(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def answer(message: dict[str, object], result: object) -> None:
    put({"jsonrpc": "2.0", "id": message["id"], "result": result})


def say(message: dict[str, object], text: str) -> None:
    answer(message, {"content": [{"type": "text", "text": text}]})


def notify(number: int, size: int = 0) -> None:
    put(
        {
            "jsonrpc": "2.0",
            "method": "notifications/message",
            "params": {"level": "info", "data": str(number) + "x" * size},
        }
    )


def tried(what: str) -> str:
    """Try what a sandbox should forbid; return what came of it."""
    try:
        if what.startswith("read:"):
            return Path(what[5:]).read_text()
        if what.startswith("write:"):
            Path(what[6:]).write_text("written")
            return "written"
        if what.startswith("list:"):
            return " ".join(sorted(path.name for path in Path(what[5:]).iterdir()))
        if what == "environ":
            return json.dumps(dict(os.environ))
        if what.startswith("dial:"):
            socket.create_connection(("127.0.0.1", int(what[5:])), 5).close()
            return "connected"
        if what.startswith("allocate:"):
            return str(len(bytearray(int(what[9:]))))
        if what.startswith("open:"):
            kept = [os.open(os.devnull, os.O_RDONLY) for _ in range(int(what[5:]))]
            return str(len(kept))
        if what.startswith("fork:"):
            made = [subprocess.Popen(["/bin/sleep", "60"]) for _ in range(int(what[5:]))]
            return str(len(made))
        if what == "grandchild":
            # In a session of its own, with its parent gone: nobody's child any more.
            script = "import os,time\nif os.fork(): os._exit(0)\nos.setsid()\ntime.sleep(600)"
            subprocess.run([sys.executable, "-I", "-c", script], check=True)
            return "left"
        if what == "ids":
            lines = Path("/proc/self/status").read_text().splitlines(keepends=True)
            return "".join(line for line in lines if line.startswith(("CapEff", "NoNewPrivs")))
        if what == "processes":
            return str(sum(1 for path in Path("/proc").iterdir() if path.name.isdigit()))
        if what == "cwd":
            return str(Path.cwd())
    except (OSError, MemoryError) as error:
        return type(error).__name__
    return "?"


def called(what: str, message: dict[str, object]) -> None:
    """Serve one tools/call."""
    if what == "crash":
        os._exit(9)
    elif what == "hang":
        time.sleep(600)
    elif what == "noise":
        sys.stdout.buffer.write(b"\x00\xff\xfe not json\n")
        sys.stdout.flush()
    elif what == "text":
        sys.stdout.write("Server is listening now!\n")
        sys.stdout.flush()
    elif what == "long":
        sys.stdout.write("x" * (17 * 2**20))
        sys.stdout.flush()
    elif what == "wrong-ids":
        for id in (999, "1", -1, None, 1.5, [1], message["id"] + 1 if isinstance(message["id"], int) else 0):
            put({"jsonrpc": "2.0", "id": id, "result": {"content": []}})
        say(message, "right")
    elif what == "flood-stderr":
        for _ in range(64):
            sys.stderr.write("e" * 2**16)
        sys.stderr.write("the end of it\n")
        sys.stderr.flush()
        say(message, "through")
    elif what == "flood-stdout":
        for number in range(400):
            notify(number, 2**16)
        say(message, "through")
    elif what == "never-read":
        say(message, "now I stop reading")
        time.sleep(600)
    elif what == "close-output":
        os.close(1)
        time.sleep(600)
    elif what == "ask-flood":
        for number in range(1000):
            put({"jsonrpc": "2.0", "id": f"s{number}", "method": "roots/list"})
        say(message, "asked")
    elif what == "lines":
        result = '{"content":[],"strange":{"a":[1,\r2]}}'
        sys.stdout.write('\n\r\n{"jsonrpc":"2.0",\r"id":' + f'{message["id"]},\t"result":{result}' + ',"more":true}\n')
        sys.stdout.flush()
    elif what == "batch":
        put(
            [
                {"jsonrpc": "2.0", "method": "notifications/x"},
                {"jsonrpc": "2.0", "id": message["id"], "result": {"ok": 1}},
            ]
        )
    elif what == "echo":
        answer(message, message)
    else:
        say(message, tried(what))


def main() -> None:
    what = sys.argv[1]
    if what == "crash-at-once":
        sys.stderr.write("no configuration found\n")
        sys.exit(2)
    if what == "mute":
        time.sleep(600)
    if what == "stubborn":
        import signal

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for line in sys.stdin:
        message = json.loads(line)
        if message.get("method") == "initialize":
            answer(
                message,
                {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "bad", "version": "1"}},
            )
        elif message.get("method") == "tools/call":
            called(message["params"]["arguments"].get("what", what), message)
        elif "id" in message and "method" in message:
            answer(message, {})
    if what == "stubborn":
        time.sleep(600)


main()
