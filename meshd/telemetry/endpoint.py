"""Where spans go, as the environment says. Imports nothing, so that who has no collector pays nothing."""

from __future__ import annotations

import os


def traces_url() -> str:
    """Return the collector's URL for traces from the environment, empty where none is set.

    MESHD_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_ENDPOINT are base addresses, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is
    used as it stands, as the OTLP exporter specification has it.
    """
    whole = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
    base = os.environ.get("MESHD_OTLP_ENDPOINT") or ("" if whole else os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", ""))
    return base.rstrip("/") + "/v1/traces" if base else whole
