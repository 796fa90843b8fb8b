"""The hooks of gunicorn.conf.py for the memory that workers share, without what it checks of a configuration."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from gateway import shared

_ours = runpy.run_path(str(Path(__file__).parents[2] / "gunicorn.conf.py"))
pre_fork, post_fork, child_exit = _ours["pre_fork"], _ours["post_fork"], _ours["child_exit"]


def on_starting(server: Any) -> None:
    shared.arbiter(_ours["settings"])
