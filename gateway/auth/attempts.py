"""Failed attempts, counted for all workers of the machine together: by address, by login."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastpath.bucket import BucketTable
from gateway.errors import ClientError, RateLimited
from gateway.http.admission import address_block

_NS = 1_000_000_000
_RULE = "token-failures"
MINUTE_S = 60
HOUR_S = 3_600


class Attempts:
    """Every attempt takes from a bucket of whoever makes it, one that succeeds gives back.

    SEC: taken before and not after, so that attempts at the same moment count too.
    """

    def __init__(
        self,
        table: BucketTable,
        failures: int,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        *,
        period_s: int = MINUTE_S,
        rule: str = _RULE,
        of: Callable[[str], str | bytes] = address_block,
    ) -> None:
        """Shapes: `failures` in `period_s`, and so many at once; `of` names a bucket, by default an address's."""
        self._table = table
        self._name = rule
        self._rule = table.key(rule)
        self._of = of
        self._burst = failures
        self._interval_ns = -(-period_s * _NS // failures)
        self._clock_ns = clock_ns

    @contextmanager
    def one(self, who: str) -> Iterator[None]:
        """An attempt, failed if it ends with an error of the client's. Raises: RateLimited."""
        key, now_ns = self._table.key(self._name, self._of(who)), self._clock_ns()
        admitted, _, wait_ns, reset_ns = self._table.take(key, self._interval_ns, self._burst, now_ns, self._rule)
        if not admitted:
            raise RateLimited(retry_after_s=-(-wait_ns // _NS))
        failed = False
        try:
            yield
        except ClientError:
            failed = True
            raise
        finally:
            if not failed:
                self._table.give_back(key, self._interval_ns, now_ns, reset_ns, self._rule)
