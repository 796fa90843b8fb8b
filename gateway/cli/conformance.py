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
    parser.add_argument("--quick", action="store_true", help="without the rules that take a minute")
    parser.add_argument(
        "--jobs", type=int, default=4, metavar="N", help="agents that run at once; default: %(default)s"
    )
    parser.add_argument("--list", action="store_true", help="print the rules and end")
    parser.add_argument("--agent-log", metavar="FILE", help="what the agent prints; default: thrown away")
    parser.add_argument("--agent", nargs=argparse.REMAINDER, metavar="CMD", help="the agent's command, last of all")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """0: every rule is kept, 1: one is broken, 2: an argument is wrong."""
    from gateway.conformance.rules import RULES

    if options.list:
        for name, rule in RULES.items():
            print(f"{name:<18}{rule.text}")
        return 0
    fault = _fault(options, set(RULES))
    if fault:
        print(f"caregate conformance: {fault}", file=sys.stderr)
        return 2
    return _look(options)


def _fault(options: argparse.Namespace, rules: set[str]) -> str:
    unknown = set(options.rule or ()) - rules
    if unknown:
        return f"no such rule: {', '.join(sorted(unknown))}"
    if not options.agent:
        return "--agent and a command are needed"
    return "" if options.jobs > 0 else "--jobs: 1 at least"


def _look(options: argparse.Namespace) -> int:
    from gateway.conformance.kit import Kit
    from gateway.conformance.rules import RULES
    from gateway.conformance.verdicts import verdicts

    names = options.rule or [name for name, rule in RULES.items() if not (options.quick and rule.slow)]
    log = Path(options.agent_log) if options.agent_log else None
    kits = [Kit(options.agent, log) for _ in range(min(options.jobs, len(names)))]
    broken = 0
    try:
        for name, fault in verdicts(names, kits):
            broken += bool(fault)
            said = f"BROKEN  {name:<18}{fault}\n        " if fault else f"kept    {name:<18}"
            print(f"{said}{RULES[name].text}", flush=True)
    except OSError as error:
        print(f"caregate conformance: the agent cannot be run: {reason(error)}", file=sys.stderr)
        return 2
    print(f"{len(names) - broken} of {len(names)} rules are kept")
    return EXIT_BROKEN if broken else 0
