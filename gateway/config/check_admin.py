"""Cross-checks of `admin`, and of the permissions that only the Admin API knows."""

from __future__ import annotations

from gateway.admin.permissions import ALL, PREFIX
from gateway.config.checking import Checking
from gateway.config.fault import WHOLE, step
from gateway.config.model import Role


def check_admin(checking: Checking) -> None:
    """Note every fault of who may administer."""
    admin = checking.document.admin
    allowed = frozenset(admin.roles) if admin is not None else frozenset()
    if admin is not None:
        path = step(WHOLE, "admin")
        known = checking.find("audiences", admin.audience, step(path, "audience")) is not None
        for below, name in checking.each(admin.roles, step(path, "roles")):
            role: Role | None = checking.find("roles", name, below)
            if known and role is not None and role.audience != admin.audience:
                checking.add(below, f"{name} is of audience {role.audience}, not of {admin.audience}")
    for path, name, role in checking.entries("roles"):
        for index, permission in enumerate(role.permissions):
            if permission.startswith(PREFIX):
                _check_permission(checking, step(step(path, "permissions"), index), permission, name in allowed)


def _check_permission(checking: Checking, path: str, permission: str, allowed: bool) -> None:
    if permission not in ALL:
        checking.add(path, f"is not a permission of the Admin API: {', '.join(sorted(ALL))}")
    elif not allowed:
        # SEC: one who is listed by mistake later would have it at once.
        checking.add(path, "is for roles that admin.roles names")
