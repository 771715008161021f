"""What the prompts of a call were resolved to. Spans, replies and traces read it from the call: see `note_prompt`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from meshd.call import Call

FIELD: Final = b"x-meshd-prompt"
"""Header field of the reply: `summarise@1.2.0`, with commas between several."""


class Used(NamedTuple):
    """One exact version of a prompt, as a call used it."""

    name: str
    version: str
    digest: str
    """SHA-256 over the text with its variables open, in hex."""
    selector: str
    """What was asked for: a range, a version or a label."""
    is_pinned: bool
    """The workflow keeps it."""

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


def note_prompt(call: Call, used: Used) -> None:
    """Write down on the call that it uses a version: `call.prompts.used` for span and trace, a field for the reply.

    `call.prompts` is there: it is `meshd.prompts.finding.Named`.
    """
    noted: tuple[Used, ...] = call.prompts.used
    if used in noted:
        return
    call.prompts.used = noted = (*noted, used)
    value = ", ".join(map(str, noted)).encode("ascii")
    call.reply_headers = [*(one for one in call.reply_headers if one[0] != FIELD), (FIELD, value)]
