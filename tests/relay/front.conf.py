"""What gunicorn.conf.py has of the memory that workers share."""

from __future__ import annotations

from typing import Any

from gateway import shared
from gateway.settings import Settings

settings = Settings.from_environ()


def on_starting(server: Any) -> None:
    shared.arbiter(settings)


def pre_fork(server: Any, worker: Any) -> None:
    worker.slot = shared.arbiter(settings).take_slot(worker.age)


def post_fork(server: Any, worker: Any) -> None:
    shared.slot = worker.slot


def child_exit(server: Any, worker: Any) -> None:
    shared.arbiter(settings).free_slot(worker.age)
