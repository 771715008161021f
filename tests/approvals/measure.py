"""What holding costs: `python -m tests.approvals.measure [CALLS] [STORE]`.

Holds so many calls (1,000) in a daemon of its own, each with an approval of its own and a body of 1 kB, and prints how
much its memory grew; then allows them one after the other, and prints how long after each decision its call reached
the tool, and how long until its answer was there.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
from aiohttp import web

from meshd.approvals.keys import hash_of, new_key
from tests.end_to_end.sidecar import Sidecar

KEY = new_key()
BODY_BYTES = 1024
MB_MAX = 64.0
RESUMED_MS_MAX = 100.0


def rss_mb(pid: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


class Tool:
    """Says when each call came."""

    def __init__(self) -> None:
        self.came_s: dict[int, float] = {}
        self.url = ""

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/{tail:.*}", self._serve)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def _serve(self, request: web.Request) -> web.Response:
        number = json.loads(await request.read())["number"]
        self.came_s[number] = time.monotonic()
        return web.Response(text="done")


async def measure(calls: int, store: str) -> bool:
    """Measure and print; return whether the figures are as they should be."""
    tool = Tool()
    runner = await tool.start()
    with tempfile.TemporaryDirectory(prefix="meshd-approvals-") as folder:
        sidecar = Sidecar(Path(folder) / "home")
        arguments = ("--store", store) if store else ()
        document = (
            f'approvers: {{ana: {{key: "sha256:{hash_of(KEY)}"}}}}\n'
            f'upstreams: {{billing: {{url: "{tool.url}", kind: tool}}}}\n'
            "rules: [{name: money, match: {kind: tool}, approval: {hold: 10m}}]\n"
        )
        try:
            await asyncio.to_thread(sidecar.start, document, *arguments)
            return await _measured(sidecar, tool, calls)
        finally:
            sidecar.kill()
            await runner.cleanup()


async def _measured(sidecar: Sidecar, tool: Tool, calls: int) -> bool:
    assert sidecar.process is not None
    assert sidecar.running is not None
    token = (sidecar.home / "admin.token").read_text().strip()
    admin = f"http://{sidecar.running['admin']}/v1/approvals"
    headers = {"authorization": f"Bearer {token}", "x-meshd-approver-key": KEY}
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:

        async def call(number: int) -> tuple[int, int, float]:
            body = json.dumps({"number": number, "text": "x" * BODY_BYTES})
            async with session.post(f"{sidecar.url}/billing/pay", data=body) as reply:
                await reply.read()
                return number, reply.status, time.monotonic()

        # One call first, whose code and connections everybody needs.
        first = asyncio.create_task(call(-1))
        await _pending(session, admin, headers, 1)
        before_mb = rss_mb(sidecar.process.pid)
        began_s = time.monotonic()
        tasks = [asyncio.create_task(call(number)) for number in range(calls)]
        found = await _pending(session, admin, headers, calls + 1)
        held_s = time.monotonic() - began_s
        grown_mb = rss_mb(sidecar.process.pid) - before_mb
        decided_s: dict[int, float] = {}
        for id in found:
            async with session.get(f"{admin}/{id}", headers=headers) as reply:
                number = json.loads((await reply.json())["arguments"])["number"]
            async with session.post(f"{admin}/{id}/approve", json={}, headers=headers) as reply:
                assert reply.status == 200, await reply.text()
                decided_s[number] = time.monotonic()
        ended = await asyncio.gather(first, *tasks)
    assert all(status == 200 for _, status, _ in ended), {status for _, status, _ in ended}
    # From the moment in which whoever decided has the answer. Negative where the call was even faster.
    resumed = [max(0.0, 1000 * (tool.came_s[number] - at_s)) for number, at_s in decided_s.items()]
    answered = [max(0.0, 1000 * (at_s - decided_s[number])) for number, _, at_s in ended]
    print(f"calls held: {calls + 1} (all asked after {held_s:.2f} s)")
    print(f"memory: {grown_mb:.1f} MB more, {1024 * grown_mb / calls:.1f} kB a call (at most {MB_MAX:g} MB)")
    for what, values in (("reached the tool", resumed), ("answered", answered)):
        p50, p99 = percentile(values, 0.5), percentile(values, 0.99)
        print(f"{what} after the decision: p50 {p50:.1f} ms, p99 {p99:.1f} ms, most {max(values):.1f} ms")
    return grown_mb < MB_MAX and percentile(resumed, 0.99) < RESUMED_MS_MAX


async def _pending(session: aiohttp.ClientSession, admin: str, headers: dict[str, str], count: int) -> list[str]:
    """Wait until so many approvals are pending, and return their ids."""
    while True:
        async with session.get(admin, params={"state": "pending", "limit": "1000"}, headers=headers) as reply:
            found = [one["id"] for one in (await reply.json())["approvals"]]
        if len(found) >= min(count, 1000):
            return found
        await asyncio.sleep(0.2)


def main() -> int:
    """See the module."""
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    # The list shows a thousand, and one is the first.
    return 0 if asyncio.run(measure(min(calls, 999), sys.argv[2] if len(sys.argv) > 2 else "")) else 1


if __name__ == "__main__":
    sys.exit(main())
