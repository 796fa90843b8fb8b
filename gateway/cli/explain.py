"""`caregate explain`: why a request would be, or was, allowed or refused."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gateway.cli.fleet import table
from gateway.cli.operator import Unusable, add_options, dsn_of, run_dir_of, unusable
from gateway.config.reload import ReloadFailed, ask_one

EXIT_REFUSED = 1
ANSWER_TIMEOUT_S = 10.0
CONSENT_TIMEOUT_S = 310.0
"""Longer than any deadline of a route."""
_MARKS = {"passed": "ok", "refused": "REFUSED", "not-reached": "-", "not-asked": "-"}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "explain",
        help="why a request is or was allowed or refused, step by step",
        description="Asks a running worker how it would decide a request; nothing is called and nothing taken from "
        "limits. With --request: how a past one was decided. Exit status 1: refused.",
    )
    parser.add_argument("method", nargs="?", metavar="METHOD")
    parser.add_argument("target", nargs="?", metavar="TARGET", help="path and query, as in the request line")
    parser.add_argument("--token", metavar="TOKEN", help="the bearer token; -: from standard input")
    parser.add_argument("--token-file", type=Path, metavar="FILE")
    parser.add_argument("--address", default="127.0.0.1", help="the caller's, default 127.0.0.1")
    parser.add_argument("--purpose", default="", metavar="CODE", help="its Purpose-Of-Use")
    parser.add_argument("--body", type=Path, metavar="FILE", help="its body, JSON of 32 KiB at most")
    parser.add_argument("--ask-consent", action="store_true", help="ask for the consent, as the request would")
    parser.add_argument("--request", metavar="ID", help="a past request, by its X-Request-Id, from the audit trail")
    parser.add_argument("--json", action="store_true", help="for machines")
    add_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    try:
        if options.request is not None:
            return _show_past(options)
        if options.method is None or options.target is None:
            raise Unusable("give METHOD and TARGET, or --request ID")
        asked: dict[str, Any] = {
            "method": options.method.upper(), "target": options.target, "address": options.address,
            "ask_consent": options.ask_consent,
        }  # fmt: skip
        if options.purpose:
            asked["purpose"] = options.purpose
        if options.body is not None:
            asked["body"] = options.body.read_text()
        token = _token(options)
        if token:
            asked["token"] = token
        timeout_s = CONSENT_TIMEOUT_S if options.ask_consent else ANSWER_TIMEOUT_S
        answer = ask_one(run_dir_of(options), "explain", timeout_s=timeout_s, **asked)
    except (Unusable, ReloadFailed) as error:
        return unusable("explain", error)
    except OSError as error:
        return unusable("explain", Unusable(f"{error.filename}: {error.strerror}"))
    if "error" in answer:
        return unusable("explain", Unusable(answer["error"]))
    if options.json:
        print(json.dumps({name: value for name, value in answer.items() if name not in ("ok", "pid")}, indent=2))
    else:
        _show(answer)
    return 0 if answer["allowed"] else EXIT_REFUSED


def _token(options: argparse.Namespace) -> str:
    """Raises: Unusable, OSError."""
    if options.token is not None and options.token_file is not None:
        raise Unusable("give --token or --token-file, not both")
    if options.token_file is not None:
        return str(options.token_file.read_text().strip())
    # NOTE: a token on the command line is seen in the list of processes; standard input and a file are not.
    return sys.stdin.read().strip() if options.token == "-" else str(options.token or "")  # noqa: S105 - no password


def _show(answer: dict[str, Any]) -> None:
    rows = [("STEP", "", "BY")]
    for step in answer["steps"]:
        detail = [step["detail"]] if step["detail"] else []
        facts = [f"{name}={_text(value)}" for name, value in step["facts"].items() if value not in (None, [], "")]
        rows.append((step["step"], _MARKS[step["outcome"]], "; ".join(detail + facts)))
    for line in table(rows):
        print(line.rstrip())
    version = f"version {answer['config_version']}, digest {answer['digest'][:12]}"
    if answer["allowed"]:
        would = answer["would"]
        print(f"allowed, {version}: goes to " + " ".join(str(value) for value in would.values()))
        for step in answer["steps"]:
            if step["step"] == "consent" and step["outcome"] == "not-asked" and step["detail"]:
                print(f"if the patient consents: {step['detail']}")
    else:
        print(f"refused by {answer['rule'] or answer['problem']}: {answer['status']} {answer['problem']}, {version}")


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _show_past(options: argparse.Namespace) -> int:
    """Raises: Unusable."""
    from gateway.store.operator_trail import OperatorTrail
    from gateway.store.unit_operator import OperatorError

    try:
        with OperatorTrail(dsn_of(options)) as trail:
            found = trail.request(options.request)
    except OperatorError as error:
        raise Unusable(str(error)) from None
    if found is None:
        raise Unusable(f"the trail has no request {options.request}, or not yet")
    if options.json:
        print(json.dumps(asdict(found), indent=2, default=lambda value: value.isoformat()))
    else:
        print("\n".join(table([(name, _text_of(value)) for name, value in asdict(found).items() if value != ""])))
    return EXIT_REFUSED if found.outcome == "refused" else 0


def _text_of(value: Any) -> str:
    return value.isoformat(" ", "milliseconds") if hasattr(value, "isoformat") else str(value)
