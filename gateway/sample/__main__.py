"""`python -m gateway.sample [--host H] [--port N]`: serve the sample on /mcp.

Prints one JSON line, {"url": …, "port": …}, once it accepts connections.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys

import uvicorn

from gateway.lifeline import die_with_named_parent
from gateway.sample.server import build


def main() -> None:
    """Serve until SIGTERM, Ctrl-C or the end of the parent that GATEWAY_PARENT_PID names."""
    parser = argparse.ArgumentParser(prog="python -m gateway.sample", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="Default: a free one.")
    options = parser.parse_args()
    die_with_named_parent()
    try:
        listening = socket.create_server((options.host, options.port), backlog=128)
    except (OSError, OverflowError) as error:
        sys.exit(f"Error: cannot listen on {options.host}:{options.port}: {error}")
    with listening:
        port = listening.getsockname()[1]
        # The SDK answers only to the names of this machine, which is what keeps a web page that
        # somebody has open from reaching a server on loopback.
        app = build().streamable_http_app(host=options.host)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)
        found = {"url": f"http://{options.host}:{port}/mcp", "port": port}
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
