"""Cross-checks of who may read the audit trail."""

from __future__ import annotations

from gateway.config.checking import Checking
from gateway.config.fault import WHOLE, step
from gateway.config.model import Role

PERMISSION = "audit.read"


def check_audit(checking: Checking) -> None:
    """A reader is a role with the permission, and the other way round: what it sees is never left open."""
    audit = checking.document.audit
    path = step(step(WHOLE, "audit"), "readers")
    for name in audit.readers:
        role: Role | None = checking.find("roles", name, step(path, name))
        if role is not None and PERMISSION not in role.permissions:
            checking.add(step(path, name), f"{name} has no permission {PERMISSION}")
    role_path: str
    entry: Role
    for role_path, name, entry in checking.entries("roles"):
        if PERMISSION in entry.permissions and name not in audit.readers:
            checking.add(step(role_path, "permissions"), f"{PERMISSION} needs an entry of {name} in audit.readers")
    for below, name in checking.each(audit.own_record, step(step(WHOLE, "audit"), "own_record")):
        checking.find("roles", name, below)
