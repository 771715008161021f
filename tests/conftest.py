"""What every test may ask for: tools that a machine may lack, and the event loops that meshd runs on."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    LoopFactory = Callable[[], asyncio.AbstractEventLoop]

# No test depends on time passing.
hypothesis.settings.register_profile("meshd", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("meshd")

BEGINS_FIRST = (
    "engines/test_bus_model.py",
    "engines/test_store.py",
    "state/test_objects.py",
    "demo/test_events.py",
    "demo/test_demo.py",
    "end_to_end/test_budgets.py",
    "engines/test_bus_keeping.py",
    "loops/test_loops.py",
    "engines/test_bus_attempts.py",
    "engines/test_bus_rabbitmq_breaks.py",
    "cli/test_exec_governs.py",
    "engines/test_bus.py",
    "engines/test_bus_replay.py",
    "dialects/test_properties.py",
    "end_to_end/test_idempotency.py",
    "a2a/test_client.py",
    "engines/test_bus_lives.py",
    "end_to_end/test_approvals.py",
    "engines/test_bus_kafka.py",
    "end_to_end/test_shared_bus.py",
)
"""Files of the longest tests, the longest first: one that began last would have a worker to itself in the end."""

LOOPS: dict[str, LoopFactory] = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


def is_everything_required() -> bool:
    """Say whether a test that cannot run here counts as failed (MESHD_REQUIRE_ENGINES=1, as .ci/run sets it)."""
    return os.environ.get("MESHD_REQUIRE_ENGINES", "0") not in ("", "0")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "both_loops: run this async test on uvloop and on plain asyncio")
    config.addinivalue_line("markers", "uncompiled: it reaches for what compiled code keeps within itself")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage while a million objects are made that all stay, and never look through these again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the long files begin first; the rest stays in the random order that it has by now."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(BEGINS_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, LoopFactory]:
    """Async tests run on uvloop, as the daemon does; those marked `both_loops` on plain asyncio too."""
    return LOOPS if item.get_closest_marker("both_loops") else {"uvloop": LOOPS["uvloop"]}


@pytest.fixture(params=LOOPS.values(), ids=LOOPS.keys())
def loop_factory(request: pytest.FixtureRequest) -> LoopFactory:
    """Each loop in turn, for a plain test that runs one itself: `asyncio.Runner(loop_factory=loop_factory)`."""
    return request.param


@pytest.fixture(scope="session")
def require_engine() -> Callable[[str], str]:
    """Return a function from a program's name to its path; without that program the test is skipped."""

    def find(program: str) -> str:
        path = shutil.which(program)
        if path is None:
            pytest.skip(f"{program} is not installed")
        return path

    return find


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    # What was logged may hold half a character, which no worker can send.
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    if report.skipped and not hasattr(report, "wasxfail") and is_everything_required():
        report.outcome = "failed"
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.longrepr = f"{item.nodeid} was skipped where nothing may be (MESHD_REQUIRE_ENGINES=1): {reason}"
    return report


@pytest.fixture(autouse=True)
def _signals_stay() -> Iterator[None]:
    """Give back the handlers of signals after each test.

    Two servers of uvicorn that end in the order in which they began leave the first one's handler behind, and by that
    sse-starlette takes every later stream of the process for one that must end.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler and threading.current_thread() is threading.main_thread():
            signal.signal(number, handler)
