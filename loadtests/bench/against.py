"""`python -m loadtests.bench.against COMMIT`: what a request of the policy row costs here and at another commit.

Both gateways run side by side on the server's core and are loaded in turns; SECONDS= and ROUNDS= as of `make bench`.
The other commit is a git worktree under `build/against/`, its kernels are built there, and it runs with this
environment's packages. Prints JSON: medians of `cpu_us` (microseconds of CPU a request) and their ratio, here to there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gateway.store.embedded import EmbeddedError
from loadtests.bench.database import portal_database
from loadtests.bench.progress import tell
from loadtests.bench.report import Figure
from loadtests.bench.row import Contender, Row
from loadtests.bench.rows import Rows
from loadtests.bench.run import WrongAnswer, measure
from loadtests.bench.servers import ROOT, Missing, debian_binary

HERE, THERE = "caregate", "caregate-there"


class Unbuilt(RuntimeError):
    """The other commit cannot be had; the message says why."""


def built(commit: str) -> tuple[str, Path]:
    """The full id of a commit, and where it stands with its kernels. Raises: Unbuilt."""
    full = _run(["git", "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"], ROOT)
    tree = ROOT / "build" / "against" / full[:12]
    if not tree.exists():
        _run(["git", "worktree", "prune"], ROOT)
        _run(["git", "worktree", "add", "--detach", str(tree), full], ROOT)
    _run([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], tree)
    return full, tree


def _run(argv: list[str], directory: Path) -> str:
    done = subprocess.run(argv, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unbuilt(f"{' '.join(argv[:3])}: {done.stderr.strip()[-400:] or 'no such commit'}")
    return done.stdout.strip()


def compared(commit: str, figures: Sequence[Figure]) -> dict[str, object]:
    """The answer. Units: microseconds of CPU a request."""
    cpu_us = {figure.server: figure.cpu_us for figure in figures}
    return {
        "row": figures[0].row, "against": commit, "cpu_us": {"here": cpu_us[HERE], "there": cpu_us[THERE]},
        "ratio": round(cpu_us[HERE] / cpu_us[THERE], 3),
    }  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Compare with the one commit that is named."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    seconds, rounds = float(os.environ.get("SECONDS", "5")), int(os.environ.get("ROUNDS", "5"))
    try:
        debian_binary("wrk", "wrk")
        commit, tree = built(arguments[0])
        found = _measured(commit, tree, seconds, rounds)
    except (Unbuilt, Missing, EmbeddedError, WrongAnswer) as error:
        print(error, file=sys.stderr)
        return 2
    tell("")
    print(json.dumps(found))
    return 0


def _measured(commit: str, tree: Path, seconds: float, rounds: int) -> dict[str, object]:
    """Raises: Missing, WrongAnswer if one of the two does not start, or answers wrongly."""
    with (
        tempfile.TemporaryDirectory(prefix="caregate-against-") as folder,
        portal_database(Path(folder) / "postgres") as portal,
    ):
        rows = Rows(Path(folder), portal)
        row = Row("policy_rs256", "rs256", (
            Contender(HERE, lambda: rows.ours.start(HERE, bare=True), "/policy"),
            Contender(THERE, lambda: rows.ours.start(THERE, bare=True, root=tree), "/policy"),
        ))  # fmt: skip
        figures = measure(rows, row, seconds, rounds)
    if len(figures) != 2:
        raise Missing("one of the two did not start")
    return compared(commit, figures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
