"""`caregate config import`: controllers made of a unit's OpenAPI document."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from gateway.config.load import read_text

_UNIT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")


def add_import_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "import",
        help="print controllers for the operations of a unit's OpenAPI document",
        description="Prints a `controllers:` section to put into the document and to go through: one controller for "
        "each path, by default as health data (phi). What no route can stand for is named and left out. Ends with 0, "
        "1 if the document is refused or nothing of it can be offered, 2 if it cannot be read.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="OpenAPI 3.0 or 3.1, YAML or JSON")
    parser.add_argument("--unit", required=True, type=_unit, help="the id of the unit whose service it describes")
    parser.add_argument("--prefix", metavar="PATH", help="comes before each path; default: /units/v1/UNIT")
    parser.add_argument("--audience", action="append", required=True, help="who may call; may be given more than once")
    parser.add_argument("--role", action="append", required=True, help="may be given more than once")
    parser.add_argument("--permission", default="", help="that a role must have as well")
    parser.add_argument(
        "--bind", action="append", default=[], type=_bind, metavar="PARAM=CLAIM",
        help="a parameter of a path that must be the caller's claim, wherever a path has it",
    )  # fmt: skip
    parser.add_argument("--no-phi", action="store_true", help="these operations are no health data")
    parser.set_defaults(run=run_import)


def run_import(options: argparse.Namespace) -> int:
    """Print the section; what was left out goes to standard error."""
    import yaml

    from gateway.openapi.importing import Terms, import_controllers
    from gateway.openapi.reading import Undescribed, read_description

    try:
        description = read_description(read_text(options.file))
    except OSError as error:
        print(f"{options.file}: {os.strerror(error.errno or 0)}", file=sys.stderr)
        return 2
    except Undescribed as refused:
        for fault in refused.faults:
            print(f"{options.file}:{fault.line or 1}: {fault}", file=sys.stderr)
        return 1
    terms = Terms(
        unit=options.unit,
        prefix=f"/units/v1/{options.unit}" if options.prefix is None else options.prefix.rstrip("/"),
        audiences=options.audience,
        roles=options.role,
        permission=options.permission,
        bind=dict(options.bind),
        phi=not options.no_phi,
    )
    made = import_controllers(description, terms)
    for path, reason in made.left_out.items():
        print(f"{options.file}: left out: {path}: {reason}", file=sys.stderr)
    if not made.controllers:
        print(f"{options.file}: nothing of it can be offered", file=sys.stderr)
        return 1
    yaml.safe_dump({"controllers": made.controllers}, sys.stdout, sort_keys=False, allow_unicode=True, width=120)
    return 0


def _unit(text: str) -> str:
    if not _UNIT.match(text):
        raise argparse.ArgumentTypeError("a unit's id: lower case letters, digits, -")
    return text


def _bind(text: str) -> tuple[str, str]:
    param, equals, claim = text.partition("=")
    if not (param and equals and claim):
        raise argparse.ArgumentTypeError("PARAM=CLAIM")
    return param, claim
