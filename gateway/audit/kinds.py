"""What can happen beside accesses: the kinds of events, and the members of their detail. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """`action` as in FHIR's AuditEvent; `detail` names the members that an event of this kind may have.

    Shapes: `code` a code of DICOM's audit vocabulary and its display.
    """

    action: str
    code: tuple[str, str]
    detail: tuple[str, ...] = ()


_ACTIVITY = ("110100", "Application Activity")
_START = ("110120", "Application Start")
_STOP = ("110121", "Application Stop")
_LOGIN = ("110122", "Login")
_LOGOUT = ("110123", "Logout")
_SECURITY = ("110113", "Security Alert")
_AUTHENTICATION = ("110114", "User Authentication")
_ATTRIBUTES = ("110137", "User Security Attributes Changed")
_CONFIGURATION = ("110129", "Security Configuration")
_NODE = ("110126", "Node Authentication")
_ATTACH = ("110124", "Attach")
_DETACH = ("110125", "Detach")
_EMERGENCY = ("110127", "Emergency Override Started")
_EMERGENCY_ENDED = ("110138", "Emergency Override Stopped")
_QUERY = ("110112", "Query")
_USED = ("110101", "Audit Log Used")
_EXPORT = ("110106", "Export")

ALSO = "access.also"

KINDS: dict[str, Kind] = {
    ALSO: Kind("R", _QUERY),
    "worker.started": Kind("E", _START, ("worker", "version", "digest")),
    "worker.stopped": Kind("E", _STOP, ("worker",)),
    "config": Kind(
        "U",
        _CONFIGURATION,
        ("version", "digest", "before", "author", "actor", "reason", "source", "worker", "fault", "faults"),
    ),
    "unit.up": Kind("E", _ATTACH, ("conn", "kid", "epoch")),
    "unit.down": Kind("E", _DETACH, ("conn", "why")),
    "unit.replaced": Kind("E", _DETACH, ("conn", "why")),
    "unit.lost": Kind("E", _DETACH, ("conn", "why")),
    "unit.enrolled": Kind("C", _NODE, ("kid",)),
    "unit.rotated": Kind("U", _NODE, ("kid",)),
    "unit.revoked": Kind("D", _NODE, ("kid", "worker")),
    "unit.enabled": Kind("U", _NODE, ("worker",)),
    "unit": Kind("U", _NODE, ("what", "kid", "before", "digest", "author", "actor", "reason")),
    "login": Kind("E", _LOGIN, ("method", "session", "reason", "acr", "account", "alias")),
    "logout": Kind("E", _LOGOUT, ("session", "reason", "account")),
    "token.issued": Kind("C", _AUTHENTICATION, ("grant", "jti", "expires_s", "session", "family", "reason", "account")),
    "token.refreshed": Kind("U", _AUTHENTICATION, ("jti", "expires_s", "session", "family", "reason", "account")),
    "token.revoked": Kind("D", _AUTHENTICATION, ("jti", "session", "family", "reason", "account")),
    "token.introspected": Kind("R", _AUTHENTICATION, ("jti", "session", "active")),
    "key": Kind("U", _SECURITY, ("what", "kid", "alg", "signs", "old", "retires", "author", "actor", "reason")),
    "account": Kind("U", _ATTRIBUTES, ("what", "account", "author", "actor", "reason")),
    "revocation": Kind("D", _SECURITY, ("what", "session", "before", "author", "actor", "reason")),
    "consent.given": Kind("C", _ATTRIBUTES, ("consent", "digest")),
    "consent.changed": Kind("U", _ATTRIBUTES, ("consent", "digest")),
    "consent.withdrawn": Kind("D", _ATTRIBUTES, ("consent", "digest")),
    "break-glass.started": Kind("E", _EMERGENCY, ("case", "reason", "until")),
    "break-glass.used": Kind("E", _EMERGENCY, ("case",)),
    "break-glass.ended": Kind("E", _EMERGENCY_ENDED, ("case", "reason")),
    "break-glass.listed": Kind("R", _QUERY, ("found",)),
    "break-glass.reviewed": Kind("U", _SECURITY, ("case", "verdict", "reason")),
    "admin": Kind("U", _CONFIGURATION, ("what", "target", "before", "digest", "reason", "worker")),
    "audit.searched": Kind("R", _USED, ("query", "found")),
    "audit.read-own": Kind("R", _USED, ("query", "found")),
    "audit.exported": Kind("R", _EXPORT, ("format", "query", "found", "sha256", "by")),
    "audit.reported": Kind("R", _USED, ("report", "query", "found", "by")),
    "audit.removed": Kind("D", _CONFIGURATION, ("act", "months", "records", "reason", "by")),
    "audit.held": Kind("U", _CONFIGURATION, ("hold", "reason", "by")),
    "audit.erased": Kind("D", _CONFIGURATION, ("pseudonyms", "reason", "by")),
}
"""kind -> what it is. An access has no entry here."""

ACCESS = "access"
_OTHER = Kind("E", _ACTIVITY)


def kind_of(name: str) -> Kind:
    """What a kind is; one that is not known is some activity."""
    return KINDS.get(name, _OTHER)
