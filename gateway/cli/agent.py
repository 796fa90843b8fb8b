"""`caregate agent`: relay a unit's local HTTP service to the gateway.

Runs with the base dependencies alone. The agent itself is imported when it runs, so a bad argument is answered at once.
"""

from __future__ import annotations

import argparse
import sys

LOG_LEVELS = ("debug", "info", "warning", "error")
EXIT_USAGE = 2
EXAMPLE = """example:
  caregate agent --gateway wss://gateway.example --unit linden-clinic --key linden-clinic.key \\
      --target http://127.0.0.1:9102 --allow 'GET /fhir/*' --allow 'POST /fhir/Observation'
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "agent",
        help="relay a unit's local HTTP service to the gateway",
        description="Dials out to the gateway and relays what it asks for to one local HTTP service.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gateway", required=True, metavar="URL", help="https://HOST (or wss://); http:// for a test")
    parser.add_argument("--unit", required=True, metavar="ID", help="this unit's id at the gateway")
    parser.add_argument("--key", required=True, metavar="FILE", help="private key, PEM: Ed25519, P-256, P-384 or RSA")
    parser.add_argument("--kid", help="the key's id at the gateway; default: the unit's id")
    parser.add_argument("--target", required=True, metavar="URL", help="the local HTTP service")
    parser.add_argument(
        "--allow",
        action="append",
        metavar="'METHOD /path/*'",
        help="local paths that may be asked for, repeatable; a final * is any rest; default: all, with a warning",
    )
    parser.add_argument("--context-key", metavar="FILE", help="refuse requests without a valid x-caregate-context")
    parser.add_argument("--ca", metavar="FILE", help="certificates to trust instead of the system's, PEM")
    parser.add_argument("--connections", type=int, default=2, metavar="N", help="1 to 4, default 2")
    parser.add_argument("--grace", type=float, default=30.0, metavar="S", help="seconds for open requests at the end")
    parser.add_argument("--log-level", choices=LOG_LEVELS, default="info")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT, then finish what is open. 2: an argument is wrong."""
    from gateway.agent.settings import BadSettings, parse_settings

    try:
        settings = parse_settings(
            gateway=options.gateway,
            unit=options.unit,
            key=options.key,
            target=options.target,
            allow=options.allow,
            kid=options.kid,
            connections=options.connections,
            context_key=options.context_key,
            ca=options.ca,
            grace_s=options.grace,
        )
    except BadSettings as error:
        print(f"caregate agent: {error}", file=sys.stderr)
        return EXIT_USAGE
    from gateway.agent.process import serve

    return serve(settings, options.log_level)
