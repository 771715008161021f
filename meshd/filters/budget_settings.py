"""What a rule of the policy sets for Budget."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from meshd.filters.contract import Settings
from meshd.filters.purse import FLOOR, OUTPUT_DEFAULT, QUEUE_S
from meshd.filters.units import Count, Duration, Money
from meshd.filters.window import PATTERN, length_s


def _window(text: str) -> str:
    length_s(text)
    return text


def _share(value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value <= 1:
        raise ValueError("expected a share of the limit above 0 and up to 1, such as 0.8")
    return float(value)


Share = Annotated[
    float,
    AfterValidator(_share),
    WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
]
"""A part of a limit."""


class DegradeSettings(Settings):
    """When a cheaper model takes the place of the one that is asked for, and which."""

    at: Share
    """Share of the limit that is spent or reserved when it begins."""
    to: str = Field(..., min_length=1, max_length=128, pattern=r"^[!-~]+$")
    """Model that is asked for from then on, on the same upstream. It must be allowed too."""


class BudgetSettings(Settings):
    """What a rule sets: how many tokens or dollars, for whom, how long, and what happens at the end of them."""

    tokens: Count | None = Field(None, ge=0)
    """Tokens, input and output together, that the account may spend in all."""
    dollars: Money | None = None
    """US dollars that the account may spend in all, by the prices of the models. Beside `tokens`, or in their place."""
    per: Literal["workflow", "agent", "model", "upstream", "tenant"] = "workflow"
    """What is counted together: all of one workflow, agent, model (as it is sent), upstream, or of this sidecar's
    `tenant`."""
    window: Annotated[str, AfterValidator(_window), WithJsonSchema({"type": "string", "pattern": PATTERN})] | None = (
        None
    )
    """How long the limit is for: `1h`, `1d`, `7d`, `30d`, `month`; in UTC, see the text. Unset: for good."""
    account: str = Field("", max_length=64, pattern=r"^[A-Za-z0-9._-]*$")
    """A name makes this budget an account of its own, apart from others of the same workflow or agent. Budgets
    without one count the same tokens, each against its own limit."""
    mode: Literal["fast", "durable"] = "fast"
    """`fast`: a killed process loses nothing, a crashed host the rest of the lease. `durable`: synced first."""
    output_default: Count = Field(OUTPUT_DEFAULT, ge=1)
    """Output cap in tokens for a request that sets none."""
    floor: Count = Field(FLOOR, ge=1)
    """Fewest output tokens worth clamping to; below that the call is refused."""
    warn_at: Share | None = None
    """Share of the limit from which replies say so in `x-meshd-budget-warning`."""
    degrade: DegradeSettings | None = None
    """A cheaper model, before the budget is used up."""
    on_exhausted: Literal["cut", "error"] = "cut"
    """How a stream that runs past its cap ends: as if the cap had been reached, or with an error event."""
    queue_s: Duration = Field(QUEUE_S, alias="queue", ge=0, le=60)
    """Most seconds to wait while only calls in flight stand in the way."""
    on_store_error: Literal["refuse", "pass"] = "refuse"
    """What to do while the books cannot be kept. `pass` lets calls through unaccounted."""

    @model_validator(mode="after")
    def _has_limit(self) -> Self:
        if self.tokens is None and self.dollars is None:
            raise ValueError("budget sets no limit: it needs tokens or dollars")
        return self
