"""Scenarios are data: one YAML file holds a list of them. README.md says what each key means.

What is malformed is named with its file, its scenario and its key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

FOLDER = Path(__file__).resolve().parent
LEAD = "lead"
"""The agent that begins every workflow."""
LLM = "llm"
TOOL = "tool."

Via = Literal["post", "get", "mcp", "a2a", "grpc"]
Speech = str | dict[str, Any]


class MalformedError(Exception):
    """A data file is not as README.md says: the message names file, scenario and key."""


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _items(value: Any) -> Any:
    """`1..100` is the numbers from 1 to 100."""
    if isinstance(value, str):
        first, dots, last = value.partition("..")
        if not dots or not first.isdigit() or not last.isdigit():
            raise ValueError("must be a list, or a range such as 1..100")
        return [str(number) for number in range(int(first), int(last) + 1)]
    return value


Speeches = Annotated[list[Speech], BeforeValidator(_listed), Field(min_length=1)]
Numbers = Annotated[list[int], BeforeValidator(_listed), Field(min_length=1)]
Seconds = Annotated[list[float], BeforeValidator(_listed), Field(min_length=1)]
Items = Annotated[list[str | int], BeforeValidator(_items), Field(min_length=1)]


class Step(BaseModel):
    """One call, or (with `of`) several steps that belong together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    to: Annotated[str, Field(pattern=r"^(tool\.)?[a-z][a-z0-9_]*$")] | None = None
    of: list[Step] | None = Field(default=None, min_length=1)
    times: int = Field(default=1, ge=1, le=1000)
    each: Items | None = None
    parallel: bool = False

    via: Via | None = None
    path: str = "/run"
    says: Speeches = ["Go on with {workflow}."]
    answers: Speeches = ["Done."]
    status: Numbers = [200]
    fails: bool = False
    tokens: int = Field(default=600, ge=0)
    thinks: int = Field(default=0, ge=0)
    forgets: bool = False
    temperature: float | None = Field(default=None, ge=0, le=2)
    after_s: Seconds = [0.0]
    calls: list[Step] = []

    @model_validator(mode="after")
    def _is_one_thing(self) -> Step:
        if (self.to is None) == (self.of is None):
            raise ValueError("a step has either `to`, which makes it a call, or `of`, which holds steps")
        if self.of is not None and (alien := self.model_fields_set - {"of", "times", "each", "parallel"}):
            raise ValueError(f"`{min(alien)}` belongs to a call, not to a step with `of`")
        if self.to != LLM and (alien := self.model_fields_set & {"tokens", "forgets", "temperature"}):
            raise ValueError(f"`{min(alien)}` belongs to a call of the {LLM}")
        if self.calls and (self.to == LLM or (self.to or "").startswith(TOOL)):
            raise ValueError("`calls` belongs to a call of an agent")
        return self

    @property
    def is_agent(self) -> bool:
        """Whether it is a call from agent to agent."""
        return self.to is not None and self.to != LLM and not self.to.startswith(TOOL)


class Scenario(BaseModel):
    """What a workflow does. Honest ones have `steps`; runaways a `loop`, and what comes `before` it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=3)
    why: str = Field(min_length=3)
    budget: int = Field(default=200_000, ge=1)
    sidecars: Literal[1, 3] = 1
    wire: Literal["http", "grpc", "mixed"] = "http"
    context: Literal["passed", "dropped"] = "passed"
    real: bool = False
    """Run by the tests and by the second half of `make loops` too, with processes."""

    pace: float = Field(default=0.025, gt=0, le=1)
    """Seconds that a second of the scenario takes with processes."""

    missed: str = ""
    """Why a goal is missed here for now: it is printed and counted as such, and fails nothing."""

    steps: list[Step] = []
    polling: bool = False

    before: list[Step] = []
    loop: list[Step] = []
    shape: Literal["flat", "nested", "forwarded"] = "flat"
    stubborn: bool = False

    is_runaway: bool = Field(default=False, exclude=True)
    file: str = Field(default="", exclude=True)

    @model_validator(mode="after")
    def _fits(self) -> Scenario:
        if self.is_runaway and (not self.loop or self.steps or self.polling):
            raise ValueError("a runaway has `loop` (and `before`), not `steps` or `polling`")
        if not self.is_runaway and (not self.steps or self.loop or self.before or self.stubborn):
            raise ValueError("an honest workflow has `steps`, not `loop`, `before` or `stubborn`")
        if self.shape != "flat" and any(not step.is_agent or step.times != 1 or step.each for step in self.loop):
            raise ValueError(
                f"`loop`: one that is {self.shape} holds single calls of agents, each made by the one before"
            )
        return self

    @property
    def agents(self) -> list[str]:
        """All that take part, the lead first."""
        found = {LEAD: None}
        for step in _walk([*self.steps, *self.before, *self.loop]):
            if step.is_agent and step.to is not None:
                found[step.to] = None
        return list(found)

    @property
    def tools(self) -> list[str]:
        """The tools that are called, without their prefix."""
        every = _walk([*self.steps, *self.before, *self.loop])
        return list(dict.fromkeys(one.to.removeprefix(TOOL) for one in every if one.to and one.to.startswith(TOOL)))

    @property
    def period(self) -> int:
        """How many calls of the loop are one round of it."""
        return sum(step.times * len(step.each or [0]) for step in leaves(self.loop))

    def spoken_by(self, target: str) -> str:
        """Return in which JSON-RPC a target is called, `mcp` or `a2a`; empty where in none."""
        every = _walk([*self.steps, *self.before, *self.loop])
        return next((one.via for one in every if one.to == target and one.via in ("mcp", "a2a")), "")

    def speaks_grpc(self, agent: str) -> bool:
        """Say whether this agent is a gRPC server."""
        if self.wire == "mixed":
            return self.agents.index(agent) % 2 == 1
        return self.wire == "grpc"


def _walk(steps: list[Step]) -> list[Step]:
    found = []
    for step in steps:
        found.append(step)
        found += _walk(step.of or []) + _walk(step.calls)
    return found


def leaves(steps: list[Step]) -> list[Step]:
    """Return the calls that steps consist of, without those that callees make."""
    found: list[Step] = []
    for step in steps:
        found += [step] if step.of is None else leaves(step.of)
    return found


def parse(text: str, file: str, *, is_runaway: bool) -> list[Scenario]:
    """Read the scenarios of one file. Raises MalformedError."""
    try:
        found = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise MalformedError(f"{file}: {error}") from error
    if not isinstance(found, list) or not found:
        raise MalformedError(f"{file}: must be a list of scenarios")
    made = []
    for number, one in enumerate(found, 1):
        if not isinstance(one, dict):
            raise MalformedError(f"{file}: scenario {number}: must be a mapping")
        title = f"{file}: {one.get('name', f'scenario {number}')}"
        if alien := {"file", "is_runaway"} & one.keys():
            raise MalformedError(f"{title}: {min(alien)}: unknown key")
        try:
            made.append(Scenario.model_validate({**one, "file": file, "is_runaway": is_runaway}))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise MalformedError(f"{title}: {key}: {first['msg']}") from error
    return made


def load(folder: Path = FOLDER) -> list[Scenario]:
    """Read all scenarios, the runaways first. Raises MalformedError, also where two have one name."""
    found: list[Scenario] = []
    for kind in ("runaways", "honest"):
        for path in sorted((folder / kind).glob("*.yaml")):
            text = path.read_text("utf-8")
            found += parse(text, f"{kind}/{path.name}", is_runaway=kind == "runaways")
    names: dict[str, str] = {}
    for one in found:
        if one.name in names:
            raise MalformedError(f"{one.file}: {one.name}: name: also in {names[one.name]}")
        names[one.name] = one.file
    return found
