"""What goes to the sidecar, and what is put on it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd_sdk.current import Current
from meshd_sdk.sidecar import DEFAULT, Sidecar, due, place

HERE = Sidecar([DEFAULT])
NOW = Current("token", "wf", "writer", "parent", "state", "baggage")


@pytest.mark.parametrize(
    ("scheme", "host", "port"),
    [
        ("http", "127.0.0.1", 7400),
        ("http", "localhost", 7400),
        ("http", "LOCALHOST.", 7400),
        ("http", "::1", 7400),
        ("http", "[::1]", 7400),
        ("https", "127.0.0.1", 7400),
        ("https", "Writer.MESH.", 7400),
        ("http", "writer.mesh", 7400),
    ],
)
def test_the_sidecar_receives_what_goes_to_it(scheme: str, host: str, port: int | None) -> None:
    assert HERE.receives(scheme, host, port)


@pytest.mark.parametrize(
    ("scheme", "host", "port"),
    [
        ("http", "127.0.0.1", 7401),
        ("http", "127.0.0.1", None),
        ("http", "127.0.0.2", 7400),
        ("http", "127.0.0.1.evil.example", 7400),
        ("http", "localhost.evil.example", 7400),
        ("http", "example.com", 7400),
        ("http", "mesh", 7400),
        ("http", "evilmesh", 7400),
        ("http", "writer.mesh", None),
        ("https", "writer.mesh", 443),
        ("http", "writer.mesh", 7401),
        ("http", "writer.mesh.example", 80),
        ("http", "0.0.0.0", 7400),
        ("http", "", 7400),
        ("ftp", "example.com", None),
    ],
)
def test_nobody_else_is_taken_for_it(scheme: str, host: str, port: int | None) -> None:
    assert not HERE.receives(scheme, host, port)


def test_a_proxy_reads_http_and_passes_https() -> None:
    ours, theirs = ("127.0.0.1", 7400), ("proxy.example", 3128)
    assert HERE.receives("http", "example.com", 80, ours)
    assert not HERE.receives("http", "127.0.0.1", 7400, theirs)
    assert not HERE.receives("http", "writer.mesh", 80, theirs)
    assert not HERE.receives("https", "example.com", 443, ours), "a tunnel"
    assert not HERE.receives("https", "writer.mesh", 443, theirs), "a tunnel to whoever they say this is"
    assert not HERE.receives("http", "example.com", 80, ("writer.mesh", 80)), "a proxy is known by its address"


def test_an_address_elsewhere_is_that_address_alone() -> None:
    there = Sidecar(["https://Sidecar.Example"])
    assert there.receives("https", "sidecar.example", None)
    assert not there.receives("http", "sidecar.example", None)
    assert not there.receives("http", "127.0.0.1", 7400)


def test_one_that_listens_everywhere_is_reached_at_loopback() -> None:
    assert Sidecar(["http://0.0.0.0:7500"]).receives("http", "localhost", 7500)


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:7400",
        "localhost:7400",
        "[::1]:7400",
        "dns:localhost:7400",
        "dns:///localhost:7400",
        "dns://1.1.1.1/localhost:7400",
        "ipv4:127.0.0.1:7400",
        "ipv6:[::1]:7400",
        "ipv4:127.0.0.1:7400,127.0.0.1:7400",
        "writer.mesh:7400",
        "dns:///writer.mesh:7400",
    ],
)
def test_grpc_targets_that_go_to_the_sidecar(target: str) -> None:
    assert HERE.is_target(target)


@pytest.mark.parametrize(
    "target",
    [
        "",
        "127.0.0.1",
        "127.0.0.1:7402",
        "writer.mesh",
        "writer.mesh:50051",
        "ipv4:127.0.0.1:7400,10.0.0.1:7400",
        "unix:/tmp/7400",
        "unix:127.0.0.1:7400",
        "unix-abstract:localhost:7400",
        "vsock:1:7400",
        "xds:///localhost:7400",
        "xds:localhost:7400",
        "dns:///example.com:7400",
        "dns://127.0.0.1:7400/example.com:443",
        "passthrough:///127.0.0.1:7400",
        "localhost:7400/x",
        "localhost:nonsense",
        "localhost:99999",
        "::::",
        "[::1",
        "ipv4:",
    ],
)
def test_grpc_targets_that_do_not(target: str) -> None:
    assert not HERE.is_target(target)


@given(st.text())
def test_whatever_a_target_is_it_is_judged(target: str) -> None:
    assert HERE.is_target(target) in (True, False)


@given(st.text(), st.one_of(st.none(), st.integers()), st.text())
def test_whatever_a_request_is_it_is_judged(host: str, port: int | None, scheme: str) -> None:
    assert HERE.receives(scheme, host, port) in (True, False)


@pytest.mark.parametrize(
    "nonsense", ["", "7400", "127.0.0.1:7400", "ftp://x", "http://", "http://x:nonsense", "http://x:99999", "unix:/x"]
)
def test_what_is_no_address_is_an_error(nonsense: str) -> None:
    with pytest.raises(ValueError):
        place(nonsense)
    with pytest.raises(ValueError):
        Sidecar([nonsense])


def test_the_environment_says_where_it_is() -> None:
    assert Sidecar.of({}).addresses == HERE.addresses
    assert Sidecar.of({"MESHD_URL": ""}).addresses == HERE.addresses
    run = Sidecar.of({"MESHD_URL": "http://127.0.0.1:7411/w/AQln", "OPENAI_BASE_URL": "http://elsewhere/v1"})
    assert run.receives("http", "localhost", 7411)
    assert not run.receives("http", "localhost", 7400)
    assert not run.receives("http", "elsewhere", 80)
    assert Sidecar.of({"MESHD_URL_WRITER": "http://127.0.0.1:7411/w/x/writer"}).receives("http", "127.0.0.1", 7411)


def test_nonsense_in_the_environment_is_named() -> None:
    with pytest.raises(ValueError, match="MESHD_URL_WRITER: an address such as"):
        Sidecar.of({"MESHD_URL_WRITER": "nonsense"})


def test_what_is_due_is_all_that_there_is() -> None:
    assert due(NOW, lambda _: False) == {
        "x-meshd-context": "token",
        "traceparent": "parent",
        "tracestate": "state",
        "baggage": "baggage",
    }


@pytest.mark.parametrize("name", ["x-meshd-context", "x-meshd-workflow"])
def test_a_call_that_says_itself_where_it_belongs_gets_nothing(name: str) -> None:
    assert due(NOW, {name}.__contains__) == {}


def test_a_trace_of_the_caller_keeps_its_own_state() -> None:
    assert due(NOW, {"traceparent"}.__contains__) == {"x-meshd-context": "token", "baggage": "baggage"}


def test_baggage_and_deadline_of_the_caller_stay() -> None:
    now = Current("token", baggage="b", deadline_s=1.0, delegate_tokens=5)
    has = {"baggage", "x-meshd-deadline", "x-meshd-delegate"}.__contains__
    assert due(now, has) == {"x-meshd-context": "token"}


@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "a\x00", "\xe9", "\u20ac"])
def test_a_value_that_cannot_stand_in_a_field_is_left_out(value: str) -> None:
    now = Current("token", traceparent=value, tracestate=value, baggage=value)
    assert due(now, lambda _: False) == {"x-meshd-context": "token"}
    assert due(Current(value), lambda _: False) == {}
