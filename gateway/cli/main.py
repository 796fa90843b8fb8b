"""The `caregate` command: one sub-command a file, each imported only when it is called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS: dict[str, tuple[str, str]] = {
    "agent": ("gateway.cli.agent", "relay a unit's local HTTP service to the gateway"),
    "config": ("gateway.cli.config", "check the configuration document, reload it in a running gateway"),
    "token": ("gateway.cli.token", "issue or verify a token"),
    "db": ("gateway.cli.db", "prepare the database"),
    "serve": ("gateway.cli.serve", "run the gateway (gunicorn with gunicorn.conf.py)"),
    "demo": ("gateway.cli.demo", "run the demo platform, play its story"),
}
"""Sub-command -> module with `add_parser(subparsers)`, help; `agent` runs with the base dependencies alone."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command; its parser sets `run(options) -> int`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="caregate", description="One front door for a healthcare platform.")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    wanted = arguments[0] if arguments else None
    for name, (module, text) in COMMANDS.items():
        if name == wanted:
            importlib.import_module(module).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=text)
    options = parser.parse_args(arguments)
    try:
        code = int(options.run(options) or 0)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # NOTE: the interpreter flushes once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
