"""Many sidecars share their catalogues: `python -m tests.sources.fleet [--store URL] [--sidecars 50] [--tools 10000]`.

What is printed: memory of one sidecar, and how long until all know all. The sidecars are their catalogues, each with a
connection of its own to the store, its own copy of everything, and its own index to search; they live in a few
processes, so that what the interpreter itself takes is counted apart, and not once for each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from meshd.discovery.catalogue import Catalogue
from meshd.discovery.entry import Entry, Origin, Sort
from meshd.discovery.finder import Finder
from meshd.engines.table import open_store
from meshd.sources.sharing import ShareTerms, Sharing
from tests.engines.places import NATS, nats_api

PATIENCE_S: Final = 240.0
WORDS: Final = (
    "account", "archive", "balance", "book", "calendar", "charge", "contract", "convert", "customer", "delete",
    "deliver", "document", "draft", "email", "export", "file", "find", "flight", "forecast", "hotel", "image",
    "import", "invoice", "issue", "label", "list", "mail", "map", "meeting", "merge", "message", "move",
    "note", "order", "page", "parse", "pay", "person", "photo", "plan", "price", "print", "project", "query",
    "read", "refund", "rename", "report", "reserve", "route", "save", "schedule", "search", "send", "ship",
    "share", "sign", "sort", "stock", "store", "sum", "table", "task", "tax", "text", "ticket", "time",
    "track", "translate", "update", "upload", "user", "verify", "video", "weather", "web", "write",
)  # fmt: skip


def tools(sidecar: int, count: int, owners: int = 4) -> list[Entry]:
    """Return what one sidecar has: tools of some servers, each described in a sentence or two."""
    found = []
    for number in range(count):
        words = [WORDS[(sidecar * 7 + number * 13 + at * at * 5) % len(WORDS)] for at in range(28)]
        name = "_".join((words[0], words[1], str(number)))
        description = f"{words[2].title()} {' '.join(words[3:16])}. Takes {' '.join(words[16:22])}; gives {words[22]}."
        schema = json.dumps({"type": "object", "properties": {word: {"type": "string"} for word in words[23:]}})
        owner = f"server-{sidecar}-{number % owners}"
        entry = Entry(Sort.TOOL, owner, name, description, origin=Origin.MCP, input_schema=schema.encode())
        found.append(entry)
    return found


def resident() -> int:
    """Return the bytes that this process has in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


class Sidecar:
    """One catalogue."""

    def __init__(self, store: Any, number: int, terms: ShareTerms) -> None:
        self.store = store
        self.local, self.wide = Catalogue(), Catalogue()
        self.sharing = Sharing(
            lambda: store,
            self.local,
            self.wide,
            sidecar=secrets.token_hex(8),
            agent=lambda: f"agent-{number}",
            clock=time.monotonic,
            wall_clock=time.time,
            terms=terms,
        )
        self.task = asyncio.get_running_loop().create_task(self.sharing.run())

    def have(self, entries: list[Entry]) -> None:
        by_owner: dict[str, list[Entry]] = {}
        for entry in entries:
            by_owner.setdefault(entry.owner, []).append(entry)
        for owner, some in by_owner.items():
            self.local.replace(owner, Origin.MCP, some)

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.sharing.close()
        await self.store.close()


async def until(is_so: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():
            await asyncio.sleep(0.01)


async def process(url: str, first: int, sidecars: int, all_sidecars: int, all_tools: int) -> None:
    """Be some of the sidecars: told on standard input when to begin, and telling what was seen."""
    per = all_tools // all_sidecars
    with tempfile.TemporaryDirectory() as home:
        terms = ShareTerms(beat_s=10.0, lease_s=60.0)
        fleet = [Sidecar(await open_store(url, Path(home)), first + at, terms) for at in range(sidecars)]
        await until(lambda: all(one.sharing._store is not None for one in fleet))
        bare = resident()
        told = {"ready": True}
        print(json.dumps(told), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        for at, one in enumerate(fleet):
            one.have(tools(first + at, per))
        whole = per * all_sidecars
        await until(lambda: all(len(one.wide) == whole for one in fleet))
        print(json.dumps({"all_s": time.time()}), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        # One tool more, somewhere: when does everybody know it?
        if first == 0:
            fleet[0].have([*tools(0, per), tools(0, 1)[0]._replace(name="newest")])
        await until(lambda: all(one.wide.get(Sort.TOOL, "server-0-0", "newest") is not None for one in fleet))
        print(json.dumps({"one_s": time.time()}), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        known = resident()
        finders = [Finder(one.wide) for one in fleet[:2]]
        for finder in finders:
            finder.find("refund a customer", 5)
        indexed = resident()
        said = {
            "catalogue_bytes": (known - bare) // sidecars,
            "index_bytes": (indexed - known) // len(finders),
            "shared_bytes": fleet[0].sharing.size,
        }
        print(json.dumps(said), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        for one in fleet:
            await one.close()


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--store", default="", help="URL of a store; a bucket of its own on NATS if left out")
    parser.add_argument("--sidecars", type=int, default=50)
    parser.add_argument("--tools", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--process", type=int, default=-1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    sizes = [len(range(at, given.sidecars, given.processes)) for at in range(given.processes)]
    if given.process >= 0:
        first = sum(sizes[: given.process])
        asyncio.run(process(given.store, first, sizes[given.process], given.sidecars, given.tools))
        return
    bucket = f"meshd_fleet_{secrets.token_hex(4)}"
    url = given.store or f"nats://{NATS}?bucket={bucket}"
    found = run(url, given, sizes)
    if not given.store:
        asyncio.run(nats_api(f"STREAM.DELETE.KV_{bucket}"))
    print(f"{given.sidecars} sidecars in {given.processes} processes, {given.tools} tools, on {url.partition(':')[0]}")
    print(f"  all know all after            {found['all_s']:8.2f} s")
    print(f"  all know one tool more after  {found['one_s']:8.2f} s")
    print(f"  memory of one sidecar         {found['catalogue_bytes'] / 2**20:8.1f} MiB  catalogue, own copy of all")
    print(f"  once it has searched          {found['index_bytes'] / 2**20:8.1f} MiB  more: the index")
    print(f"  as others wrote it            {found['shared_bytes'] / 2**20:8.1f} MiB  (bounded at 32 MiB)")


def run(url: str, given: argparse.Namespace, sizes: list[int]) -> dict[str, float]:
    """Start the processes, let them go step by step, and return what they saw."""
    command = [sys.executable, "-m", "tests.sources.fleet", "--store", url, "--sidecars", str(given.sidecars)]
    command += ["--tools", str(given.tools), "--processes", str(len(sizes))]
    started = [
        subprocess.Popen(
            [*command, "--process", str(at)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
        )
        for at in range(len(sizes))
    ]

    def step() -> list[dict[str, float]]:
        return [json.loads(one.stdout.readline()) for one in started]  # type: ignore[union-attr]

    def go() -> float:
        for one in started:
            one.stdin.write("\n")  # type: ignore[union-attr]
            one.stdin.flush()  # type: ignore[union-attr]
        return time.time()

    try:
        step()
        began_s = go()
        all_s = max(one["all_s"] for one in step()) - began_s
        began_s = go()
        one_s = max(one["one_s"] for one in step()) - began_s
        go()
        sizes_seen = step()
        go()
        for one in started:
            one.wait(30)
    finally:
        for one in started:
            one.kill()
    means = {key: sum(one[key] for one in sizes_seen) / len(sizes_seen) for key in sizes_seen[0]}
    return {"all_s": all_s, "one_s": one_s, **means}


if __name__ == "__main__":
    main()
