"""The echo application that also tells what reached it: behind a proxy, that is what the proxy made of the bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from echo import Echo, Start, whole

from gateway.errors import GatewayError

SEEN: list[list[Any]] = []


class Seen(Echo):
    """Every answer carries the id of the request it answers; `/seen` lists the ids with methods and paths."""

    def __call__(self, environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        request_id = environ["caregate.request_id"]

        def start(status: str, fields: list[tuple[str, str]], *rest: Any) -> Any:
            return start_response(status, [*fields, ("x-request-id", request_id)], *rest)

        if environ["caregate.path"] == "/seen":
            return whole(start, json.dumps(SEEN).encode())
        SEEN.append([request_id, environ["REQUEST_METHOD"], environ["caregate.path"], "served"])
        return super().__call__(environ, start)

    def refused(self, environ: dict[str, Any], error: GatewayError, status: int) -> None:
        for row in SEEN:
            if row[0] == environ["caregate.request_id"]:
                return
        SEEN.append([environ["caregate.request_id"], environ["REQUEST_METHOD"], "", error.code])


app = Seen()
