"""What the run of the official MCP suite takes for a fault."""

from __future__ import annotations

import pytest

from tests.conformance.mcp import Checks, faults

GOOD: Checks = {"tools": {"list": "SUCCESS", "call": "SUCCESS"}, "prompts": {"get": "FAILURE", "note": "INFO"}}


def test_what_passes_directly_has_to_pass_everywhere() -> None:
    assert not faults({"directly": GOOD, "through meshd": GOOD, "the gateway": GOOD})
    gateway: Checks = {"tools": {"list": "SUCCESS", "call": "FAILURE"}}
    assert faults({"directly": GOOD, "through meshd": GOOD, "the gateway": gateway}) == [
        "the gateway: passes directly and not here: tools: call (FAILURE)"
    ]
    assert len(faults({"directly": GOOD, "the gateway": {}})) == 2


@pytest.mark.parametrize(
    "direct", [{"tools": {"list": "FAILURE"}}, {"tools": {"list": "INFO", "call": "SKIPPED"}}, {"tools": {}}]
)
def test_a_run_in_which_nothing_passes_directly_says_nothing(direct: Checks) -> None:
    assert "no check passes" in faults({"directly": direct, "through meshd": direct})[0]
    assert faults({"directly": direct, "through meshd": GOOD})
