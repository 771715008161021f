"""What each end of a call says of its claim."""

from __future__ import annotations

from typing import Any

import pytest

from meshd.call import Kind
from meshd.claims.fate import fate_of, may_have_run
from meshd.claims.states import Event
from meshd.outcome import NOT_FORWARDED, Fault
from tests.filters.calls import outcome

ANSWERED, RELEASED, LOST = Event.ANSWERED, Event.RELEASED, Event.LOST
TOOL, LLM = Kind.TOOL, Kind.LLM


def ended(status: int = 200, fault: Fault = Fault.NONE, grpc: int = -1, *, is_terminal: bool = True) -> Any:
    found = outcome(status, fault, is_forwarded=fault not in NOT_FORWARDED)
    found.grpc_status, found.is_terminal = grpc, is_terminal
    return found


def fate(kind: Kind, end: Any, *, is_whole: bool = True, is_too_long: bool = False) -> Event:
    return fate_of(kind, end, is_whole=is_whole, is_too_long=is_too_long, has_run=may_have_run(end))


@pytest.mark.parametrize("status", [200, 201, 202, 204, 301, 303, 400, 404, 405, 410, 413, 415, 422])
def test_what_would_be_said_again(status: int) -> None:
    assert [fate(kind, ended(status)) for kind in Kind] == [ANSWERED] * len(Kind)


@pytest.mark.parametrize("status", [401, 402, 403, 407, 408, 409, 423, 425, 429])
def test_what_was_turned_away(status: int) -> None:
    assert [fate(kind, ended(status)) for kind in Kind] == [RELEASED] * len(Kind)


@pytest.mark.parametrize("status", [500, 501, 502, 503, 504, 529, 599])
def test_failures(status: int) -> None:
    found = {kind: fate(kind, ended(status)) for kind in Kind}
    assert found == {Kind.LLM: RELEASED, Kind.TOOL: LOST, Kind.AGENT: LOST, Kind.HOST: LOST, Kind.EVENT: LOST}


@pytest.mark.parametrize("grpc", range(17))
def test_statuses_of_grpc(grpc: int) -> None:
    expected = {0: ANSWERED, 3: ANSWERED, 5: ANSWERED, 6: ANSWERED, 9: ANSWERED, 11: ANSWERED, 12: ANSWERED,
                7: RELEASED, 8: RELEASED, 10: RELEASED, 16: RELEASED}  # fmt: skip
    assert fate(Kind.AGENT, ended(200, grpc=grpc)) is expected.get(grpc, LOST)


@pytest.mark.parametrize("fault", set(Fault) - {Fault.NONE})
def test_faults(fault: Fault) -> None:
    found = fate(TOOL, ended(200, fault), is_whole=False)
    assert found is (RELEASED if fault in NOT_FORWARDED else LOST)
    assert fate(LLM, ended(200, fault), is_whole=False) is RELEASED


def test_an_answer_that_we_cut_off_is_what_the_caller_has() -> None:
    assert fate(LLM, ended(200, Fault.CUT)) is ANSWERED
    assert fate(LLM, ended(200, Fault.CUT), is_whole=False) is RELEASED


def test_a_stream_without_its_end_is_no_answer() -> None:
    assert fate(LLM, ended(200, is_terminal=False)) is RELEASED
    assert fate(TOOL, ended(200), is_whole=False) is LOST


def test_what_is_too_long_was_answered_all_the_same() -> None:
    assert fate(TOOL, ended(200), is_too_long=True) is ANSWERED
    # Its caller had hung up, and the rest was not awaited.
    assert fate(TOOL, ended(200, Fault.CALLER_GONE), is_whole=False, is_too_long=True) is ANSWERED
    assert fate(TOOL, ended(200, Fault.RESET), is_whole=False, is_too_long=True) is LOST
    assert fate(TOOL, ended(500), is_too_long=True) is LOST


def test_an_earlier_attempt_counts() -> None:
    """The last one found no connection, but the one before it may have been carried out."""
    end = ended(0, Fault.CONNECT)
    assert fate_of(TOOL, end, is_whole=False, is_too_long=False, has_run=True) is LOST
