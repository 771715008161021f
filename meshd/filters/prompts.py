"""Prompts: what a request names by `prompt://` is put in its place, in the exact version that its workflow keeps to.

From here on the call is what the model will read: its body is read anew, so that tokens are bound on the whole text. A
request that names none is told by one search for a few bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.call import Ask, Wait
from meshd.dialects.rebounding import bound_anew
from meshd.engines.port import StoreError
from meshd.prompts.choosing import Unresolved
from meshd.prompts.finding import MARK, named_in, replaced
from meshd.prompts.noting import Used, note_prompt
from meshd.prompts.record import Damaged
from meshd.prompts.registry import Where
from meshd.prompts.template import VariableError, listed
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from meshd.call import Call
    from meshd.ledger import Ledger
    from meshd.prompts.finding import Named
    from meshd.prompts.registry import Registry, Resolved

_UNRESOLVED: Final = Reason.PROMPT_UNRESOLVED
_SLASH: Final = 0x2F
_GONE: Final = 410
_VARIABLES: Final = 422


class Prompts:
    """Rewrites `call.body` and `call.ask`; owes nothing."""

    __slots__ = ("registry",)

    name = "prompts"

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def keep_books(self, ledger: Ledger) -> None:
        """Keep prompts where other books are kept."""
        self.registry.store_of = ledger.store

    def admit(self, call: Call) -> Wait | None:
        """Raise Refused for a reference that is wrong, or cannot be resolved."""
        named = call.prompts
        if named is None:
            body = call.body
            # A byte is found twenty times as fast as a string, and many requests have no slash.
            if call.ask is None or body is None or _SLASH not in body or MARK not in body:
                return None
            named = named_in(call)
        if not named.places or named.used:
            return None
        where = _where(call)
        found = []
        try:
            for place in named.places:
                one = self.registry.known(where, place.reference)
                if one is None:
                    return Wait(self._resolve(call, named, where))
                found.append(one)
        except Unresolved as error:
            raise _refused(error) from None
        _put(call, named, found)
        return None

    async def _resolve(self, call: Call, named: Named, where: Where) -> None:
        try:
            found = [await self.registry.resolve(where, place.reference) for place in named.places]
        except Unresolved as error:
            raise _refused(error) from None
        except Damaged as error:
            raise Refused(_UNRESOLVED, f"A prompt cannot be used: {error}.", status=_GONE) from None
        except StoreError as error:
            raise Refused(Reason.STORE_UNAVAILABLE, f"The store of prompts cannot be asked: {error}.") from None
        _put(call, named, found)

    def explain(self, call: Call) -> str:
        """Say which versions the call uses."""
        named = call.prompts
        if named is None or not named.used:
            return "it names no prompt"
        ask = call.ask
        bound = f"; input at most {ask.input_bound:,} tokens with them" if ask is not None else ""
        return ", ".join(f"{used.name}@{used.selector} is {used}" for used in named.used) + bound


def _where(call: Call) -> Where:
    policy, context = call.policy, call.context
    workflow = context.workflow if context is not None else ""
    return Where(policy.prompts, policy.tenant, workflow, call.agent)


def _put(call: Call, named: Named, found: list[Resolved]) -> None:
    """Put what was found into the call. Raises Refused; then nothing has changed."""
    texts = {}
    spare = set(named.variables)
    for place, one in zip(named.places, found, strict=True):
        reference, template = place.reference, one.template
        foreign = [name for name in reference.variables if name not in template.variables]
        if foreign:
            raise _about(one, f"it has no variable {listed(foreign)}; it has: {listed(template.variables)}")
        spare.difference_update(template.variables)
        try:
            texts[place.path] = template.render({**named.variables, **reference.variables})
        except VariableError as error:
            raise _about(one, str(error)) from None
    if spare:
        raise _about(found[0], f"no prompt of the request has a variable {listed(sorted(spare))}")
    old = call.ask
    body: bytes | None = call.body
    assert old is not None
    assert body is not None
    body = replaced(body, texts)
    bytes_max = call.policy.limits.request_body_bytes_max
    if len(body) > bytes_max:
        raise Refused(
            Reason.TOO_LARGE,
            f"With its prompts the request's body is over {bytes_max} bytes; raise limits.request_body in the policy "
            "if it is meant",
        )
    ask: Ask = call.dialect.read(old.operation, body, call.path, call.headers)
    ask.model_granted = old.model_granted
    call.body, call.ask = body, ask
    if ask.model_granted is not None and ask.model_granted != ask.model:
        bound_anew(call, ask)
    for place, one in zip(named.places, found, strict=True):
        prompt = one.prompt
        selector = place.reference.selector.text
        note_prompt(call, Used(prompt.name, prompt.version, prompt.digest, selector, one.is_pinned))


def _about(one: Resolved, message: str) -> Refused:
    return Refused(_UNRESOLVED, f"The prompt {one.prompt.name}@{one.prompt.version}: {message}.", status=_VARIABLES)


def _refused(error: Unresolved) -> Refused:
    return Refused(_UNRESOLVED, str(error), status=_GONE if error.is_gone else None)
