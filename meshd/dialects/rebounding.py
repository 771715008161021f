"""What a request costs at most with another model in its place: tokenizers, windows and images differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshd.call import Ask, Call


def bound_anew(call: Call, ask: Ask) -> None:
    """Bound the input for the model that is now sent, by reading the request as it will be forwarded.

    Raises Refused where no path can carry the model's name. A call whose body was not read keeps its bound.
    """
    dialect, body = call.dialect, call.body
    if body is None or dialect is None:
        return
    again: Ask = dialect.read(ask.operation, dialect.rewrite(ask, body), dialect.redirect(ask, call.path), call.headers)
    ask.input_bound, ask.bound_by, ask.unbounded = again.input_bound, again.bound_by, again.unbounded
