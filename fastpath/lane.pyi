from collections.abc import Callable
from typing import Any, final

from fastpath.bucket import BucketTable
from fastpath.cells import Cells
from fastpath.token import Verified

BEGUN: int
CHARGED_ADDRESS: int
NO_PREFLIGHT: int
IDENTIFIED: int
ROUTED: int
CHARGED: int
AUTHORIZED: int

@final
class Rule:
    limit: Any
    prefix: str
    number: int
    interval_ns: int
    burst: int
    opening: str
    policy: str
    policy_field: tuple[str, str]
    of_caller: bool
    shadow: bool
    def __init__(
        self, limit: object, prefix: str, number: int, interval_ns: int, burst: int, opening: str, policy: str
    ) -> None: ...

@final
class Charge:
    rule: Rule
    key: int | None
    def __init__(self, rule: Rule, key: int | None) -> None: ...

@final
class Grant:
    route: Any
    decision: Any
    charges: tuple[Charge, ...] | None
    resource: object
    responders: dict[str, Callable[..., None]]
    takes_fields: bool
    plain: bool
    hidden: bool
    told: bool
    line: bytes | None
    claims: bytes | None
    def __init__(self, route: object, decision: object) -> None: ...

@final
class Lane:
    snapshot: Any
    def __init__(
        self,
        policy: object,
        snapshot: object,
        buckets: BucketTable,
        cells: Cells,
        in_flight: int,
        reserved: tuple[str, ...],
        clock_s: Callable[[], float],
        clock_ns: Callable[[], int],
    ) -> None: ...
    def enter(self, env: dict[str, Any], target: object) -> int: ...

def caller_of(roles: dict[str, Any], verified: Verified, scopes: Callable[[Any, dict[str, Any]], object]) -> Any: ...
