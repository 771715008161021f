"""What the labels of its deployment say of the agent beside this sidecar: files of Kubernetes' downward API."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from meshd.discovery.entry import Entry, Origin, Sort
from meshd.discovery.labels import FILE_BYTES_MAX, intents_of, labels_in

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

log = logging.getLogger("meshd.discovery")


def labelled(agent: str, paths: Iterable[Path]) -> list[Entry]:
    """Return what the agent can be asked for by its labels: a skill each. A file that cannot be read is logged."""
    found: dict[str, None] = {}
    for path in paths:
        try:
            with path.open("rb") as file:
                text = file.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            log.warning("MESHD_LABELS: %s cannot be read: %s", path, error.strerror or error)
            continue
        if len(text) > FILE_BYTES_MAX:
            log.warning("MESHD_LABELS: %s has over %d bytes, and is passed over", path, FILE_BYTES_MAX)
            continue
        found |= dict.fromkeys(intents_of(labels_in(text.decode("utf-8", "replace"))))
    return [Entry(Sort.SKILL, agent, one, origin=Origin.POLICY, intents=(one,)) for one in found]
