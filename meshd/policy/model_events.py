"""What a document says of events: who gets those of a topic as calls. See `meshd.policy.model`."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field

from meshd.filters.contract import SECTION
from meshd.filters.units import Duration

PATH_PATTERN = r"^/[!-~]{0,511}$"


def _digits(value: object) -> object:
    """A `sequence` is a text of digits, which a document may hold as a number."""
    return str(value) if type(value) is int else value


class SubscriptionSection(BaseModel):
    """A topic whose events go to an agent beside this sidecar, as a POST each."""

    model_config = SECTION

    topic: Annotated[str, Field(min_length=1, max_length=255)]
    """A topic; `*` stands for one word, a `>` at the end for one or more."""
    to: Annotated[str, Field(min_length=1, max_length=63)]
    """`app` for the agent behind `--app`, else an upstream of kind agent at an address of its own."""
    group: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    """Subscribers of one group share the events. Unset: `to`, or for `app` the name of the agent here."""
    path: Annotated[str, Field(pattern=PATH_PATTERN)] = "/events"
    """Where the agent takes them."""
    starts_at_oldest: bool = False
    """A new group begins with the oldest event that is kept, and not with what is published from then on."""
    starts_at: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """A new group begins with the first event that was kept at this moment (RFC 3339) or later."""
    starts_after: Annotated[str, Field(pattern=r"^[0-9]{1,20}$"), BeforeValidator(_digits)] | None = None
    """A new group begins behind the event with this `sequence`."""
    handling_time: Annotated[Duration, Field(ge=0.1, le=86_400)] = 60.0
    """Time to answer in. No answer is a retry, and the event may have been handled."""
    at_once: int = Field(default=8, ge=1, le=256)
    """Events that are under way at once."""


class Subscribing(BaseModel):
    """The key of a document that says so."""

    model_config = SECTION

    subscriptions: Annotated[tuple[SubscriptionSection, ...], Field(max_length=256)] = ()
    """Topics whose events go to agents that take calls."""
    park: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=255)], ...], Field(max_length=256)] = ()
    """Topics (globs) of whose events no further attempt is made once nothing was heard of one: a dead letter waits for
    whoever finds out what was done."""
