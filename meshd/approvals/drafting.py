"""An approval as it is when it is asked: what people will read, without secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.approvals.question import shown, visible
from meshd.approvals.record import ARGUMENTS_BYTES_MAX, Approval

if TYPE_CHECKING:
    from meshd.approvals.question import Clean, Question

READ_BYTES_MAX: Final = 2 * ARGUMENTS_BYTES_MAX
"""Of arguments that are laid out for reading: more could not be shown."""
FIELD_CHARACTERS_MAX: Final = 1024


def draft(id: str, digest: str, question: Question, now_s: float, clean: Clean, sidecar: str) -> Approval:
    """Return a new approval of this id."""
    arguments = question.arguments
    text, hidden = shown(arguments[:READ_BYTES_MAX], clean)
    raw = text.encode("utf-8", "replace")
    fields: dict[str, str] = {}
    is_cut = len(raw) > ARGUMENTS_BYTES_MAX or len(arguments) > READ_BYTES_MAX
    for name, value in question.fields:
        written = value.decode("latin-1")
        seen = clean(name.decode("latin-1"), written)
        hidden += seen != written
        is_cut = is_cut or len(seen) > FIELD_CHARACTERS_MAX
        legible, before = visible(seen[:FIELD_CHARACTERS_MAX]), fields.get(name.decode("latin-1"))
        fields[name.decode("latin-1")] = legible if before is None else f"{before}, {legible}"
    operation = clean("", question.operation)
    hidden += operation != question.operation
    return Approval(
        id=id,
        digest=digest,
        asked_s=now_s,
        expires_s=now_s + question.lasts_s,
        lasts_s=question.lasts_s,
        workflow=clean("", question.workflow),
        agent=question.agent,
        kind=question.kind,
        target=question.target,
        operation=operation,
        quorum=question.quorum,
        approvers=question.approvers,
        owner=question.owner,
        model=question.model,
        tool=clean("", question.tool),
        definition=question.definition,
        fields=fields,
        arguments=raw[:ARGUMENTS_BYTES_MAX].decode("utf-8", "ignore"),
        arguments_bytes=len(arguments),
        is_cut=is_cut,
        hidden=hidden,
        also=question.also,
        # In one line, whatever is in it: it stands between lines that are meshd's own words.
        said=" ".join(visible(clean("", question.said)).split()),
        why=question.why,
        rule=question.rule,
        evidence=question.evidence,
        is_inferred=question.is_inferred,
        cost_tokens=question.cost_tokens,
        cost_microdollars=question.cost_microdollars,
        left_tokens=question.left_tokens,
        left_microdollars=question.left_microdollars,
        sidecar=sidecar,
        call=question.call,
    )
