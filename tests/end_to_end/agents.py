"""Agents that do as the call's body says, and pass the context on as the documentation tells them to."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from meshd_sdk import carried
from tests.end_to_end.sidecar import fetch


class Agent:
    """Called with `{"then": [url, url, ...]}`: calls the first with the rest, and answers with what it got.

    With `{"round": [url, url, ...]}` it calls the first with the list turned by one, for ever. A url of an LLM gets a
    chat request; `extra` are headers for the call that it makes.
    """

    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []
        """The header fields of each call, names in lower case."""
        agent = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                agent.seen.append(headers)
                status, text = agent.act(headers, json.loads(body))
                answer = json.dumps({"status": status, "text": text}).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def act(self, headers: dict[str, str], asked: dict[str, Any]) -> tuple[int, str]:
        if not (urls := asked.get("then") or asked.get("round")):
            return 200, "done"
        rest = {"then": urls[1:]} if "then" in asked else {"round": [*urls[1:], urls[0]]}
        return call(urls[0], {**carried(headers), **asked.get("extra", {})}, rest)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def call(url: str, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, str]:
    """Call an agent, or an LLM where the address is one of a chat."""
    if "/chat/completions" in url:
        body = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "go"}]}
    return fetch(url, "POST", {"content-type": "application/json", **headers}, json.dumps(body).encode())


def innermost(text: str) -> tuple[int, str]:
    """Unpack what each agent wrapped around the answer that it got: the last status and text."""
    status = 200
    while True:
        try:
            answer = json.loads(text)
        except ValueError:
            return status, text
        if not isinstance(answer, dict) or set(answer) != {"status", "text"}:
            return status, text
        status, text = answer["status"], answer["text"]
