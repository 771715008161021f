"""The official kit's columns are the same only where its tests have run."""

from __future__ import annotations

from typing import Any

import pytest

from tests.a2a.conformance import outcomes

TESTS = [{"nodeid": "tests/a.py::one", "outcome": "passed"}, {"nodeid": "tests/a.py::two", "outcome": "failed"}]


@pytest.mark.parametrize("exit_code", [pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED])
def test_each_test_has_an_outcome(exit_code: int) -> None:
    assert outcomes({"exitcode": int(exit_code), "tests": TESTS}) == {
        "tests/a.py::one": "passed",
        "tests/a.py::two": "failed",
    }


@pytest.mark.parametrize(
    "report",
    [
        {"exitcode": int(pytest.ExitCode.INTERRUPTED), "tests": TESTS},
        {"exitcode": int(pytest.ExitCode.NO_TESTS_COLLECTED), "tests": []},
        {"exitcode": int(pytest.ExitCode.OK), "tests": []},
        {"exitcode": int(pytest.ExitCode.USAGE_ERROR), "tests": [], "collectors": []},
    ],
)
def test_a_kit_that_has_not_run_to_its_end_says_nothing(report: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="did not run its tests"):
        outcomes(report)


def test_what_the_kit_lacks_is_named() -> None:
    missing = "kit/test_b.py:25: in <module>\n    import aiohttp\nE   ModuleNotFoundError: No module named 'aiohttp'"
    collectors = [
        {"nodeid": "tests/a.py", "outcome": "passed"},
        {"nodeid": "tests/b.py", "outcome": "failed", "longrepr": missing},
    ]
    with pytest.raises(ValueError, match=r"\ntests/b\.py: E +ModuleNotFoundError: No module named 'aiohttp'\Z"):
        outcomes({"exitcode": int(pytest.ExitCode.INTERRUPTED), "tests": [], "collectors": collectors})
