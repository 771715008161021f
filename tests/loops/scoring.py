"""What became of a scenario, over all its seeds, and whether the goals are met."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.loops.playing import Record
    from tests.loops.reading import Scenario

PERIODS_MAX: Final = 3.0
"""Rounds of its loop that a runaway may go: those of all its calls that were let through."""
SHARE_MAX: Final = 0.05
"""Of the budget, spent since the loop began."""
REFUSED_MAX: Final = 0.01
"""Of the honest workflows."""


@dataclass
class Score:
    """One scenario; figures are the worst of its seeds."""

    scenario: Scenario
    workflows: int = 0
    refused: int = 0
    """Workflows in which a call was refused."""
    periods: float = 0.0
    share: float = 0.0
    why: Counter[str] = field(default_factory=Counter)
    """What refused the first call, over the workflows."""
    errors: list[str] = field(default_factory=list)

    def add(self, record: Record, share: float | None = None) -> None:
        """Count one workflow; `share` is what the books say, where there are any."""
        self.workflows += 1
        refusals = record.refusals
        self.refused += bool(refusals)
        if refusals:
            self.why[str(refusals[0])] += 1
        if self.scenario.is_runaway:
            self.periods = max(self.periods, record.periods)
            self.share = max(self.share, record.spent / self.scenario.budget if share is None else share)
        if record.error:
            self.errors.append(f"seed {record.seed}: {record.error}")

    @property
    def is_met(self) -> bool:
        """Whether a runaway was stopped in time, and an honest workflow that polls, or breaks, was let be."""
        if self.errors:
            return False
        if self.scenario.is_runaway:
            return self.refused == self.workflows and self.periods <= PERIODS_MAX and self.share <= SHARE_MAX
        return not (self.refused and self.scenario.polling)

    def row(self) -> str:
        """Return its line of the table."""
        why = ", ".join(f"{reason} {count}" for reason, count in self.why.most_common()) or "-"
        mark = (
            "" if self.is_met and (self.scenario.is_runaway or not self.refused) else f" MISSED {self.scenario.missed}"
        )
        errors = f" ERROR {self.errors[0]}" if self.errors else ""
        if self.scenario.is_runaway:
            return f"| {self.scenario.name} | {self.periods:.1f} | {self.share:.1%} | {why} |{mark}{errors}"
        return f"| {self.scenario.name} | {self.refused} of {self.workflows} | {why} |{mark}{errors}"


@dataclass
class Total:
    """All scenarios of one way to run them."""

    scores: list[Score] = field(default_factory=list)

    def table(self) -> str:
        """Return a table of the runaways and one of the honest workflows, and the sums."""
        lines = []
        if self.runaways:
            lines += ["| runaway | rounds | of the budget | stopped by |", "|---|---|---|---|"]
            lines += [one.row() for one in self.runaways]
        if self.honest:
            lines += ["", "| honest workflow | refused | by |", "|---|---|---|"]
            lines += [one.row() for one in self.honest]
        return "\n".join([*lines, "", *self.sums()])

    def sums(self) -> list[str]:
        """Return the figures beside their goals."""
        lines = []
        if self.runaways:
            met = sum(one.is_met for one in self.runaways)
            worst = max(one.periods for one in self.runaways)
            share = max(one.share for one in self.runaways)
            lines.append(
                f"Runaways: {met} of {len(self.runaways)} stopped within {PERIODS_MAX:.0f} rounds and {SHARE_MAX:.0%} "
                f"of the budget; the worst went {worst:.1f} rounds, and spent {share:.1%}."
            )
        if self.honest:
            lines.append(
                f"Honest: {self.refused} of {self.workflows} workflows refused, {self.refused_share:.2%} (goal: at "
                f"most {REFUSED_MAX:.0%}); of those that poll, {self.polls_refused} (goal: none)."
            )
        return lines

    @property
    def runaways(self) -> list[Score]:
        return [one for one in self.scores if one.scenario.is_runaway]

    @property
    def honest(self) -> list[Score]:
        return [one for one in self.scores if not one.scenario.is_runaway]

    @property
    def workflows(self) -> int:
        return sum(one.workflows for one in self.honest)

    @property
    def refused(self) -> int:
        return sum(one.refused for one in self.honest)

    @property
    def refused_share(self) -> float:
        return self.refused / self.workflows if self.workflows else 0.0

    @property
    def polls_refused(self) -> int:
        return sum(one.refused for one in self.honest if one.scenario.polling)

    def misses(self) -> list[str]:
        """Return a line for each goal that is missed."""
        found = [one.row() for one in self.scores if not one.is_met and (one.errors or not one.scenario.missed)]
        if self.refused_share > REFUSED_MAX:
            found.append(self.sums()[-1])
            found += [one.row() for one in self.honest if one.refused]
        return found
