"""Runaways are stopped and honest work is not: every scenario against the detector alone, some with processes."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.loops import measure, world
from tests.loops.detecting import JumpingLoop, play
from tests.loops.reading import FOLDER, MalformedError, Scenario, Step, load, parse
from tests.loops.scoring import Score, Total
from tests.loops.texts import MAKERS, Filler

if TYPE_CHECKING:
    from pathlib import Path

SEEDS = 3
EVERY = load()
REAL = (
    "two agents ask each other for clarification",
    "a stuck model calls one tool with the same arguments",
    "three agents in a circle, HTTP and gRPC in turn",
    "three agents, a sidecar each",
    "a status is polled until it is done",
    "two rounds of review",
    "map over 100 item numbers, twenty at a time",
)
"""Of those that `make loops` runs with processes; together under 20 s."""


def named(name: str) -> Scenario:
    return next(one for one in EVERY if one.name == name)


def test_there_are_enough_of_both() -> None:
    kinds = Counter(one.is_runaway for one in EVERY)
    real = Counter(one.is_runaway for one in EVERY if one.real)
    assert min(kinds[True], kinds[False]) >= 45
    assert min(real[True], real[False]) >= 10
    assert {one.period for one in EVERY if one.is_runaway} >= {1, 2, 3, 4, 5, 6}
    assert sum(one.polling for one in EVERY) >= 8


def test_runaways_are_stopped_and_honest_work_is_not() -> None:
    total = Total(list(measure.alone(EVERY, SEEDS)))
    assert not total.misses(), "\n".join(total.misses())


@pytest.mark.parametrize("name", REAL)
async def test_the_same_with_processes(name: str) -> None:
    score = Score(named(name))
    record, share = await world.play(score.scenario, 1)
    score.add(record, share)
    assert score.is_met, score.row()
    assert score.scenario.is_runaway or not score.refused, score.row()


# ---------------------------------------------------------------------- the measure itself


HONEST = """
- name: three calls
  why: because
  steps:
    - {to: writer, times: 3, says: "{words 5}", answers: "{words 5}"}
"""
RUNAWAY = """
- name: round and round
  why: because
  loop:
    - {to: writer, thinks: 100, says: Again., answers: Again.}
"""


def test_what_a_scenario_says_is_what_is_played() -> None:
    record = play(parse(HONEST, "honest/x.yaml", is_runaway=False)[0], 1)
    assert [one.target for one in record.calls] == ["writer"] * 3
    assert len({one.body for one in record.calls}) == 3
    assert all(one.reached for one in record.calls)


def test_the_same_seed_says_the_same() -> None:
    one = parse(HONEST, "honest/x.yaml", is_runaway=False)[0]
    first, again, other = (play(one, seed) for seed in (1, 1, 2))
    assert [call.body for call in first.calls] == [call.body for call in again.calls]
    assert [call.body for call in first.calls] != [call.body for call in other.calls]


def test_a_number_in_a_mapping_may_be_a_number_in_json() -> None:
    filled = Filler(1, "w").fill({"n": "={cycle}", "text": "={item}", "m": "{cycle}"}, {"cycle": 3, "item": "x"}, 0.0)
    assert filled == {"n": 3, "text": "=x", "m": "3"}


def test_a_temperature_is_sent() -> None:
    text = HONEST.replace("to: writer", "to: llm, temperature: 0.5")
    call = play(parse(text, "honest/x.yaml", is_runaway=False)[0], 1).calls[0]
    assert call.body is not None
    assert json.loads(call.body)["temperature"] == 0.5


def test_what_goes_on_after_a_refusal_is_counted() -> None:
    text = RUNAWAY + "  stubborn: true\n"
    scenario = parse(text, "runaways/x.yaml", is_runaway=True)[0]
    record = play(scenario, 1)
    score = Score(scenario)
    score.add(record)
    assert len([one for one in record.calls if one.is_counted]) > 3
    assert record.spent == 100 * sum(one.reached and one.target == "llm" for one in record.calls)


def test_a_missed_goal_is_said() -> None:
    runaway = Score(parse(RUNAWAY, "runaways/x.yaml", is_runaway=True)[0], 1, 1, periods=3.5)
    slow = Score(runaway.scenario, 1, 1, periods=3.0, share=0.051)
    never = Score(runaway.scenario, 1, 0)
    fine = Score(runaway.scenario, 1, 1, periods=3.0, share=0.05)
    assert [one.is_met for one in (runaway, slow, never, fine)] == [False, False, False, True]
    honest = parse(HONEST, "honest/x.yaml", is_runaway=False)[0]
    polling = honest.model_copy(update={"polling": True})
    assert Total([Score(honest, 100, 1)]).misses() == []
    assert Total([Score(honest, 100, 2)]).misses()
    assert Total([Score(polling, 1000, 1)]).misses()


def test_a_clock_that_jumps() -> None:
    async def sleepers() -> list[float]:
        loop = asyncio.get_running_loop()
        begins_s = loop.time()

        async def sleep(seconds: float) -> float:
            await asyncio.sleep(seconds)
            return loop.time() - begins_s

        return list(await asyncio.gather(sleep(3600), sleep(60), sleep(60)))

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        assert runner.run(sleepers()) == pytest.approx([3600, 60, 60], abs=0.01)


# ---------------------------------------------------------------------- malformed data files


@pytest.mark.parametrize(
    ("text", "is_runaway", "said"),
    [
        ("- name: [", False, "honest/x.yaml: while parsing"),
        ("{}", False, "honest/x.yaml: must be a list of scenarios"),
        ("- 7", False, "honest/x.yaml: scenario 1: must be a mapping"),
        ("- why: because\n  steps: [{to: a}]", False, "scenario 1: name: Field required"),
        (HONEST.replace("says", "sais"), False, "three calls: steps.0.sais: Extra inputs"),
        (HONEST.replace("times: 3", "times: 0"), False, "three calls: steps.0.times: Input should be greater"),
        (HONEST.replace("times: 3", "each: 3-5"), False, "steps.0.each: Value error, must be a list, or a range"),
        (HONEST.replace("times: 3", "status: teapot"), False, "steps.0.status.0: Input should be a valid integer"),
        (HONEST.replace("to: writer", "of: [{to: a}]"), False, "steps.0: Value error, `answers` belongs to a call"),
        (HONEST.replace("to: writer", "to: tool.x, calls: [{to: a}]"), False, "`calls` belongs to a call of an agent"),
        (HONEST, True, "three calls: : Value error, a runaway has `loop`"),
        (RUNAWAY, False, "round and round: : Value error, an honest workflow has `steps`"),
        (RUNAWAY + "  shape: nested\n".replace("nested", "spiral"), True, "round and round: shape: Input should be"),
        (RUNAWAY.replace("to: writer,", "to: tool.x,") + "  shape: nested\n", True, "holds single calls of agents"),
        (RUNAWAY + "  is_runaway: true\n", True, "round and round: is_runaway: unknown key"),
    ],
)
def test_a_malformed_file_is_named_with_its_key(text: str, is_runaway: bool, said: str) -> None:
    file = "runaways/x.yaml" if is_runaway else "honest/x.yaml"
    with pytest.raises(MalformedError) as caught:
        parse(text, file, is_runaway=is_runaway)
    assert str(caught.value).startswith(file)
    assert said in str(caught.value)


def test_a_name_stands_once(tmp_path: Path) -> None:
    for kind, text in (("honest", HONEST), ("runaways", RUNAWAY.replace("round and round", "three calls"))):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "x.yaml").write_text(text)
    with pytest.raises(MalformedError, match=r"honest/x\.yaml: three calls: name: also in runaways/x\.yaml"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("speech", "said"), [("{wrods 3}", "no such placeholder"), ("{any moons}", "texts.yaml: moons: there is no such")]
)
def test_a_placeholder_that_is_none(speech: str, said: str) -> None:
    with pytest.raises(MalformedError, match=said):
        Filler(1, "w").fill(speech, {}, 0.0)


def test_every_placeholder_of_every_file_is_known() -> None:
    def filled(step: Any) -> None:
        for speech in (*step.says, *step.answers, step.path):
            Filler(1, "w").fill(speech, {"item": "x", "round": 1, "cycle": 1}, 0.0)
        for one in (*(step.of or ()), *step.calls):
            filled(one)

    for scenario in EVERY:
        for step in (*scenario.steps, *scenario.before, *scenario.loop):
            try:
                filled(step)
            except MalformedError as error:
                pytest.fail(f"{scenario.file}: {scenario.name}: {error}")


def test_the_format_is_described() -> None:
    text = (FOLDER / "README.md").read_text("utf-8")
    hidden = {"is_runaway", "file"}
    keys = {*Scenario.model_fields, *Step.model_fields} - hidden
    assert not [key for key in sorted(keys) if f"`{key}`" not in text]
    assert not [word for word in MAKERS if f"`{{{word}" not in text]
