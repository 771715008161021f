"""Sends spans to a collector: opentelemetry-sdk's batch processor over OTLP/http. Imported only with an endpoint.

The queue holds `FinishedSpan`s and the processor's own thread turns them into protobuf. The SDK's own exporter
takes 66 us to encode a span of sixteen attributes; see `span_bytes` for what is done in its place.
"""

from __future__ import annotations

import gzip
import http.client
import logging
import os
import ssl
import threading
import time
import urllib.parse
from typing import TYPE_CHECKING, cast

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.util.re import parse_env_headers

from meshd.telemetry.span_bytes import encode, encode_resource, encode_scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from meshd.telemetry.spans import FinishedSpan
    from meshd.telemetry.tally import Tally

QUEUE_MAX = 4096
BATCH_MAX = 128
"""Small, since encoding a batch holds the interpreter lock: 128 spans are half a millisecond, compiled."""
DELAY_MS = 1000
TIMEOUT_S = 10.0
ATTEMPTS_MAX = 3
BACKOFF_S = 0.5
RETRYABLE = frozenset({429, 502, 503, 504})
"""As the OTLP specification lists them."""
SETTINGS = "MESHD_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT"

_log = logging.getLogger("meshd.telemetry")


class EndpointError(ValueError):
    """The collector's address, or one of its settings, cannot be used; says which."""


class Collector:
    """One collector over one kept connection. Used by one thread."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise EndpointError(f"OTLP endpoint: {error}, in {SETTINGS}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EndpointError(
                f"OTLP endpoint: expected http or https and a host, such as http://127.0.0.1:4318, in {SETTINGS}"
            )
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        setting = _setting("COMPRESSION").strip().lower()
        if setting not in ("", "none", "gzip"):
            raise EndpointError(f"OTLP compression: {setting!r} is neither none nor gzip")
        self._is_gzip = setting == "gzip"
        self._headers = {"content-type": "application/x-protobuf", "user-agent": "meshd-otlp"}
        if self._is_gzip:
            self._headers["content-encoding"] = "gzip"
        self._headers.update(parse_env_headers(_setting("HEADERS"), liberal=True))
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            self._connection = http.client.HTTPSConnection(
                parts.hostname, port, timeout=timeout_s, context=_tls_context()
            )
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, port, timeout=timeout_s)
        self._is_closing = threading.Event()

    def send(self, body: bytes) -> str:
        """Post one request, again where the specification allows. Returns what went wrong, empty for nothing."""
        if self._is_gzip:
            body = gzip.compress(body, 1)
        problem = ""
        for attempt in range(ATTEMPTS_MAX):
            # When the process ends the first failure is the last.
            if attempt and self._is_closing.wait(BACKOFF_S * 2**attempt):
                break
            try:
                self._connection.request("POST", self._path, body, self._headers)
                reply = self._connection.getresponse()
                reply.read(65536)
                if not reply.isclosed():
                    self._connection.close()
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                problem = type(error).__name__
                continue
            if 200 <= reply.status < 300:
                return ""
            problem = f"status {reply.status}"
            if reply.status not in RETRYABLE:
                break
        return problem

    def stop_retrying(self) -> None:
        """Wake a pause between two tries and allow no more of them. From any thread."""
        self._is_closing.set()

    def close(self) -> None:
        """Drop the connection."""
        self._connection.close()


def _setting(name: str) -> str:
    return os.environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or os.environ.get(f"OTEL_EXPORTER_OTLP_{name}", "")


def _tls_context() -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=_setting("CERTIFICATE") or None)
        if _setting("CLIENT_CERTIFICATE"):
            context.load_cert_chain(_setting("CLIENT_CERTIFICATE"), _setting("CLIENT_KEY") or None)
    except (OSError, ssl.SSLError) as error:
        raise EndpointError(f"OTLP certificates: {error}") from None
    return context


class Exporter(SpanExporter):
    """Encodes batches and counts what was taken and what was not. Runs in the processor's thread."""

    def __init__(self, collector: Collector, tally: Tally, *, version: str, agent: str) -> None:
        self._collector = collector
        self._tally = tally
        given = {"service.version": version, "meshd.agent": agent}
        if not os.environ.get("OTEL_SERVICE_NAME") and "service.name" not in os.environ.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        ):
            given["service.name"] = "meshd"
        self._resource = encode_resource(Resource.create(given).attributes)
        self._scope = encode_scope("meshd", version)
        self._said_s = 0.0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send one batch. Never raises."""
        batch = cast("Sequence[FinishedSpan]", spans)
        problem = self._collector.send(encode(batch, self._resource, self._scope))
        if not problem:
            self._tally.spans_exported += len(batch)
            return SpanExportResult.SUCCESS
        self._tally.spans_failed += len(batch)
        now_s = time.monotonic()
        if now_s - self._said_s > 60.0 or not self._said_s:
            self._said_s = now_s
            _log.warning("the collector took no spans: %s (said once a minute)", problem)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Drop the connection."""
        self._collector.close()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing is held back here."""
        return True


class OtlpSink:
    """The bounded queue between the loop and the collector. What finds no room is dropped and counted."""

    def __init__(self, url: str, tally: Tally, *, version: str, agent: str, queue_max: int = QUEUE_MAX) -> None:
        self._tally = tally
        self._queue_max = queue_max
        self._put = 0
        self._collector = Collector(url)
        exporter = Exporter(self._collector, tally, version=version, agent=agent)
        # The processor's own queue has room to spare, so that the only drops are those counted in `put`: its own
        # would be logged, one by one, on the loop.
        self._processor = BatchSpanProcessor(
            exporter,
            max_queue_size=queue_max + 2 * BATCH_MAX,
            schedule_delay_millis=DELAY_MS,
            max_export_batch_size=BATCH_MAX,
        )

    def put(self, span: FinishedSpan) -> None:
        """Queue a span for the next batch. Never blocks."""
        tally = self._tally
        if self._put - tally.spans_exported - tally.spans_failed >= self._queue_max:
            tally.spans_dropped += 1
            return
        self._put += 1
        self._processor.on_end(cast("ReadableSpan", span))

    def flush(self) -> None:
        """Send what is queued now. Blocks; for tests and for the end of `exec`."""
        self._processor.force_flush()

    def close(self, timeout_s: float) -> None:
        """Send what is queued, for at most `timeout_s`, and let the rest go. Blocks."""
        self._collector.stop_retrying()
        # The processor would wait 30 s for a collector that is not there.
        ending = threading.Thread(target=self._processor.shutdown, name="meshd-spans-end", daemon=True)
        ending.start()
        ending.join(timeout_s)
