"""`caregate selftest`: does a running gateway answer every role at every route as its document says?"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.cli.said import http_url, reason

if TYPE_CHECKING:
    from gateway.selftest.run import Outcome
    from gateway.selftest.tokens import Tokens

_SHOWN = 20


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "selftest",
        help="ask a running gateway for every route in every role: does it answer as its document says?",
        description="Sends role x route x own or other patient x own or other unit x state of the token, with made-up "
        "patients, and compares each answer with what the document says, read apart from the gateway's own code. What "
        "would read or write something of a person is left out and counted. Ends with 0 if all is as the document "
        "says, 1 if something is not, 2 if it could not be asked.",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the document that is in force")
    parser.add_argument("--gateway", required=True, type=http_url, metavar="URL", help="the public listener")
    parser.add_argument("--insecure", action="store_true", help="take any certificate")
    parser.add_argument("--role", action="append", default=[], help="only these; may be given more than once")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from gateway.selftest.model import World, cells
    from gateway.selftest.run import Gateway, Unreachable, run

    try:
        document, tokens = read(options.config)
    except OSError as error:
        print(f"caregate selftest: {reason(error)}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"caregate selftest: {options.config}: {error}", file=sys.stderr)
        return 2
    strange = sorted(set(options.role) - set(document["roles"]))
    if strange:
        print(f"caregate selftest: there is no role {', '.join(strange)}", file=sys.stderr)
        return 2
    units = [*document.get("units", {}), "selftest-unit", "selftest-other"]
    marks = (f"selftest-{secrets.token_hex(6)}", f"selftest-{secrets.token_hex(6)}")
    matrix = [cell for cell in cells(document) if not options.role or cell.role in options.role]
    gateway = Gateway(options.gateway, verify=not options.insecure)
    began_s = time.monotonic()
    try:
        found = run(document, matrix, World(marks, (units[0], units[1])), tokens, gateway, tell=_progress)
    except Unreachable as error:
        print(f"caregate selftest: {error}", file=sys.stderr)
        return 2
    finally:
        gateway.close()
    _report(document, len(matrix), found, time.monotonic() - began_s)
    return 1 if found.wrong else 0


def read(path: Path) -> tuple[dict[str, Any], Tokens]:
    """A document as plain data, and what signs tokens of its roles. Raises: OSError, ValueError with every fault."""
    from gateway.config.check import check
    from gateway.config.fault import WHOLE, step
    from gateway.config.load import read_text
    from gateway.config.parse import parse
    from gateway.config.secret import Secrets
    from gateway.config.source import is_mapping
    from gateway.config.source import read as read_source
    from gateway.selftest.tokens import Tokens

    raw = read_text(path)
    parsed = parse(raw)
    data = read_source(raw).data
    if parsed.document is None or parsed.faults or not is_mapping(data):
        raise ValueError("; ".join(map(str, parsed.faults)) or "is no document")
    data.setdefault("controllers", {})
    checked = check(parsed.document, Secrets(path.parent, os.environ))
    keys = {}
    for name, role in parsed.document.roles.items():
        place = step(step(step(WHOLE, "roles"), name), "keys")
        found = [checked.keyring.keys.get(step(place, index)) for index in range(len(role.keys))]
        signing = [key for key in found if key is not None and key.signing is not None]
        if signing:
            keys[name] = signing[0]
    issuers = {name: audience.issuer for name, audience in parsed.document.audiences.items()}
    return dict(data), Tokens(issuers, {name: role.audience for name, role in parsed.document.roles.items()}, keys)


def _progress(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def _report(document: dict[str, Any], total: int, found: Outcome, took_s: float) -> None:
    print(f"{'role':24} as the document says  otherwise")
    for role in document["roles"]:
        wrong = sum(1 for cell, _, _ in found.wrong if cell.role == role)
        print(f"{role:24} {found.right[role]:20}  {wrong:9}")
    for cell, wanted, status in found.wrong[:_SHOWN]:
        print(f"WRONG: {cell}: {status}, not {wanted}")
    if len(found.wrong) > _SHOWN:
        print(f"... and {len(found.wrong) - _SHOWN} more")
    for why, number in found.left.most_common():
        print(f"not sent: {number:6} cells: {why}")
    sent = sum(found.right.values()) + len(found.wrong)
    coverage = round(sent / total, 3) if total else 0.0
    print(f"{sent} of {total} cells sent ({coverage:.1%}) in {took_s:.0f} s")
    print("RESULT " + json.dumps({"cells": total, "sent": sent, "wrong": len(found.wrong), "coverage": coverage}))
