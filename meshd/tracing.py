"""The trace of a running sidecar: opened as its configuration says, and told to all who write into it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from meshd.engines.port import StoreError
from meshd.telemetry import redact
from meshd.telemetry.sources import TraceReading
from meshd.trace.opening import open_trace

if TYPE_CHECKING:
    from meshd.config import Config
    from meshd.mesh_key import MeshKeys
    from meshd.telemetry.telemetry import Telemetry
    from meshd.trace.recorder import Recorder

log = logging.getLogger("meshd")


def open_for(config: Config, keys: MeshKeys, telemetry: Telemetry) -> Recorder | None:
    """Open the trace, and let `telemetry` write into it; None where it is off, or cannot be kept and need not be.

    Raises StoreError where it cannot be, and the configuration says that it must: `durable`.
    """
    if config.trace == "off":
        return None
    try:
        recorder = open_trace(
            config.home,
            keys=keys,
            version=telemetry.version,
            clean=redact.text,
            is_durable=config.trace == "durable",
            keep_s=config.trace_keep_s,
            keep_bytes=config.trace_keep_bytes,
        )
    except StoreError as error:
        if config.trace == "durable":
            raise
        log.error("no trace is kept: %s", error)
        return None
    attach(recorder, telemetry)
    return recorder


def attach(recorder: Recorder, telemetry: Telemetry) -> None:
    """Let telemetry write into a trace, and its spans name the events of it."""
    telemetry.provenance.trace = recorder
    tracer = telemetry.tracer
    tracer.events, recorder.has_collector = recorder.prefix, tracer.has_sink

    def read() -> TraceReading:
        kept = recorder.retention.kept_bytes if recorder.retention is not None else 0
        return TraceReading(recorder.log.events, recorder.log.bytes_written, recorder.missed, kept)

    telemetry.sources.trace = read
