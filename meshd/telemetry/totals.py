"""Everything since the start, for people."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class TargetTotals:
    """What one target has seen since the start."""

    kind: str
    calls: int = 0
    by_result: dict[str, int] = field(default_factory=dict)
    refused_by_reason: dict[str, int] = field(default_factory=dict)
    input_tokens: int = 0
    output_tokens: int = 0
    retries: int = 0


@dataclass(slots=True)
class Totals:
    """Everything since the start, for people: by target and by refusal reason."""

    calls: int = 0
    refused: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    targets: dict[str, TargetTotals] = field(default_factory=dict)
