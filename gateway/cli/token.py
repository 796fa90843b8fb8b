"""`caregate token`: make a token to try something with, or see why the gateway refuses one.

Both decide by the verifier the gateway runs: `fastpath.token` and the claim checks of `gateway.auth.claims`.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import orjson

from fastpath.strict import decode_base64url, decode_object
from fastpath.token import Key, TokenError, Verifier
from gateway.auth.claims import CHECKS
from gateway.auth.keys import MAX_KEY_TEXT_BYTES, KeyMaterial, KeySet, issue_token, read_key_set

MAX_TOKEN_BYTES = 8192
CHUNK_BYTES = 65_536
LAST_SECOND_S = 253_402_300_799
SET_BY_ROLE = frozenset({"iss", "aud", "iat", "exp", "role"})


class Unusable(Exception):
    """Arguments or files the command cannot work with; the message is for the user."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser("token", help="issue or verify a token")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_verify(actions)
    _add_issue(actions)


def _add_verify(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser(
        "verify",
        help="verify tokens, one a line on standard input",
        description="Reads one token a line and prints one JSON object a line, {'ok': true, 'claims': {...}} or "
        "{'ok': false, 'error': '...'}. Ends with 0 if the tokens could be judged, refused or not.",
    )
    parser.add_argument("--jwks", required=True, type=Path, metavar="FILE", help="JWK set; each key verifies its alg")
    parser.add_argument("--issuer", required=True, help="what iss must be")
    parser.add_argument("--audience", required=True, help="what aud must be or hold")
    parser.add_argument("--now", type=_time, metavar="T", help="the time to judge by, seconds since 1970; default: now")
    parser.add_argument("--max-lifetime", type=_seconds, metavar="S", help="longest lifetime of a token; default: any")
    parser.set_defaults(run=_guarded(_verify))


def _add_issue(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser("issue", help="sign a token with a role's key from the configuration document")
    parser.add_argument("--role", required=True)
    parser.add_argument(
        "--claim",
        action="append",
        default=[],
        type=_claim,
        metavar="K=V",
        help="a claim; V is JSON if it reads as JSON, else text",
    )
    parser.add_argument("--ttl", type=_seconds, metavar="S", help="lifetime; default: the role's access_lifetime_s")
    parser.add_argument("--kid", help="sign with this key of the role; default: the first that can sign")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the document (default: CAREGATE_CONFIG_PATH)")
    parser.set_defaults(run=_guarded(_issue))


def _guarded(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    def guarded(options: argparse.Namespace) -> int:
        try:
            return run(options)
        except Unusable as error:
            _complain(str(error))
            return 2

    return guarded


def _complain(text: str) -> None:
    print(f"caregate token: {text}", file=sys.stderr, flush=True)


def _time(text: str) -> float:
    value = float(text)
    if not 0 <= value <= LAST_SECOND_S:
        raise argparse.ArgumentTypeError("not a time from 1970 to 9999 in seconds")
    return value


def _seconds(text: str) -> int:
    value = int(text)
    if not 0 < value <= LAST_SECOND_S:
        raise argparse.ArgumentTypeError("not a positive number of seconds")
    return value


def _claim(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError("not of the form name=value")
    try:
        return name, json.loads(value, parse_constant=_not_json)
    except (ValueError, RecursionError):
        return name, value


def _not_json(name: str) -> None:
    raise ValueError(name)


# --- verify


def _verify(options: argparse.Namespace) -> int:
    keys = _read_keys(options.jwks)
    verifier = _verifier(keys, options)
    reasons = {fault.kid: f"{fault} (it is the key of that kid)" for fault in keys.faults if fault.kid is not None}
    for answers in judge(_chunks(), verifier, options.now, reasons):
        sys.stdout.buffer.write(answers)
        sys.stdout.buffer.flush()
    if not keys.keys:
        raise Unusable(f"{options.jwks}: no usable key")
    return 0


def _read_keys(path: Path) -> KeySet:
    try:
        with path.open("rb") as file:
            keys = read_key_set(file.read(MAX_KEY_TEXT_BYTES + 1), strip=True)
    except OSError as error:
        raise Unusable(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None
    except ValueError as error:
        raise Unusable(f"{path}: {error}") from None
    for fault in keys.faults:
        _complain(f"{path}: {fault}; what it signed is refused")
    return keys


def _verifier(keys: KeySet, options: argparse.Namespace) -> Verifier:
    pinned = [
        Key(
            key.kid,
            key.alg,
            key.verifying,
            issuer=options.issuer,
            audiences=(options.audience,),
            max_lifetime_s=options.max_lifetime,
        )
        for key in keys.keys
    ]
    return Verifier(
        pinned,
        require_kid=False,
        require_sub=False,
        known_audiences=(options.audience,),
        cache_size=0,
        checks=CHECKS,
    )


def _chunks() -> Iterator[bytes]:
    # NOTE: read1 returns what is there, so that each line is answered before the next one is waited for.
    reader = cast(io.BufferedReader, sys.stdin.buffer)
    while chunk := reader.read1(CHUNK_BYTES):
        yield chunk


def judge(
    chunks: Iterable[bytes], verifier: Verifier, now_s: float | None, reasons: dict[str, str] | None = None
) -> Iterator[bytes]:
    """The answers, JSON lines, to the tokens that end in each chunk; a line of any length takes bounded memory.

    Shapes: `reasons` says of a kid why its key cannot be used.
    """
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        # A line that is already too long for a token stays so: its end is not needed to refuse it.
        rest = rest[: MAX_TOKEN_BYTES + 2]
        if lines:
            yield b"".join(_answer(line, verifier, now_s, reasons or {}) for line in lines)
    if rest:
        yield _answer(rest, verifier, now_s, reasons or {})


def _answer(line: bytes, verifier: Verifier, now_s: float | None, reasons: dict[str, str]) -> bytes:
    token = line.removesuffix(b"\r")
    try:
        verified = verifier.verify(token, time.time() if now_s is None else now_s)
    except TokenError as error:
        reason = reasons.get(_kid(token)) if error.code == "unknown-key" and reasons else None
        text = f"{error.code}: {reason}" if reason else str(error)
        return orjson.dumps({"ok": False, "error": text}) + b"\n"
    return orjson.dumps({"ok": True, "claims": verified.claims}) + b"\n"


def _kid(token: bytes) -> str:
    """The kid that a well-formed token names, to say more about it."""
    return str(decode_object(decode_base64url(token.partition(b".")[0])).get("kid"))


# --- issue


def _issue(options: argparse.Namespace) -> int:
    claims = dict(options.claim)
    if len(claims) != len(options.claim):
        raise Unusable("--claim: a claim is given twice")
    for name in sorted(SET_BY_ROLE & claims.keys()):
        raise Unusable(f"--claim {name}: set by the role and its audience")
    token, key, issued = issue(_config_path(options.config), options.role, claims, options.ttl, options.kid)
    print(token)
    _warn_if_refused(token, key, issued)
    return 0


def issue(
    config: Path, role_name: str, claims: dict[str, Any], lifetime_s: int | None, kid: str | None = None
) -> tuple[str, KeyMaterial, dict[str, Any]]:
    """A token of a role of the configuration document, the key that signed it, and its claims. Raises: Unusable."""
    from gateway.config.role_defaults import lifetimes_of

    document, key = _role_key(config, role_name, kid)
    role = document.roles[role_name]
    if lifetime_s is None:
        lifetime_s = lifetimes_of(role_name, role).access_s
    if lifetime_s > role.max_lifetime_s:
        raise Unusable(f"--ttl: {lifetime_s} s is over max_lifetime_s of the role, {role.max_lifetime_s} s")
    now_s = math.floor(time.time())
    issued = {
        "iss": document.audiences[role.audience].issuer,
        "aud": role.audience,
        "sub": f"debug:{role_name}",
        "iat": now_s,
        "exp": now_s + lifetime_s,
        "jti": str(uuid.uuid4()),
        "role": role_name,
        **claims,
    }
    return issue_token(issued, key), key, issued


def _warn_if_refused(token: str, key: KeyMaterial, issued: dict[str, Any]) -> None:
    audience = (issued["aud"],)
    mine = Key(key.kid, key.alg, key.verifying, issuer=issued["iss"], audiences=audience, role=issued["role"])
    try:
        Verifier([mine], require_kid=False, checks=CHECKS).verify(token, issued["iat"])
    except TokenError as error:
        _complain(f"the gateway refuses this token: {error}")


def _config_path(given: Path | None) -> Path:
    from gateway.settings import Settings, SettingsError

    if given is not None:
        return given
    try:
        return Settings.from_environ(os.environ).config_path
    except SettingsError as error:
        raise Unusable(str(error)) from None


def _role_key(path: Path, role: str, kid: str | None) -> tuple[Any, KeyMaterial]:
    """The document and the key of the role that signs."""
    from gateway.config.check import check
    from gateway.config.fault import WHOLE, step
    from gateway.config.load import read_text
    from gateway.config.parse import parse
    from gateway.config.secret import Secrets

    try:
        parsed = parse(read_text(path))
    except OSError as error:
        raise Unusable(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None
    if parsed.document is None or parsed.faults:
        raise Unusable(f"{path}: {'; '.join(map(str, parsed.faults))}")
    document = parsed.document
    if role not in document.roles:
        raise Unusable(f"{path}: no role {role!r}; there are {', '.join(sorted(document.roles))}")
    checked = check(document, Secrets(path.parent, os.environ))
    place = step(step(WHOLE, "roles"), role)
    wrong = [str(fault) for fault in checked.faults if fault.path.startswith((f"{place}.", "audiences"))]
    if wrong:
        raise Unusable(f"{path}: {'; '.join(wrong)}")
    for index, key in enumerate(document.roles[role].keys):
        material = checked.keyring.keys.get(step(step(place, "keys"), index))
        if material is not None and material.signing is not None and kid in (None, key.kid):
            return document, material
    raise Unusable(f"{path}: role {role!r} has no key{f' {kid!r}' if kid else ''} with a secret or private_key")
