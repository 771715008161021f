"""The command line of the demo of events: `python -m demo.events [--bus URL] [--store URL]`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from demo.checks import Checks
from demo.ending import until_signalled, verdict
from demo.events.scenes import show_choreography, show_duplicates, show_stale_view
from demo.events.scenes_end import show_silence, show_supervisor, show_trace
from demo.events.world import POLICY, PROGRAMS, Options, World, running
from demo.processes import ROOT
from demo.screen import Screen
from meshd.config import ConfigError, from_environment
from meshd.engines.table import BUSES_ONLY
from meshd.engines.url import shown
from meshd_sdk import MeshError

SCENES = (show_choreography, show_duplicates, show_stale_view, show_supervisor, show_silence, show_trace)


def parse(arguments: list[str]) -> Options:
    """Read the command line. Exits with 2 where it is wrong, or asks for an engine that there is not."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.events",
        description="Trading agents that are choreographed by events, in half a minute. By itself: one meshd, with a "
        "file for its bus. With --bus: three, which share bus, store and mesh key.",
    )
    parser.add_argument(
        "--bus", default=os.environ.get("BUS", ""), metavar="URL", help="such as redis://127.0.0.1:6379"
    )
    parser.add_argument(
        "--store",
        default="",
        metavar="URL",
        help="such as redis://127.0.0.1:6379; default: on the bus's server, where that keeps one (RabbitMQ does not)",
    )
    given = parser.parse_args(arguments)
    options = Options(given.bus, given.store)
    if options.store and not options.bus:
        parser.error("--store is for the three sidecars of --bus")
    try:
        from_environment({"MESHD_BUS": options.bus}, store=options.shared_store or None)
    except ConfigError as error:
        parser.error(str(error))
    if name := BUSES_ONLY.get(urlsplit(options.shared_store).scheme):
        parser.error(
            f"{name} keeps no store, and the sidecars share one: name it with --store redis://127.0.0.1:6379 "
            "(make demo-events STORE=...)"
        )
    return options


async def play(options: Options, screen: Screen) -> int:
    """Play every scene and return the exit code."""
    started_s = time.monotonic()
    checks = Checks(screen)
    async with running(options, screen.live) as world:
        where = shown(options.bus) if options.is_shared else "a file beside the one sidecar"
        screen.title(f"{len(world.sidecars)} meshd, 4 agents, an exchange; the bus is {where}")
        screen.step(f"{len(world.processes)} processes, ready in {time.monotonic() - started_s:.1f} s")
        world.on_said = lambda said: screen.live(f"{said['agent']}: {said['event']}")
        for scene in SCENES:
            await _play_scene(scene, world, screen, checks)
        screen.title("Where to look next")
        screen.step(f"the agents      {PROGRAMS.relative_to(ROOT)}")
        screen.step(f"their policy    {POLICY.relative_to(ROOT)}")
        screen.step("in containers   deploy/compose")
        for process in world.processes if checks.broken else ():
            screen.log_of(process.name, process.tail)
    return verdict(screen, checks, time.monotonic() - started_s)


async def _play_scene(scene: Any, world: World, screen: Screen, checks: Checks) -> None:
    """Play one scene; what breaks it is a claim that does not hold, and the next one is played all the same."""
    try:
        await scene(world, screen, checks)
    except (aiohttp.ClientError, MeshError, OSError, LookupError, ValueError, TypeError, RuntimeError) as error:
        checks.claim(False, f"the scene {scene.__name__} was played to its end", error)


async def _main(options: Options) -> int:
    screen = Screen()
    return await until_signalled(play(options, screen), screen)


if __name__ == "__main__":
    sys.exit(asyncio.run(_main(parse(sys.argv[1:]))))
