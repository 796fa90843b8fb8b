"""Route matching: how little the number of routes matters, and what a target's check costs.

The large and the small table are asked for as many different paths of one form, each in its own order; the peer of a
match is the same match in the table of ten.
"""

from __future__ import annotations

from random import Random

from fastpath.routes import RouteTable
from fastpath.target import canonical_path
from loadtests.bench_fastpath.row import Row, Work


def rows(fast: bool) -> list[Row]:
    asked = 10 if fast else 1_000
    few, many = table(10), table(100 if fast else 10_000)
    spread = paths(range(100 if fast else 10_000), asked)
    same = paths([3], 1) * asked
    return [
        Row(
            "routes match, 10,000 routes, one path",
            matching(many, same),
            "10 routes, one path",
            matching(few, same),
            limit_ratio=1.1,
            limit_ns=700,
        ),
        Row(
            "routes match, 10,000 routes, all paths",
            matching(many, spread),
            "10 routes, as many paths",
            matching(few, paths(range(10), asked)),
            limit_ns=700,
        ),
        Row("routes no match, 10,000 routes", matching(many, paths([-1], 1) * asked), limit_ns=700),
        Row("routes canonical target", checking(spread)),
        Row("routes target, normalised", checking([path.replace("pat", "p%61t") for path in spread])),
    ]


def table(size: int) -> RouteTable[int]:
    """Templates of the portal's form; every second one a GET, the others a POST of the next."""
    templates = [(("GET", "POST")[i % 2], f"/portal/v1/area-{i}/patients/{{patient}}/notes", i) for i in range(size)]
    Random(1).shuffle(templates)
    return RouteTable((method, template, i) for method, template, i in templates)


def paths(areas: range | list[int], count: int) -> list[str]:
    random = Random(2)
    return [f"/portal/v1/area-{random.choice(areas) // 2 * 2}/patients/pat-{i:04}/notes" for i in range(count)]


def matching(routes: RouteTable[int], asked: list[str]) -> Work:
    def run() -> None:
        match = routes.match
        for path in asked:
            match("GET", path)

    return Work(run, len(asked))


def checking(targets: list[str]) -> Work:
    def run() -> None:
        for target in targets:
            canonical_path(target)

    return Work(run, len(targets))
