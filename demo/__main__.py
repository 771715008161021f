"""The command line of the demo: `python -m demo [--keep] [--llm openai] [--budget N]`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from typing import Any

import aiohttp

from demo.checks import Checks
from demo.ending import until_signalled, verdict
from demo.scenes import SCENES
from demo.screen import Screen
from demo.story import Story
from demo.summary import show_next, show_summary
from demo.world import Options, running

_BUDGET_DEFAULT = 6000
_BUDGET_MIN = 2500
_REAL_MODEL = "gpt-4o-mini"


def _budget(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < _BUDGET_MIN:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens of at least {_BUDGET_MIN}")
    return int(text)


def parse(arguments: list[str]) -> Options:
    """Read the command line. Exits with 2 where it is wrong, or the real provider is asked for without a key."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="meshd on real input, in under a minute.")
    parser.add_argument("--keep", action="store_true", help="stay up at the end and print the addresses")
    parser.add_argument(
        "--llm",
        choices=("stand-in", "openai"),
        default="stand-in",
        help="openai spends real money; default: %(default)s",
    )
    parser.add_argument("--model", default=_REAL_MODEL, help="model of the real provider; default: %(default)s")
    parser.add_argument(
        "--budget", type=_budget, default=_BUDGET_DEFAULT, metavar="TOKENS", help="per workflow; default: %(default)s"
    )
    given = parser.parse_args(arguments)
    if given.llm == "openai" and not os.environ.get("OPENAI_API_KEY"):
        parser.error("--llm openai needs OPENAI_API_KEY, and spends money on it")
    model = given.model if given.llm == "openai" else "stand-in"
    return Options(llm=given.llm, model=model, budget=given.budget, is_kept=given.keep)


async def play(options: Options, screen: Screen) -> int:
    """Play every scene and return the exit code."""
    started_s = time.monotonic()
    checks = Checks(screen)
    async with running(options, screen.live) as world:
        screen.title(f"meshd is at {world.mesh_url}, its metrics at 127.0.0.1:{world.ports['metrics']}")
        provider = f"the real {options.model}" if options.is_real else "a stand-in that keeps its own books"
        screen.step(f"{len(world.processes)} processes, ready in {time.monotonic() - started_s:.1f} s; LLM: {provider}")
        story = Story(world, screen, checks)
        for scene in SCENES:
            await _play_scene(scene, story)
        await _play_scene(show_summary, story)
        show_next(story)
        for process in world.processes if checks.broken else ():
            screen.log_of(process.name, process.tail)
        if options.is_kept:
            await asyncio.Event().wait()
    return verdict(screen, checks, time.monotonic() - started_s)


async def _play_scene(scene: Any, story: Story) -> None:
    """Play one scene; what breaks it is a claim that does not hold, and the next one is played all the same."""
    try:
        await scene(story)
    except (aiohttp.ClientError, OSError, LookupError, ValueError, TypeError, RuntimeError) as error:
        story.world.watchers.clear()
        story.checks.claim(False, f"the scene {scene.__name__} was played to its end", error)


async def _main(options: Options) -> int:
    screen = Screen()
    return await until_signalled(play(options, screen), screen, is_kept=options.is_kept)


if __name__ == "__main__":
    sys.exit(asyncio.run(_main(parse(sys.argv[1:]))))
