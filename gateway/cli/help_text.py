"""How the command's help is laid out."""

from __future__ import annotations

import argparse
import os
import sys


class HelpText(argparse.RawDescriptionHelpFormatter):
    """PERF: the width of the terminal without `shutil`: 0.7 MB that an agent would hold for ever."""

    def __init__(self, prog: str) -> None:
        try:
            columns = os.get_terminal_size(sys.__stdout__.fileno() if sys.__stdout__ else 1).columns
        except (OSError, ValueError):
            columns = 0
        super().__init__(prog, width=max(columns or 80, 40) - 2)
