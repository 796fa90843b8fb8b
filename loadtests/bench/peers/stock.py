"""The baseline: stock `gunicorn -k gevent`, Falcon, PyJWT behind an LRU cache; the same policy in ordinary Python."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path

import falcon
import jwt

KEY = Path(os.environ["BENCH_KEY"]).read_text()
ALGORITHM, ROLE = os.environ["BENCH_ALG"], os.environ["BENCH_ROLE"]


@functools.lru_cache(maxsize=65_536)
def verify(token: str) -> dict[str, object]:
    """Verify once, remember."""
    claims: dict[str, object] = jwt.decode(
        token, KEY, algorithms=[ALGORITHM], audience=os.environ["BENCH_AUDIENCE"], issuer=os.environ["BENCH_ISSUER"]
    )
    return claims


class Buckets:
    """A token bucket a subject, in the process."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, burst
        self.levels: dict[object, tuple[float, float]] = {}

    def take(self, key: object) -> bool:
        now = time.monotonic()
        level, at = self.levels.get(key, (self.burst, now))
        level = min(self.burst, level + (now - at) * self.rate)
        self.levels[key] = (level - 1, now)
        return level >= 1


class Policy:
    """Middleware."""

    def __init__(self) -> None:
        self.buckets = Buckets(1e8, 1e8)

    def process_resource(self, req: falcon.Request, resp: falcon.Response, resource: object, params: object) -> None:
        try:
            claims = verify(req.get_header("Authorization", default="").removeprefix("Bearer "))
        except jwt.InvalidTokenError as error:
            raise falcon.HTTPUnauthorized from error
        if float(str(claims["exp"])) < time.time():
            raise falcon.HTTPUnauthorized
        if claims["role"] != ROLE:
            raise falcon.HTTPForbidden
        if not self.buckets.take(claims["sub"]):
            raise falcon.HTTPTooManyRequests


class Answer:
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = falcon.MEDIA_JSON
        resp.data = b'{"ok":true}'


app = falcon.App(middleware=[Policy()])
app.add_route("/policy", Answer())
