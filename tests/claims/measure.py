"""How fast a replay begins, and what a claim costs: `python -m tests.claims.measure`.

A real sidecar on each engine that runs here, a provider beside it, and a raw client: from sending a request to the
first byte of its answer. What is measured is the whole way through loopback, the store included.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import tempfile
import time
from pathlib import Path

from tests.end_to_end.documents import document
from tests.end_to_end.provider import Provider
from tests.end_to_end.sidecar import Sidecar, until
from tests.engines.places import PLACES, Place

HOW_MANY = 200
AIM_MS = 5.0
BODY = b'{"buy":1}'


def first_byte_ms(client: socket.socket, key: str, size: int, *, path: str = "/plain/v1/orders") -> tuple[float, bool]:
    """Send one order; return how long its first byte took, and whether it was a replay."""
    act = json.dumps({"events": "x", "times": size})
    named = f"idempotency-key: {key}\r\n" if key else ""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{named}x-act: {act}\r\ncontent-length: {len(BODY)}\r\n\r\n"
    began_s = time.perf_counter()
    client.sendall(head.encode() + BODY)
    data = client.recv(65536)
    took_ms = (time.perf_counter() - began_s) * 1000
    while b"\r\n\r\n" not in data:
        data += client.recv(65536)
    fields, _, body = data.partition(b"\r\n\r\n")
    left = int(fields.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]) - len(body)
    while left > 0:
        left -= len(client.recv(min(left, 1 << 20)))
    return took_ms, b"idempotent-replayed" in fields.lower()


def spread(times: list[float]) -> str:
    times.sort()
    soon = sum(took_ms < AIM_MS for took_ms in times) / len(times)
    p50, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
    return f"p50 {p50:7.2f} ms   p99 {p99:7.2f} ms   under {AIM_MS:g} ms {soon:6.1%}"


def measure(sidecar: Sidecar, engine: str) -> float:
    """Print what an engine's claims take; return the median of a short replay in milliseconds."""
    with socket.create_connection(("127.0.0.1", sidecar.port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain = [first_byte_ms(client, "", 1000)[0] for _ in range(HOW_MANY)]
        first = [first_byte_ms(client, f"k{number}", 1000)[0] for number in range(HOW_MANY)]
        short = replays(client, "k0", 1000)
        first_byte_ms(client, "long", 1_000_000)
        until(lambda: first_byte_ms(client, "long", 1_000_000)[1])
        long = replays(client, "long", 1_000_000)
    print(f"{engine:<9} no key            {spread(plain)}")
    print(f"{'':<9} first with a key  {spread(first)}")
    print(f"{'':<9} replay of 1 kB    {spread(short)}")
    print(f"{'':<9} replay of 1 MB    {spread(long)}", flush=True)
    return short[len(short) // 2]


def replays(client: socket.socket, key: str, size: int) -> list[float]:
    times = []
    for _ in range(HOW_MANY):
        took_ms, is_replay = first_byte_ms(client, key, size)
        assert is_replay
        times.append(took_ms)
    return times


def is_there(place: type[Place]) -> bool:
    host, _, port = place.address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


def main() -> int:
    provider = Provider()
    rules = "rules:\n  - {name: once, match: {target: plain}, idempotency: {}}\n"
    late = []
    for engine, kind in PLACES.items():
        if engine == "memory" or (kind.address and not is_there(kind)):
            continue
        with tempfile.TemporaryDirectory() as folder:
            place, sidecar = kind(Path(folder)), Sidecar(Path(folder) / "home")
            try:
                sidecar.start(document(provider.url, rules), *(["--store", place.url] if kind.address else []))
                if measure(sidecar, engine) > AIM_MS:
                    late.append(engine)
            finally:
                sidecar.kill()
                asyncio.run(place.remove())
    provider.close()
    which = "all" if not late else f"all but {', '.join(late)}"
    print(
        f"a replay's first byte comes within {AIM_MS:g} ms (p50; the p99 is the machine's, when it is busy) on {which}"
    )
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
