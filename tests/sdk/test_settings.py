"""What the environment says, and what is said of nonsense in it."""

from __future__ import annotations

import pytest

from meshd_sdk.agent import Agent
from meshd_sdk.backoff import FIRST_S, MOST_S, delay_s
from meshd_sdk.errors import REFUSALS, CallFailed, Refused, SettingInvalid, TimedOut, failure
from meshd_sdk.settings import Place, place, settings
from meshd_sdk.statuses import error_info


def test_nothing_is_the_default() -> None:
    assert settings({}) == ("127.0.0.1:7402", "", "", "stop")
    assert settings({"MESHD_API": "", "MESHD_WITHOUT": ""}) == settings({})


@pytest.mark.parametrize(
    ("api", "expected", "target"),
    [
        ("127.0.0.1:7402", Place("", "127.0.0.1", 7402), "127.0.0.1:7402"),
        ("[::1]:7402", Place("", "::1", 7402), "[::1]:7402"),
        ("localhost:1", Place("", "localhost", 1), "localhost:1"),
        ("unix:/run/meshd.sock", Place("/run/meshd.sock", "", 0), "unix:/run/meshd.sock"),
        ("unix:///run/meshd.sock", Place("/run/meshd.sock", "", 0), "unix:/run/meshd.sock"),
    ],
)
def test_an_address(api: str, expected: Place, target: str) -> None:
    assert place(api) == expected
    assert expected.grpc_target == target


@pytest.mark.parametrize(
    "api",
    ["x", ":7402", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "http://127.0.0.1:7402", "unix:", "unix:a", "a b:1"],
)
def test_an_address_that_means_nothing_is_named(api: str) -> None:
    with pytest.raises(SettingInvalid, match="MESHD_API"):
        settings({"MESHD_API": api})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MESHD_WITHOUT", "maybe"),
        ("MESHD_AGENT", "a b"),
        ("MESHD_AGENT", "x" * 64),
        ("MESHD_AGENT", "Researcher"),
        ("MESHD_AGENT", "-x"),
        ("MESHD_AGENT", "app"),
        ("MESHD_CONTEXT", "x" * 513),
        ("MESHD_CONTEXT", "a b"),
        ("MESHD_CONTEXT", "ü"),
    ],
)
def test_nonsense_in_a_variable_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingInvalid, match=name):
        settings({name: value})


def test_an_agent_has_a_name() -> None:
    assert Agent(environ={"MESHD_AGENT": "a"}).name == "a"
    assert Agent("b", environ={"MESHD_AGENT": "a"}).name == "b"
    with pytest.raises(SettingInvalid, match="MESHD_AGENT"):
        Agent(environ={})
    with pytest.raises(SettingInvalid, match="name is 1 to 63"):
        Agent("a b", environ={})
    with pytest.raises(TypeError, match="in a list"):
        Agent("a", intents="find sources", environ={})
    with pytest.raises(SettingInvalid, match="credit"):
        Agent("a", credit=0, environ={})


def test_back_off_doubles_to_a_bound_and_is_all_jitter() -> None:
    assert [delay_s(attempt, 1.0) for attempt in range(3)] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]
    assert delay_s(10**6, 1.0) == MOST_S
    assert delay_s(5, 0.0) == 0.0


def test_every_refusal_has_a_type_and_the_sidecars_own_code() -> None:
    from meshd.refusal import TABLE, Reason

    for reason in Reason:
        error = failure(TABLE[reason].grpc, reason.value, "why")
        assert error.number == TABLE[reason].grpc
        assert error.reason == reason.value
        if reason.value in REFUSALS:
            assert isinstance(error, REFUSALS[reason.value])
        else:
            assert isinstance(error, CallFailed)


def test_a_reason_of_a_newer_sidecar_is_a_refusal() -> None:
    error = failure(99, "not_yet_thought_of", "why")
    assert type(error) is Refused
    assert error.code == "UNKNOWN"


def test_a_status_without_a_reason_is_a_failure() -> None:
    assert type(failure(5, "", "")) is CallFailed
    assert str(failure(5, "", "")) == "NOT_FOUND"
    assert isinstance(failure(4, "", "late"), TimedOut)


def test_error_info_is_read_as_the_sidecar_writes_it() -> None:
    from meshd.api.failing import Failure, status_details

    metadata = {"rule": "r" * 300, "is_retryable": "true"}
    details = status_details(Failure(8, "budget_busy", "wait " * 100, metadata, 1000))
    assert error_info(details) == ("budget_busy", metadata)
    in_capitals = status_details(
        Failure(8, "BUDGET_BUSY", "wait", {}, 1000)
    )  # of a proxied call, as docs/grpc.md has it
    assert error_info(in_capitals)[0] == "budget_busy"


@pytest.mark.parametrize("details", [b"", b"\xff" * 40, b"\x1a\x7f", b"\x1a\x02\x0a", b"\x0b", b"\x1a\x00" * 9])
def test_details_that_are_none_say_nothing(details: bytes) -> None:
    assert error_info(details) == ("", {})
