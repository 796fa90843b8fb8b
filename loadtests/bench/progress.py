"""What the run says while it runs: one line that is written over, and lines that stay."""

from __future__ import annotations

import sys


def tell(text: str) -> None:
    """The progress line."""
    if sys.stderr.isatty():
        print(f"\r\033[K  {text}", end="", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """A line that stays."""
    tell("")
    print(text, file=sys.stderr, flush=True)
