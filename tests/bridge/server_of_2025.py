"""An MCP server over standard input and output that knows no revision after 2025-06-18, as most that are installed.

Stands alone, so that it starts fast.
"""

from __future__ import annotations

import json
import sys

_ANSWERS = {
    "initialize": {
        "protocolVersion": "2025-06-18",
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "of-2025", "version": "1"},
    },
    "tools/list": {"tools": [{"name": "find", "inputSchema": {"type": "object"}}]},
}


def main() -> None:
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message:
            continue
        said: dict[str, object] = {"jsonrpc": "2.0", "id": message["id"]}
        if message["method"] == "tools/call":
            words = message["params"]["arguments"]["words"]
            if token := message["params"].get("_meta", {}).get("progressToken"):
                step = {"progressToken": token, "progress": 1}
                print(json.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": step}), flush=True)
            said["result"] = {"content": [{"type": "text", "text": f"found {words}"}]}
        elif message["method"] in _ANSWERS:
            said["result"] = _ANSWERS[message["method"]]
        else:
            said["error"] = {"code": -32601, "message": "Method not found"}
        print(json.dumps(said), flush=True)


main()
