"""A cloud service of the demo: FHIR terminology look-ups, a real HTTP service that Type A routes proxy to.

Run as a process: `python -m gateway.demo.terminology --port PORT`.
"""

from __future__ import annotations

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

CODES = {
    ("http://loinc.org", "718-7"): "Hemoglobin [Mass/volume] in Blood",
    ("http://loinc.org", "2345-7"): "Glucose [Mass/volume] in Serum or Plasma",
    ("http://loinc.org", "2160-0"): "Creatinine [Mass/volume] in Serum or Plasma",
    ("http://loinc.org", "4548-4"): "Hemoglobin A1c/Hemoglobin.total in Blood",
}


class Terminology(BaseHTTPRequestHandler):
    """GET /health and GET /terminology/CodeSystem/$lookup?system=&code=."""

    protocol_version = "HTTP/1.1"
    server_version = "terminology"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer a look-up."""
        target = urlsplit(self.path)
        if target.path == "/health":
            self._answer(200, {"status": "up"})
            return
        if target.path != "/terminology/CodeSystem/$lookup":
            self._answer(404, _outcome("not-found", "no such operation"))
            return
        query = parse_qs(target.query)
        display = CODES.get((query.get("system", ["http://loinc.org"])[0], query.get("code", [""])[0]))
        if display is None:
            self._answer(404, _outcome("not-found", "unknown code"))
            return
        self._answer(200, {"resourceType": "Parameters", "parameter": [{"name": "display", "valueString": display}]})

    def _answer(self, status: int, document: dict[str, object]) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/fhir+json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """No log: the gateway's is enough."""


def _outcome(code: str, text: str) -> dict[str, object]:
    return {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": code, "diagnostics": text}]}


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description="The demo's terminology service.")
    parser.add_argument("--port", type=int, required=True)
    ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), Terminology).serve_forever()


if __name__ == "__main__":
    main()
