"""Reading what load generators print, and what servers answer."""

import re
from pathlib import Path

import pytest

from bench.load import h2load, wrk
from bench.load.replies import is_good, reply_bytes
from bench.load.request import Request
from bench.processes import NotReadyError

H2LOAD = """
finished in 2.00s, 10272.50 req/s, 11.21MB/s
requests: 20577 total, 20577 started, 20545 done, 20545 succeeded, {failed} failed, {failed} errored, 0 timeout
status codes: {good} 2xx, 0 3xx, {bad} 4xx, 0 5xx
traffic: 22.42MB (23508834) total
"""
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\n\r\n"


def request(**changes: object) -> Request:
    values: dict[str, object] = {
        "port": 8080,
        "path": "/v1/x",
        "headers": {"a": "b"},
        "body": b'{"x":"\xff"}',
    }
    return Request(**(values | changes))  # type: ignore[arg-type]


def test_wrk_subtracts_what_went_wrong() -> None:
    load = wrk.read('Running 1s test\nBENCH {"count": 100, "wall_us": 2000000, "errors": 3}\n')
    assert (load.count, load.errors, load.wall_s) == (97, 3, 2.0)


def test_wrk_never_counts_below_nothing() -> None:
    assert wrk.read('BENCH {"count": 2, "wall_us": 1000000, "errors": 7}').count == 0


@pytest.mark.parametrize("output", ["", "BENCHMARK", "unable to connect"])
def test_wrk_without_a_summary_is_an_error(output: str) -> None:
    with pytest.raises(NotReadyError, match="no summary"):
        wrk.read(output)


def test_the_script_of_wrk_sends_one_host(tmp_path: Path) -> None:
    script = wrk.script(request(), tmp_path).read_text()
    assert [name for name in re.findall(r'wrk\.headers\["(.*?)"\]', script) if name.lower() == "host"] == ["Host"]
    assert (tmp_path / "body").read_bytes() == request().body
    assert "request = function" not in script
    turned = wrk.script(request(turn_header="t", turns=("one", "two")), tmp_path).read_text()
    assert "request = function" in turned
    assert (tmp_path / "turns").read_text() == "one\ntwo\n"


def test_h2load_does_not_count_calls_that_were_under_way_at_the_end() -> None:
    load = h2load.read(H2LOAD.format(failed=0, good=20545, bad=0))
    assert (load.count, load.errors, load.wall_s) == (20545, 0, 2.0)


def test_h2load_counts_failed_calls_and_other_statuses_as_errors() -> None:
    load = h2load.read(H2LOAD.format(failed=2, good=20540, bad=5))
    assert (load.count, load.errors) == (20540, 7)


def test_h2load_reads_milliseconds() -> None:
    assert h2load.read(H2LOAD.replace("2.00s,", "500.00ms,").format(failed=0, good=1, bad=0)).wall_s == 0.5


def test_h2load_without_a_summary_is_an_error() -> None:
    with pytest.raises(NotReadyError, match="no summary"):
        h2load.read("finished in 2.00s")


@pytest.mark.parametrize("reply", [PLAIN, CHUNKED])
def test_a_reply_is_whole_at_its_last_byte_and_not_before(reply: bytes) -> None:
    assert [reply_bytes(reply[:length]) for length in range(len(reply))] == [0] * len(reply)
    assert reply_bytes(reply) == len(reply)
    assert reply_bytes(reply + b"HTTP/1.1 200") == len(reply)
    assert is_good(reply)


@pytest.mark.parametrize(
    "data",
    [b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", CHUNKED.replace(b"5;x=y", b"zz"), PLAIN.replace(b": 5", b": x")],
)
def test_what_is_no_reply_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        reply_bytes(data)


def test_only_a_200_is_good() -> None:
    assert not is_good(b"HTTP/1.1 402 Payment Required")
    assert not is_good(b"")


def test_a_request_survives_being_written(tmp_path: Path) -> None:
    given = request(turn_header="x-turn", turns=("one", "two"))
    assert Request.read(given.save(tmp_path / "request.json")) == given


def test_each_turn_is_a_request_of_its_own() -> None:
    one, two = request(turn_header="x-turn", turns=("one", "two")).http1()
    assert b"\r\nx-turn: one\r\n" in one
    assert b"\r\nx-turn: two\r\n" in two
    (plain,) = request().http1()
    assert plain.startswith(b"POST /v1/x HTTP/1.1\r\nhost: 127.0.0.1:8080\r\n")
    assert plain.endswith(b"content-length: %d\r\n\r\n" % len(request().body) + request().body)
