"""What a document says of prompts, made ready, and what of their folder is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from meshd.policy.problem import shown
from meshd.prompts.folder import read_folder
from meshd.prompts.terms import PromptTerms

if TYPE_CHECKING:
    from meshd.policy.model import Document
    from meshd.policy.report import Report

PROBLEMS_SHOWN_MAX = 20


def check_prompts(document: Document, report: Report) -> None:
    """Report what is wrong with the folder of prompts. It may be another where the document is used: it still loads."""
    folder = document.prompts.dir
    if folder is None:
        return
    here = ("prompts", "dir")
    if not Path(folder).is_dir():
        report.warn(here, f"there is no folder {shown(folder)} here")
        return
    problems = read_folder(folder).problems
    for problem in problems[:PROBLEMS_SHOWN_MAX]:
        report.warn(here, problem)
    if len(problems) > PROBLEMS_SHOWN_MAX:
        report.warn(here, f"and {len(problems) - PROBLEMS_SHOWN_MAX} more")


def prompt_terms(document: Document) -> PromptTerms:
    """Return what `prompts` says, of a document without problems."""
    section = document.prompts
    return PromptTerms(section.dir or "", frozenset(section.roles))
