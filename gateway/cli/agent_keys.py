"""`caregate agent enrol` and `caregate agent rotate`: a unit's key pair, made at the site. Base dependencies alone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.agent.endpoint import Endpoint
    from gateway.agent.enrol import KeyDirectory, Registered

EXIT_FAILED, EXIT_USAGE = 1, 2


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare both commands."""
    enrol = subparsers.add_parser(
        "agent enrol",
        help="make a unit's key and register it with a one-time code",
        description="Makes an Ed25519 key pair in the key directory and registers its public half at the gateway with "
        "the code that `caregate unit enrol` printed there. If no answer came, run it again: the same key may.",
    )
    enrol.add_argument("--code", required=True, help="the one-time code; - reads it from standard input")
    enrol.set_defaults(act=_enrol)
    rotate = subparsers.add_parser(
        "agent rotate",
        help="replace a unit's registered key",
        description="Makes a new key, has the old one vouch for it, and uses it from now on. A running agent takes it "
        "up by itself. The old key retires at the gateway after the overlap.",
    )
    rotate.add_argument("--context", action="store_true", help="ask for a new key of x-caregate-context too")
    rotate.set_defaults(act=_rotate)
    for command in (enrol, rotate):
        command.add_argument("--gateway", required=True, metavar="URL", help="https://HOST; http:// for a test")
        command.add_argument("--unit", required=True, metavar="ID", help="this unit's id at the gateway")
        command.add_argument("--key-dir", required=True, type=Path, metavar="DIR", help="where unit.key is kept")
        command.add_argument("--ca", metavar="FILE", help="certificates to trust instead of the system's, PEM")
        command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from gateway.agent.enrol import EnrolmentFailed, KeyDirectory
    from gateway.agent.identity import BadKey
    from gateway.agent.settings import BadSettings, parse_gateway

    directory = KeyDirectory(options.key_dir)
    try:
        registered = options.act(parse_gateway(options.gateway), directory, options)
    except BadSettings as error:
        return _failed(str(error), EXIT_USAGE)
    except (EnrolmentFailed, BadKey) as error:
        return _failed(str(error), EXIT_FAILED)
    except OSError as error:
        return _failed(f"{error.filename or options.gateway}: {error.strerror or error}", EXIT_FAILED)
    print(f"registered {directory.key} as {registered.kid}")
    if directory.context.exists():
        changed = ", which is new" if registered.context_changed else ""
        print(f"the key of x-caregate-context is in {directory.context}{changed}")
    if registered.overlap_s is not None:
        print(f"the old key is good for {registered.overlap_s / 3600:g} h more")
    return 0


def _enrol(gateway: Endpoint, directory: KeyDirectory, options: argparse.Namespace) -> Registered:
    from gateway.agent.enrol import enrol

    code = sys.stdin.readline().strip() if options.code == "-" else options.code
    return enrol(gateway, options.unit, code, directory, options.ca)


def _rotate(gateway: Endpoint, directory: KeyDirectory, options: argparse.Namespace) -> Registered:
    from gateway.agent.enrol import rotate

    return rotate(gateway, options.unit, directory, context=options.context, ca_file=options.ca)


def _failed(reason: str, status: int) -> int:
    print(f"caregate agent: {reason}", file=sys.stderr)
    return status
