"""docs/sdk.md says all that there is to know: every setting, error and name, and code that compiles."""

from __future__ import annotations

import inspect
import re

import pytest

from meshd.policy.upstreams import RESERVED_NAMES
from meshd_sdk import ctx, errors, settings
from meshd_sdk.sync import Agent
from tests.repository.tree import ROOT

TEXT = (ROOT / "docs" / "sdk.md").read_text()
ERRORS = [name for name, one in vars(errors).items() if inspect.isclass(one) and issubclass(one, errors.MeshError)]


def test_every_setting_is_there() -> None:
    named = set(re.findall(r"MESHD_[A-Z]+", (ROOT / "sdk" / "meshd_sdk" / "settings.py").read_text())) - {"MESHD_"}
    assert len(named) == 4
    assert {name for name in named if f"`{name}`" not in TEXT} == set()
    for default in (settings.API_DEFAULT, settings.STOP):
        assert f"`{default}`" in TEXT


@pytest.mark.parametrize("page", ["sdk", "session", "policy"])
def test_the_names_that_sidecars_keep_for_themselves_are_there(page: str) -> None:
    assert set(settings.TAKEN) == RESERVED_NAMES
    said = "`, `".join(settings.TAKEN[:-1]) + f"` and `{settings.TAKEN[-1]}` are taken"
    assert f"`{said}" in (ROOT / "docs" / f"{page}.md").read_text()


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_there(name: str) -> None:
    assert f"`{name}`" in TEXT


@pytest.mark.parametrize("reason", [*errors.REFUSALS, *errors.FAILURES])
def test_every_reason_is_there(reason: str) -> None:
    assert f"`{reason}`" in TEXT


@pytest.mark.parametrize("name", [name for name in vars(ctx.Ctx) if not name.startswith(("_", "record"))])
def test_everything_that_a_context_can_do_is_there(name: str) -> None:
    assert re.search(rf"\b{name}\b", TEXT)


@pytest.mark.parametrize("name", [name for name in dir(Agent) if not name.startswith("_")])
def test_everything_that_an_agent_can_do_is_there(name: str) -> None:
    assert re.search(rf"\b{name}\b", TEXT)


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
def test_code_compiles(block: str) -> None:
    compile(block, "docs/sdk.md", "exec")


def test_the_words_on_arguments_are_those_that_come() -> None:
    from meshd_sdk.handlers import Tool

    async def search(ctx: object, query: str, limit: int = 10) -> list[str]:
        return []

    with pytest.raises(errors.ArgumentsInvalid) as caught:
        Tool(search, {}).arguments({"limit": "ten", "qury": "x"})
    assert f"```text\n{caught.value}\n```" in TEXT
