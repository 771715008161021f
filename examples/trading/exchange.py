"""An exchange, as a tool that agents call: quotes and orders. It carries out whatever reaches it, as often as it does.

It shares no code with meshd. Its books, and the switch that halts trading, are on a second port.
"""

import contextlib
import json
import os
import secrets
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ORDERS: list[dict[str, Any]] = []
TRADING = threading.Event()
TRADING.set()
PRICE = 97
BODY_BYTES_MAX = 65536


class Desk(BaseHTTPRequestHandler):
    """`POST /quotes` waits while trading is halted; `POST /orders` is carried out."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        try:
            length = int(self.headers["content-length"])
            asked = json.loads(self.rfile.read(length)) if length <= BODY_BYTES_MAX else None
            symbol = asked["symbol"]
            if self.path == "/quotes":
                TRADING.wait()
                self.answer(200, {"symbol": symbol, "price": PRICE})
            elif self.path == "/orders":
                ORDERS.append({name: asked[name] for name in ("order", "symbol", "quantity")})
                self.answer(201, {"execution": secrets.token_hex(8), "price": PRICE})
            else:
                self.answer(404, {"error": "there are /quotes and /orders"})
        except (ValueError, KeyError, TypeError) as error:
            self.close_connection = True
            self.answer(400, {"error": f"expected a JSON object with order, symbol and quantity: {error!r}"})

    def answer(self, status: int, body: object) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def handle(self) -> None:
        """Take no notice of a client that hangs up."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


class Office(Desk):
    """`GET /books`; `POST /halt` and `POST /resume`."""

    def do_GET(self) -> None:
        self.answer(200, {"orders": ORDERS})

    def do_POST(self) -> None:
        (TRADING.clear if self.path == "/halt" else TRADING.set)()
        self.answer(200, {"is_trading": TRADING.is_set()})


def main() -> None:
    host, _, port = os.environ.get("EXCHANGE_LISTEN", "127.0.0.1:0").rpartition(":")
    servers = [ThreadingHTTPServer((host, int(port)), Desk), ThreadingHTTPServer(("127.0.0.1", 0), Office)]
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
    ports = [server.server_address[1] for server in servers]
    print(json.dumps({"event": "ready", "port": ports[0], "control_port": ports[1]}), flush=True)
    ended.wait()


if __name__ == "__main__":
    sys.exit(main())
