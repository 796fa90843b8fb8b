"""Cross-checks of emergency access: who may, who reviews, and what it can open."""

from __future__ import annotations

from gateway.config.check_bindings import is_me, read_param
from gateway.config.check_consent import place_fault
from gateway.config.check_scopes import need_of
from gateway.config.checking import Checking
from gateway.config.fault import WHOLE, step
from gateway.config.model import BreakGlass, Controller
from gateway.config.template import read_path
from gateway.rbac.decide import only_reads


def check_break_glass(checking: Checking) -> None:
    """Note every fault of the section, and of the controllers that an emergency may open."""
    rules = checking.document.break_glass
    if rules is not None:
        _check_rules(checking, step(WHOLE, "break_glass"), rules)
    controller: Controller
    for path, _, controller in checking.entries("controllers"):
        if controller.break_glass is not None:
            _check_controller(checking, step(path, "break_glass"), controller, controller.break_glass, rules)


def _check_rules(checking: Checking, path: str, rules: BreakGlass) -> None:
    for below, name in checking.each(rules.roles, step(path, "roles")):
        checking.find("roles", name, below)
    for name in rules.reviewers:
        checking.find("roles", name, step(step(path, "reviewers"), name))
    if rules.default_s > rules.max_s:
        checking.add(step(path, "default_s"), "is longer than max_s")
    if rules.notify is not None:
        checking.find("upstreams", rules.notify.upstream, step(step(path, "notify"), "upstream"))


def _check_controller(
    checking: Checking, path: str, controller: Controller, param: str, rules: BreakGlass | None
) -> None:
    if rules is None:
        checking.add(path, "needs the section break_glass")
    elif not set(rules.roles) & set(controller.roles):
        checking.add(path, "opens nothing: no role of this route may break the glass")
    bound = read_param(param)
    if bound is None:
        checking.add(path, "must be a parameter of the path, query:NAME or body:/json/pointer")
    elif fault := place_fault(bound, controller, read_path(controller.path)):
        checking.add(path, fault)
    if is_me(controller):
        checking.add(path, "opens nothing: under /me the patient is the token's")
    elif not _reads(controller):
        checking.add(path, "opens nothing: the route takes neither GET nor HEAD nor a POST whose scope only reads")
    if controller.unit is None:
        checking.add(path, "is for routes to a unit")
    if not controller.phi:
        checking.add(path, "needs phi: true, so that each access is on the disk before it happens")


def _reads(controller: Controller) -> bool:
    """Does any method of the route only read?"""
    need = need_of(controller)
    posts = only_reads(need) or (need is not None and need.param is not None)
    return any(method in ("GET", "HEAD") or (method == "POST" and posts) for method in controller.methods)
