"""Failed authentications by address, counted for all workers of the machine together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastpath.bucket import BucketTable
from gateway.errors import ClientError, RateLimited
from gateway.http.admission import address_block

_RULE = "token-failures"
_MINUTE_NS = 60_000_000_000


class Attempts:
    """Every attempt takes from the address's bucket, one that succeeds gives back.

    SEC: taken before and not after, so that attempts at the same moment count too.
    """

    def __init__(self, table: BucketTable, per_minute: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """Shapes: `per_minute` failures in a minute, and so many at once."""
        self._table = table
        self._rule = table.key(_RULE)
        self._burst = per_minute
        self._interval_ns = -(-_MINUTE_NS // per_minute)
        self._clock_ns = clock_ns

    @contextmanager
    def one(self, address: str) -> Iterator[None]:
        """An attempt, failed if it ends with an error of the client's. Raises: RateLimited."""
        key, now_ns = self._table.key(_RULE, address_block(address)), self._clock_ns()
        admitted, _, wait_ns, reset_ns = self._table.take(key, self._interval_ns, self._burst, now_ns, self._rule)
        if not admitted:
            raise RateLimited(retry_after_s=-(-wait_ns // 1_000_000_000))
        failed = False
        try:
            yield
        except ClientError:
            failed = True
            raise
        finally:
            if not failed:
                self._table.give_back(key, self._interval_ns, now_ns, reset_ns, self._rule)
