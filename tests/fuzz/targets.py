"""The fuzz targets of this folder, which are scripts: to call here, and to run under atheris."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def load(name: str) -> Any:
    """The module `fuzz_NAME`."""
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", HERE / f"fuzz_{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_under_atheris(name: str, runs: int, directory: Path, *arguments: str) -> None:
    """Fuzz for so many runs, with seeds from `arguments`; what is found is written to `directory`."""
    pytest.importorskip("atheris")
    done = subprocess.run(
        [sys.executable, str(HERE / f"fuzz_{name}.py"), *arguments, f"-runs={runs}", "-seed=1"],
        cwd=directory, env={**os.environ, "PYTHONPATH": str(HERE.parents[1])}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"Done {runs} runs" in done.stderr
