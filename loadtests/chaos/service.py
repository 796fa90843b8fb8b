"""A unit's local service that journals what it runs: `python -m loadtests.chaos.service --port PORT --journal FILE`.

The id of a request is in `x-chaos-id`; its line is in the journal before the answer begins, and survives a kill. The
path says how the service behaves: /fast, /slow/MS, /large/BYTES.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    journal = -1

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        name = self.headers["x-chaos-id"]
        # One write of a file opened for appending: whole, and there even if the next instruction is the last.
        os.write(self.journal, f"{name} {len(body)}\n".encode())
        kind, _, number = self.path.strip("/").partition("/")
        time.sleep(int(number) / 1000 if kind == "slow" else random.random() * 0.02)
        answer = name.encode() + b"\n" + b"x" * (int(number) if kind == "large" else 0)
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """The journal says it all."""


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--journal", required=True)
    options = parser.parse_args()
    Handler.journal = os.open(options.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    Server(("127.0.0.1", options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
