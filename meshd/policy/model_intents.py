"""What a document says of finding an agent by what is wanted: see `meshd.policy.model`."""

from typing import Annotated

from pydantic import BaseModel, Field

from meshd.discovery.ranking import MARGIN, THRESHOLD
from meshd.filters.contract import SECTION
from meshd.filters.units import Duration

Example = Annotated[str, Field(min_length=1, max_length=256)]


class SemanticSection(BaseModel):
    """How events find agents that say what is wanted, and no topic that anybody waits for."""

    model_config = SECTION

    agents: int = Field(default=3, ge=1, le=16)
    """Most agents that one event goes to: the best of those from `threshold` on."""
    router: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """An upstream of kind agent that is asked who gets each, as a POST to `/route`. Unset: meshd decides by itself."""
    timeout: Annotated[Duration, Field(gt=0, le=3600)] = 30.0
    """Time that the router has to answer in; then the event is tried again."""


class IntentsSection(BaseModel):
    """How calls to `/intent/WORDS` find an agent."""

    model_config = SECTION

    fallback: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """An upstream of kind agent that gets what no other agent is found for. Unset: such a call is refused, with the
    names that come nearest."""
    threshold: float = Field(default=THRESHOLD, gt=0, le=1)
    """Score from which on an agent is chosen. What `examples` are learned to be sure of comes above it."""
    margin: float = Field(default=MARGIN, ge=0, le=1)
    """By how much of a score the best must lead. Those that are nearer share the call, where `fan_out` lets them, else
    it goes to `fallback`."""
    fan_out: int = Field(default=1, ge=1, le=16)
    """Most agents that one POST goes to where several are as good. A smaller number in the caller's `x-meshd-fan-out`
    holds in its place."""
    events: SemanticSection | None = None
    """Events on the topic `mesh.intent` are led by this sidecar to agents whose intents they fit. Unset: not by this
    one."""
    examples: Annotated[
        dict[
            Annotated[str, Field(min_length=1, max_length=256)], Annotated[tuple[Example, ...], Field(max_length=256)]
        ],
        Field(max_length=256),
    ] = {}
    """What people would say, by the name of an upstream or by an intent of one. With three for each of two, and better
    ten, a router is learned from them while the document loads."""


class Intended(BaseModel):
    """The key of a document that says so."""

    model_config = SECTION

    intents: IntentsSection = IntentsSection()
    """How calls find an agent that name none, but say what they want."""
