"""`caregate conformance`: does an agent keep the relay protocol? A verdict for every rule, and an exit status."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gateway.cli.said import reason

EXIT_BROKEN = 1
EXAMPLE = """example:
  caregate conformance --agent caregate agent --gateway {gateway} --unit {unit} --key {key} --target {target}

The command's words may name {gateway}, {unit}, {key} (PEM, Ed25519) and {target}; the environment has the same values
as CAREGATE_GATEWAY, CAREGATE_UNIT, CAREGATE_KEY and CAREGATE_TARGET. Everything stays on the loopback address.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "conformance",
        help="play the gateway against an agent: does it keep the relay protocol?",
        description="Runs an agent against a gateway and a local service of the kit, rule by rule.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rule", action="append", metavar="ID", help="only this one, repeatable; default: all")
    parser.add_argument("--list", action="store_true", help="print the rules and end")
    parser.add_argument("--agent-log", metavar="FILE", help="what the agent prints; default: thrown away")
    parser.add_argument("--agent", nargs=argparse.REMAINDER, metavar="CMD", help="the agent's command, last of all")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """0: every rule is kept, 1: one is broken, 2: an argument is wrong."""
    from gateway.conformance.rules import RULES

    if options.list:
        for name, (text, _) in RULES.items():
            print(f"{name:<18}{text}")
        return 0
    unknown = set(options.rule or ()) - set(RULES)
    if unknown or not options.agent:
        fault = f"no such rule: {', '.join(sorted(unknown))}" if unknown else "--agent and a command are needed"
        print(f"caregate conformance: {fault}", file=sys.stderr)
        return 2
    return _look(options)


def _look(options: argparse.Namespace) -> int:
    from gateway.conformance.kit import Kit
    from gateway.conformance.peer import Broken
    from gateway.conformance.rules import RULES

    kit = Kit(options.agent, Path(options.agent_log) if options.agent_log else None)
    broken = 0
    try:
        names = options.rule or list(RULES)
        for name in names:
            text, look = RULES[name]
            try:
                look(kit)
            except Broken as error:
                broken += 1
                kit.spent()
                print(f"BROKEN  {name:<18}{error}\n        {text}", flush=True)
            except OSError as error:
                print(f"caregate conformance: the agent cannot be run: {reason(error)}", file=sys.stderr)
                return 2
            else:
                print(f"kept    {name:<18}{text}", flush=True)
    finally:
        kit.close()
    print(f"{len(names) - broken} of {len(names)} rules are kept")
    return EXIT_BROKEN if broken else 0
