"""`python -m loadtests.bench`: rows against peers, interleaved; ROWS=, SECONDS=, ROUNDS= choose what and how long.

Prints a table, saves `results/latest.json` and `results/latest.svg`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from gateway.store.embedded import EmbeddedError
from loadtests.bench.database import portal_database
from loadtests.bench.progress import say, tell
from loadtests.bench.report import Figure, as_document, judge, plot, remarks, table
from loadtests.bench.row import Row
from loadtests.bench.rows import Rows
from loadtests.bench.run import measure
from loadtests.bench.servers import Missing, debian_binary
from loadtests.interruption import interruptible

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> int:
    """Run the chosen rows."""
    seconds, rounds = float(os.environ.get("SECONDS", "5")), int(os.environ.get("ROUNDS", "5"))
    wanted = os.environ.get("ROWS", "").replace(",", " ").split()
    try:
        figures = _measured(wanted, seconds, rounds)
    except (Missing, EmbeddedError, LookupError) as error:
        say(str(error.args[0]))
        return 2
    tell("")
    bars = judge(figures)
    print(table(figures, bars))
    print("\n".join(remarks(figures)))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latest.json").write_text(json.dumps(as_document(figures, bars), indent=1) + "\n")
    (RESULTS / "latest.svg").write_text(plot(figures))
    return 0


def _measured(wanted: list[str], seconds: float, rounds: int) -> list[Figure]:
    """Raises: Missing, EmbeddedError if nothing can be measured here; LookupError for a row that there is not."""
    figures: list[Figure] = []
    debian_binary("wrk", "wrk")
    with tempfile.TemporaryDirectory(prefix="caregate-bench-") as folder:
        run = Path(folder)
        tell("starting PostgreSQL")
        with portal_database(run / "postgres") as portal:
            rows = Rows(run, portal)
            chosen = _chosen(rows.all(), wanted)
            upstream = rows.peers.nginx()
            try:
                for row in chosen:
                    figures += measure(rows, row, seconds, rounds)
            finally:
                upstream.stop()
    return figures


def _chosen(rows: list[Row], wanted: list[str]) -> list[Row]:
    names = [row.name for row in rows]
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise LookupError(f"no such row: {', '.join(unknown)}; there are {', '.join(names)}")
    return [row for row in rows if not wanted or row.name in wanted]


if __name__ == "__main__":
    sys.exit(interruptible(main))
