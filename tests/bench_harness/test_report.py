"""Tables: what a reader is told, and never told."""

import pytest

from bench import options, proof, report
from bench.figures import Bound, Goal
from bench.latency import finished as finished_latency
from bench.loads import LOAD_ROWS, finished
from bench.results import Cell, Row, Sample

HTTP = LOAD_ROWS[0]


def cell(*cpu_us: float, errors: int = 0, latencies_s: tuple[float, ...] = ()) -> Cell:
    samples = [Sample(1000, errors, 1.0, int(us * 1_000_000), latencies_s=list(latencies_s)) for us in cpu_us]
    return Cell(samples)


def test_the_figure_is_the_ratio_of_medians() -> None:
    row = finished(HTTP, {"meshd": cell(30, 40, 500), "envoy": cell(50, 1, 60), "nginx": cell(20, 20, 20)})
    assert row.figure == pytest.approx(0.8)
    assert row.ratios == pytest.approx({"envoy": 0.8, "nginx": 2.0})
    assert row.verdict == "met"


def test_a_single_failed_call_makes_the_row_invalid() -> None:
    row = finished(HTTP, {"meshd": cell(30, errors=1), "envoy": cell(50)})
    assert row.verdict == "INVALID"
    row = finished(HTTP, {"meshd": cell(30), "envoy": cell(50, errors=1)})
    assert row.verdict == "INVALID"
    assert any("envoy: 1 calls failed" in note for note in row.notes)


def test_a_peer_that_fails_is_not_compared_and_does_not_spoil_the_row() -> None:
    row = finished(HTTP, {"meshd": cell(30), "envoy": cell(50), "nginx": cell(20, errors=2)})
    assert "nginx" not in row.ratios
    assert row.verdict == "met"


def test_without_envoy_nothing_is_met() -> None:
    row = finished(HTTP, {"meshd": cell(30), "nginx": cell(20)})
    assert row.figure is None
    assert row.verdict == "not measured"
    table = report.ratios([row], {"envoy": "no envoy"})
    assert "absent" in table
    assert "| met" not in table


def test_added_latency_is_taken_from_the_direct_one_of_the_same_round() -> None:
    direct = Cell([Sample(1, 0, 1, 1, latencies_s=[1e-4]), Sample(1, 0, 1, 1, latencies_s=[9e-4])])
    ours = Cell([Sample(1, 0, 1, 1, latencies_s=[3e-4]), Sample(1, 0, 1, 1, latencies_s=[11e-4])])
    envoy = Cell([Sample(1, 0, 1, 1, latencies_s=[5e-4]), Sample(1, 0, 1, 1, latencies_s=[13e-4])])
    row = finished_latency({"direct": direct, "meshd": ours, "envoy": envoy})
    assert row.figure == pytest.approx(0.5)
    assert row.absolute["meshd"]["added_p50_us"] == pytest.approx(200)


def test_a_proxy_that_seems_to_take_time_away_gives_no_ratio() -> None:
    direct = cell(1, latencies_s=(5e-4,))
    row = finished_latency(
        {"direct": direct, "meshd": cell(1, latencies_s=(6e-4,)), "envoy": cell(1, latencies_s=(4e-4,))}
    )
    assert row.figure is None


def test_the_document_says_what_was_not_measured_and_why() -> None:
    row = Row("http", "a row", goal=Goal(Bound.AT_MOST, 1.0), notes=["meshd: did not answer"])
    text = report.document([row], {"date": "today"}, {"envoy": "1"}, {"nginx": "no nginx"}, "1 round")
    assert "absent, and so not beaten: nginx (no nginx)" in text
    assert "- http: meshd: did not answer" in text
    assert "0 of 1 goals met" in text


@pytest.mark.parametrize(("foreign", "is_warned"), [(0.05, False), (0.4, True)])
def test_a_noisy_run_says_so(foreign: float, is_warned: bool) -> None:
    noisy = Cell([Sample(1000, 0, 1.0, 10**7, foreign)])
    text = report.document([finished(HTTP, {"meshd": noisy, "envoy": cell(50)})], {}, {}, {}, "1 round")
    assert ("NOISY" in text) is is_warned


def test_columns_line_up() -> None:
    lines = report.grid(["a", "long head"], [["wide cell", "b"], ["c", "d"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("|---")


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0, "0"), (0.456, "0.46"), (12.34, "12.3"), (1234.5, "1,234"), (-3000, "-3,000")]
)
def test_numbers(value: float | None, text: str) -> None:
    assert report.number(value) == text


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    text = f"before\n{report.BEGIN}\nold \\1 table\n{report.END}\nafter\n"
    new = report.replaced(text, r"new \1 \g<0> table")
    assert new.startswith("before\n")
    assert new.endswith("\nafter\n")
    assert "old" not in new
    assert r"new \1 \g<0> table" in new
    assert report.replaced(new, "third").count(report.BEGIN) == 1
    with pytest.raises(ValueError, match="markers"):
        report.replaced("no markers", "table")


def test_metrics_are_summed_over_their_labels() -> None:
    text = '# HELP a b\n# TYPE a counter\na{x="1 2"} 3\na{x="2"} 4.5\nb 1e3\nnonsense\n\nc NaNo\n'
    assert proof.sums(text) == {"a": 7.5, "b": 1000.0}


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUNDS", "9")
    monkeypatch.setenv("PEERS", "LiteLLM, nginx")
    monkeypatch.setenv("SECONDS", "soon")
    given = options.read([])
    assert (given.rounds, given.seconds, given.peers) == (9, options.SECONDS, ("litellm", "nginx"))
    assert options.read(["--rounds", "2", "--rows", "http sse-5ms"]).rounds == 2
    assert options.read(["--quick"]).rounds == 1


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--seconds", "-1"], ["--seconds", "x"], ["--what"]])
def test_nonsense_on_the_command_line_ends_the_run(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options.read(arguments)
    assert ended.value.code == 2


def test_rows_are_named_or_matched() -> None:
    given = options.read(["--rows", "http-100kb,sse*"])
    assert given.wants_row("sse-0ms")
    assert given.wants_row("http-100kb")
    assert not given.wants_row("http")
