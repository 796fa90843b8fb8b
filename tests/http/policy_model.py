"""The finer rules of the policy, written down a second time, plainly: what each request must be answered.

It lists the spellings that are good instead of taking a spelling apart, and shares no code with the gateway: not with
its policy, and not with the model that `caregate selftest` goes by.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes

BASE = "https://api.test/fhir"
ALLOWED = (200, None)
MALFORMED, ABSENT, WIDE = (400, "query-refused"), (400, "query-refused"), (403, "search-refused")
NOT_JSON, NOT_AS_DECLARED = (400, "not-json"), (422, "unprocessable")


@dataclass(frozen=True)
class Rule:
    """A binding of one role. `where`: names of parameters, or steps into the body; `many`: steps that are arrays."""

    claim: str
    where: tuple[str, ...]
    resource: str
    refusal: tuple[int, str] = (404, "not-found")
    shadow: bool = False


@dataclass(frozen=True)
class Plain:
    """A route as the model knows it."""

    declared: frozenset[str]
    query: dict[str, Rule] = field(default_factory=dict)
    body: dict[str, Rule] = field(default_factory=dict)
    narrow: frozenset[str] = frozenset()


def answer(route: Plain, role: str, claims: dict[str, Any], query: str, body: bytes, kind: str) -> tuple[int, Any]:
    """(status, code of the problem) of a request whose token, role and path are good."""
    pairs = split(query)
    rule = route.query.get(role)
    names = set(route.declared)
    for bound in route.query.values():
        names |= {f"{name}:{bound.resource}" for name in bound.where}
    if any(name not in names for name, _ in loosely(query)):
        return MALFORMED
    if role in route.narrow or rule is not None:
        if pairs is None:
            return MALFORMED
        if any(wide(name) for name, _ in pairs):
            return WIDE
    if rule is not None and (refused := search(rule, claims, pairs or [])) is not None and not rule.shadow:
        return refused
    rule = route.body.get(role)
    if rule is not None and (refused := write(rule, claims, body, kind)) is not None and not rule.shadow:
        return refused
    return ALLOWED


def split(query: str) -> list[tuple[str, str]] | None:
    """Names and values, None if two readers could differ about them."""
    out = []
    for part in query.split("&"):
        if not part:
            continue
        name, _, value = part.partition("=")
        for text in (name, value):
            if ";" in text or any(len(e) < 3 or not re.fullmatch("%[0-9a-fA-F]{2}", e) for e in escapes(text)):
                return None
        try:
            read = [unquote_to_bytes(text.replace("+", " ")).decode("utf-8") for text in (name, value)]
        except UnicodeDecodeError:
            return None
        if not read[0] or any(ord(c) < 32 or ord(c) == 127 for c in read[0] + read[1]):
            return None
        out.append((read[0], read[1]))
    return out


def escapes(text: str) -> list[str]:
    return [text[i : i + 3] for i, c in enumerate(text) if c == "%"]


def loosely(query: str) -> list[tuple[str, str]]:
    """As `split`, of a query that may be broken."""
    parts = [part.partition("=") for part in query.split("&")] if query else []
    return [(unquote_to_bytes(n.replace("+", " ")).decode("utf-8", "replace"), v) for n, _, v in parts]


def wide(name: str) -> bool:
    return "." in name or name.split(":")[0].lower() in ("_has", "_include", "_revinclude", "_filter", "_query")


def search(rule: Rule, claims: dict[str, Any], pairs: list[tuple[str, str]]) -> tuple[int, str] | None:
    good: dict[str, set[str]] = {}
    for value in own(claims.get(rule.claim)):
        full = {f"{rule.resource}/{value}", f"{BASE}/{rule.resource}/{value}"}
        for name in rule.where:
            bare = {value} if name == rule.resource.lower() else set()
            good.setdefault(name, set()).update(full | bare)
            good.setdefault(f"{name}:{rule.resource}", set()).update(full | {value})
    seen = False
    for name, value in pairs:
        if re.split("[.:]", name)[0] not in rule.where:
            continue
        if name not in [*rule.where, *(f"{n}:{rule.resource}" for n in rule.where)]:
            return WIDE
        seen = True
        if not set(value.split(",")) <= good.get(name, set()):
            return rule.refusal
    return None if seen else ABSENT


def own(claim: Any) -> list[str]:
    values = claim if isinstance(claim, list) else [claim]
    return [v for v in values if isinstance(v, str) and re.fullmatch(r"[A-Za-z0-9.-]{1,64}", v)]


class Twice(Exception):
    pass


def write(rule: Rule, claims: dict[str, Any], body: bytes, kind: str) -> tuple[int, str] | None:
    if kind not in ("application/json", "application/fhir+json", "application/json; charset=utf-8"):
        return NOT_JSON
    try:
        document = json.loads(body.decode("utf-8"), object_pairs_hook=once, parse_constant=lambda name: once(None))
    except (ValueError, Twice, RecursionError):
        return NOT_JSON
    nodes = [document]
    for step in rule.where:
        below: list[Any] = []
        for node in nodes:
            if step == "*":
                if not isinstance(node, list) or not node:
                    return NOT_AS_DECLARED
                below += node
            elif not isinstance(node, dict) or step not in node:
                return NOT_AS_DECLARED
            else:
                below.append(node[step])
        nodes = below
    texts = [text for node in nodes for text in (node if isinstance(node, list) else [node])]
    if any(node == [] for node in nodes) or not all(isinstance(text, str) for text in texts):
        return NOT_AS_DECLARED
    good = {f"{start}{rule.resource}/{v}" for v in own(claims.get(rule.claim)) for start in ("", f"{BASE}/")}
    return None if set(texts) <= good else rule.refusal


def once(pairs: Any) -> dict[str, Any]:
    if pairs is None or len({name.casefold() for name, _ in pairs}) < len(pairs):
        raise Twice
    return dict(pairs)


# --- the matrix: a document's text, and one request of the shipped configurations


def standing(
    document: dict[str, Any], route: str, method: str, role: str, own_patient: bool, own_unit: bool, state: str
) -> str:
    """passes, 401, 403 or 404; "" where the query, the body, a purpose or a consent has the last word."""
    controller, who = document["controllers"][route], document["roles"][role]
    foreign = who["audience"] not in controller["audiences"]
    permission = _named(controller.get("permission"), "name")
    rules = [b for b in controller.get("bind", []) if role in b.get("roles", [role]) and not b.get("shadow")]
    theirs = {"patient": not own_patient, "unit": not own_unit}
    found = [
        "401" if state != "fresh" else "",
        ("404" if controller.get("hidden") else "401") if foreign else "",
        "" if role in controller["roles"] else "403",
        "403" if permission and permission not in who.get("permissions", []) else "",
        "" if _in_scope(controller, method, role, who.get("scopes")) else "403",
        *({"hidden": "404"}.get(bind.get("refuse", ""), "403") for bind in rules if theirs.get(bind["param"])),
        "" if rules or not _must_bind(controller, role) else "403",
    ]
    refused = [answer for answer in found if answer]
    if refused:
        return refused[0]
    open_end = any(":" in bind["param"] for bind in rules) or "consent" in controller or "purpose" in controller
    return "" if open_end else "passes"


def _named(rule: Any, name: str) -> Any:
    """What a rule in force names; None for one in shadow."""
    if isinstance(rule, dict):
        return None if rule.get("shadow") else rule.get(name)
    return rule


def _mine(controller: dict[str, Any]) -> bool:
    """Is the patient the token's, whatever the request says?"""
    sent = str((controller.get("unit") or controller.get("upstream") or {}).get("target"))
    return "me" in controller["path"].split("/") and "{patient}" in sent


def _must_bind(controller: dict[str, Any], role: str) -> bool:
    bound = bool(controller.get("bind")) or str(controller.get("unit", {}).get("unit")).startswith("path:")
    return bound and role not in controller.get("unbound_roles", []) and not _mine(controller)


def _in_scope(controller: dict[str, Any], method: str, role: str, scopes: list[str] | None) -> bool:
    """Are all (type, letter) that the route needs among those that the role's scopes give it here?"""
    rule = controller.get("scope")
    if scopes is None or (isinstance(rule, dict) and rule.get("shadow")):
        return True
    arguments = controller.get("function", {}).get("arguments", {}).values()
    binds = [bind for bind in controller.get("bind", []) if bind["claim"] == "patient" and not bind.get("shadow")]
    own = _mine(controller) or "claim:patient" in arguments or any(role in b.get("roles", [role]) for b in binds)
    had = set()
    for scope in scopes:
        context, _, rest = scope.partition("/")
        kind, _, letters = rest.partition(".")
        if context != "patient" or own:
            had |= {(kind, letter) for letter in {"read": "rs", "write": "cud", "*": "cruds"}.get(letters, letters)}
    need = rule.get("need") if isinstance(rule, dict) else rule
    return (
        bool(had)
        if need == "none"
        else all((kind, letter) in had or ("*", letter) in had for kind, letter in _needed(controller, need, method))
    )


def _needed(controller: dict[str, Any], need: str | None, method: str) -> set[tuple[str, str]]:
    about = controller.get("audit", {})
    if need is not None and not need.startswith("path:"):
        kind, _, letters = need.partition(".")
        return {(kind, letter) for letter in letters}
    # The matrix asks for one record, Patient/…, where the path is one of FHIR.
    kind, read = ("Patient", "r") if need else (about.get("resource", "?"), "r" if "id" in about else "s")
    letters = {"POST": "c", "PUT": "u", "PATCH": "u", "DELETE": "d"}
    return {(kind, letters.get(one, read)) for one in ([method] if need else controller["methods"])}
