"""moto's server, one request at a time: `python moto_alone.py PORT`.

By itself it answers each in a thread of its own, and two conditional writes of one item may then both find their
condition met: of 200 increments some were lost. DynamoDB writes an item one after the other, and so does this.
"""

from __future__ import annotations

import sys

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

if __name__ == "__main__":
    run_simple("127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_backend_app), threaded=False)
