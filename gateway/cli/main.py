"""The `caregate` command: one sub-command a file, each imported only when it is called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from gateway import __version__
from gateway.cli.help_text import HelpText
from gateway.cli.said import reason

COMMANDS: dict[str, tuple[str, str]] = {
    "agent": ("gateway.cli.agent", "relay a unit's local HTTP service to the gateway"),
    "agent systemd-unit": ("gateway.cli.agent", "print a systemd unit for the agent"),
    "agent enrol": ("gateway.cli.agent_keys", "make a unit's key and register it with a one-time code"),
    "agent rotate": ("gateway.cli.agent_keys", "replace a unit's registered key"),
    "conformance": ("gateway.cli.conformance", "play the gateway against an agent: does it keep the relay protocol?"),
    "config": ("gateway.cli.config", "check the configuration document, reload it in a running gateway"),
    "audit": ("gateway.cli.audit", "verify the audit trail, export it"),
    "selftest": ("gateway.cli.selftest", "ask a gateway for every route in every role: does it keep its document?"),
    "canary": ("gateway.cli.canary", "send marked requests, and look for the marks where nothing personal may be"),
    "keys": ("gateway.cli.keys", "the keys of the roles: list, rotate, retire"),
    "revoke": ("gateway.cli.revoke", "refuse tokens by jti, session, subject, unit or moment"),
    "token": ("gateway.cli.token", "issue or verify a token"),
    "account": ("gateway.cli.account", "who may log in at the gateway, as whom, with what"),
    "unit": ("gateway.cli.unit", "let a unit register its key, revoke a unit or a key"),
    "units": ("gateway.cli.units", "the fleet: who is connected, since when, and why not"),
    "explain": ("gateway.cli.explain", "why a request is or was allowed or refused, step by step"),
    "workers": ("gateway.cli.workers", "list a gateway's workers, replace them one after another"),
    "db": ("gateway.cli.db", "prepare the database"),
    "serve": ("gateway.cli.serve", "run the gateway (gunicorn with gunicorn.conf.py)"),
    "demo": ("gateway.cli.demo", "run the demo platform, play its story"),
}
"""Sub-command of one or two words -> module with `add_parser(subparsers)`, help.

What begins with `agent` runs with the base dependencies alone. A module of several sub-commands declares all of them.
"""

EXIT_UNUSABLE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command; its parser sets `run(options) -> int`."""
    options = _parse(list(sys.argv[1:] if argv is None else argv))
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
    except (OSError, UnicodeError) as error:
        # What a command does not expect of its files and sockets is still no traceback.
        print(f"caregate {options.command}: {reason(error)}", file=sys.stderr)
        return EXIT_UNUSABLE


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="caregate", description="One front door for a healthcare platform.", formatter_class=HelpText
    )
    parser.add_argument("--version", action="version", version=f"caregate {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, prog="caregate")
    if " ".join(arguments[:2]) in COMMANDS:
        arguments[:2] = [" ".join(arguments[:2])]
    wanted = COMMANDS.get(arguments[0], ("", ""))[0] if arguments else ""
    if wanted:
        importlib.import_module(wanted).add_parser(subparsers)
    for name, (module, text) in COMMANDS.items():
        if module != wanted:
            subparsers.add_parser(name, help=text, formatter_class=HelpText)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
