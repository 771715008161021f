"""nginx, one worker, keep-alive to the upstream, answers unbuffered, as one sets it before an LLM API."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from bench.peers.contract import ALL_WIRES, AbsentError, Address, Place, Running, Wire, first_line, start_listener
from bench.processes import free_port

if TYPE_CHECKING:
    from pathlib import Path

_PATHS = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
_CONFIG = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr error;
worker_rlimit_nofile 20000;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600s; client_max_body_size 64m;
  client_body_buffer_size 256k; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
  proxy_read_timeout 600s; tcp_nodelay on;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  {servers}
}}
"""
_SERVER = """
  upstream {wire} {{ server 127.0.0.1:{upstream}; keepalive 2048; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{port} {listen} backlog=4096; location / {{ {location} }} }}
"""
_TLS = (
    "proxy_pass https://tls; proxy_ssl_verify on; proxy_ssl_trusted_certificate {ca}; proxy_ssl_name localhost; "
    "proxy_ssl_session_reuse on;"
)


class Nginx:
    """nginx."""

    name = "nginx"
    wires = ALL_WIRES

    def _binary(self) -> str:
        found = shutil.which("nginx", path=_PATHS)
        if not found:
            raise AbsentError("no nginx (Debian: nginx)")
        return found

    def version(self) -> str:
        """As it says."""
        return first_line([self._binary(), "-v"]).rpartition("/")[2]

    def start(self, place: Place) -> Running:
        """One server block for each wire."""
        addresses = {wire: Address(free_port()) for wire in Wire if wire is not Wire.TLS or place.ca}
        locations = {
            Wire.HTTP: "proxy_pass http://http;",
            Wire.TLS: _TLS.format(ca=place.ca),
            Wire.H2: "grpc_pass grpc://h2;",
        }
        servers = "".join(
            _SERVER.format(
                wire=wire.value,
                upstream=place.upstream[wire],
                port=address.port,
                listen="http2" if wire is Wire.H2 else "",
                location=locations[wire],
            )
            for wire, address in addresses.items()
        )
        file = place.folder / "nginx.conf"
        file.write_text(_CONFIG.format(folder=place.folder, servers=servers))
        command: list[str | Path] = [self._binary(), "-c", file, "-p", place.folder, "-e", "stderr"]
        return start_listener(self.name, command, place, addresses)
