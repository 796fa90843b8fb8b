"""What the arbiter does before the first worker: the descriptor limit."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from gateway.boot import SPARE_FILES

HARD = 1_500


@pytest.mark.parametrize(
    ("connections", "soft", "said"),
    [(600, 600 + SPARE_FILES, False), (1_400, HARD, False), (2_000, HARD, True)],
    ids=["room to spare", "as far as it goes", "too few"],
)
def test_the_descriptor_limit_is_raised_or_named(connections: int, soft: int, said: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import resource, gateway.boot as b;"
         f"b.raise_file_limit({connections}); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (300, HARD)),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) == soft
    assert ("RLIMIT_NOFILE" in done.stderr) is said
