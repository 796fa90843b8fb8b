"""How a request would be decided, step by step, by the very middleware that decides: nothing is taken or called.

A consent is asked for only where the question says so: it is in a database, or another's to say.

The steps are those of a request, in its order: target, limits of the address, token, route, limits of caller and route,
then what `rbac` decides. The first that refuses ends it, as it would there.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final, cast

import falcon

from fastpath.target import canonical_path
from gateway.config.snapshot import Snapshot
from gateway.context import Principal, RequestContext, new_request_id
from gateway.errors import BadTarget, GatewayError, RateLimited, TokenInvalid
from gateway.http import problems
from gateway.http.admission import Admission, LimitState
from gateway.http.authorization import Authorization
from gateway.http.care import Care, Opens
from gateway.http.consents import Asking
from gateway.http.identity import Identity, principal_of
from gateway.rbac.consent import Question
from gateway.routing.model import Consent, FunctionAction, Route, UnitAction, UpstreamAction
from gateway.routing.router import Router
from gateway.routing.target import forward_target

POLICY: Final = ("audience", "role", "permission", "scope", "binding")
"""The rules of rbac.decide in their order; a rule that is not here is a step of its own."""
CONSENT: Final = "consent"
PASSED, REFUSED, NOT_REACHED, NOT_ASKED = "passed", "refused", "not-reached", "not-asked"


@dataclass(slots=True)
class Step:
    """Shapes: `outcome` passed, refused, not-reached, or not-asked: nothing to decide; `facts` JSON values."""

    step: str
    outcome: str
    detail: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Explanation:
    """Shapes: `rule` as the audit trail would have it; `status` 0: the route's resource would answer; `problem` the
    code of the error; `would` where the request would go; `shadow` the rules that only watch and would refuse it.
    """

    allowed: bool
    rule: str
    status: int
    problem: str
    config_version: int
    digest: str
    steps: list[Step]
    route: str
    would: dict[str, Any]
    shadow: list[str]


@dataclass(frozen=True, slots=True)
class Asked:
    """The request. Shapes: `token` None: it brings none; `address` the caller's; `purpose` its Purpose-Of-Use."""

    method: str
    target: str
    token: str | None = None
    address: str = "127.0.0.1"
    purpose: str = ""
    body: bytes = b""
    content_type: str = "application/json"
    ask_consent: bool = False
    """Ask whoever knows of the patient's consent, as the request would."""

    def environ(self, query: str) -> dict[str, Any]:
        """What the middleware reads of a request."""
        env: dict[str, Any] = {
            "REQUEST_METHOD": self.method, "QUERY_STRING": query, "wsgi.input": io.BytesIO(self.body),
            "caregate.content_length": len(self.body),
        }  # fmt: skip
        if self.token is not None:
            env["HTTP_AUTHORIZATION"] = f"Bearer {self.token}"
        if self.purpose:
            env["HTTP_PURPOSE_OF_USE"] = self.purpose
        if self.body:
            env["CONTENT_TYPE"] = self.content_type
        return env


class _Replayed:
    """Stands between an explanation and whoever is asked for consents. Shapes: `step` is what became of the rule."""

    def __init__(self, asking: Asking | None) -> None:
        """`asking` None: nobody is asked, and the request goes on as if it were permitted."""
        self._asking = asking
        self.step = Step(CONSENT, NOT_ASKED)

    def permits(self, consent: Consent, question: Question, principal: Principal, deadline_ns: int) -> bool:
        """As Consents.permits."""
        step, by = self.step, "function" if consent.function is not None else "hook"
        step.facts = {by: consent.name, **({"shadow": True} if consent.shadow else {})}
        if self._asking is None:
            step.detail = f"the {by} {consent.name} would be asked, and is not in a replay (ask_consent)"
            return True
        step.outcome, step.detail = PASSED, f"the {by} {consent.name} was asked"
        return self._asking.permits(consent, question, principal, deadline_ns)


class _Uncounted:
    """Metrics that nobody sees."""

    def inc(self, name: str, labels: tuple[str, ...] = (), value: float = 1.0) -> None:
        """An explained request is none."""


class Explainer:
    """Holds: nothing between two questions."""

    def __init__(
        self,
        admission: Admission,
        router: Router,
        case_of: Callable[[RequestContext, Principal, Route, str], str | None] = lambda ctx, who, route, patient: None,
        clock_s: Callable[[], float] = time.time,
        consents: Asking | None = None,
    ) -> None:
        """Shapes: `case_of` an emergency that opens what a binding refused, see breakglass.service; `consents` whom to
        ask where a question says so.
        """
        self._admission = admission
        self._router = router
        self._clock_s = clock_s
        self._identity = Identity(clock_s, cast("Any", _Uncounted()))
        self._consents = consents
        self._opens: Opens = lambda ctx, who, route, patient: case_of(ctx, who, route, patient) is not None

    def explain(self, snapshot: Snapshot, asked: Asked) -> Explanation:
        """Decide a request without making it."""
        ctx = RequestContext(
            id=new_request_id(), started_ns=time.monotonic_ns(), method=asked.method, client_address=asked.address,
            snapshot=snapshot,
        )  # fmt: skip
        steps: list[Step] = []
        error: GatewayError | None = None
        try:
            self._walk(ctx, asked, steps)
        except GatewayError as refused:
            error = refused
        seen = {step.step for step in steps}
        steps += [Step(name, NOT_REACHED) for name in ALL if name not in seen]
        return Explanation(
            allowed=error is None,
            rule=ctx.rule,
            status=0 if error is None else problems.row_of(error).status,
            problem="" if error is None else error.code,
            config_version=snapshot.version,
            digest=snapshot.digest,
            steps=steps,
            route=ctx.route.name if ctx.route is not None else "",
            would=_would(ctx) if error is None else {},
            shadow=ctx.shadow.split(",") if ctx.shadow else [],
        )

    def _walk(self, ctx: RequestContext, asked: Asked, steps: list[Step]) -> None:
        """Raises: GatewayError of the step that refuses."""
        with _step(steps, "target") as step:
            try:
                ctx.path, ctx.query = canonical_path(asked.target)
            except ValueError as error:
                raise BadTarget(str(error)) from None
            step.facts = {"path": ctx.path, "query": bool(ctx.query)}
        with _step(steps, "address-limit") as step:
            self._look(ctx, step, self._admission.look_at_address(ctx))
        env = asked.environ(ctx.query)
        with _step(steps, "token") as step:
            self._identify(ctx, asked, env, step)
        req = cast("falcon.Request", SimpleNamespace(
            method=asked.method, context=SimpleNamespace(gateway=ctx), env=env, path=ctx.path, stream=env["wsgi.input"],
            content_type=env.get("CONTENT_TYPE"),
        ))  # fmt: skip
        with _step(steps, "route") as step:
            resource, _, params, _ = self._router.find(ctx.path, req=req)
            step.facts = _described(ctx.route) if ctx.route is not None else {"own": True}
        with _step(steps, "limit") as step:
            self._look(ctx, step, self._admission.look_at_caller(ctx))
        replayed = _Replayed(self._consents if asked.ask_consent else None)
        self._decide(ctx, req, resource, params, steps, replayed)

    def _identify(self, ctx: RequestContext, asked: Asked, env: dict[str, Any], step: Step) -> None:
        """Raises: TokenAmbiguous, TokenInvalid."""
        try:
            self._identity.identify(ctx, env)
        except TokenInvalid:
            step.detail = ctx.rule.removeprefix("token:")
            raise
        if ctx.principal is None or asked.token is None:
            step.outcome, step.detail = NOT_ASKED, "the request brings no token"
            return
        # NOTE: a principal of its own: what is worked out here must not be what the next request of it finds.
        snapshot: Snapshot = ctx.snapshot
        verified = snapshot.verifier.verify(asked.token, self._clock_s())
        ctx.principal = principal = principal_of(snapshot, verified)
        step.facts = {
            "issuer": principal.issuer, "audience": principal.audience, "role": principal.role,
            "token_id": principal.token_id, "key_id": principal.key_id,
            "expires_in_s": round(principal.expires_at_s - self._clock_s()),
        }  # fmt: skip

    def _look(self, ctx: RequestContext, step: Step, found: list[LimitState]) -> None:
        """Raises: RateLimited."""
        step.facts = {"limits": [_limit(state) for state in found]}
        if not found:
            step.outcome = NOT_ASKED
        for state in found:
            if not state.admits:
                ctx.rule = f"limit:{state.limit.name}"
                step.detail = f"{state.limit.name} has no token left"
                raise RateLimited(retry_after_s=-(-state.wait_ns // 1_000_000_000))

    def _decide(
        self,
        ctx: RequestContext,
        req: falcon.Request,
        resource: object,
        params: dict[str, Any],
        steps: list[Step],
        replayed: _Replayed,
    ) -> None:
        """What `Authorization` decides, as one step for each rule. Raises: GatewayError."""
        if ctx.route is None:
            return  # one of the gateway's own resources, which asks for itself
        error: GatewayError | None = None
        authorization = Authorization(lambda ctx: None, Care(replayed, self._opens))
        try:
            authorization.process_resource(req, cast("falcon.Response", None), resource, params)
        except GatewayError as refused:
            error = refused
        if error is not None and ctx.principal is None:
            token = next(step for step in steps if step.step == "token")
            token.outcome, token.detail = REFUSED, error.detail or "the route needs a token"
            raise error
        refused_by = "" if error is None else _policy_step(ctx.rule, error)
        facts = _policy_facts(ctx, ctx.route)
        for name in POLICY:
            if name == refused_by:
                break
            watched = any(rule.partition(":")[0] == name for rule in ctx.shadow.split(","))
            detail = "only watches (shadow), and would have refused it" if watched else ""
            steps.append(Step(name, PASSED if _has_say(name, ctx.route) else NOT_ASKED, detail, facts.get(name, {})))
        if error is None:
            steps.append(replayed.step)
        else:
            facts[CONSENT] = replayed.step.facts
            steps.append(Step(refused_by, REFUSED, error.detail or error.code, facts.get(refused_by, {})))
            raise error


ALL: Final = ("target", "address-limit", "token", "route", "limit", *POLICY, CONSENT)


@contextmanager
def _step(steps: list[Step], name: str) -> Iterator[Step]:
    step = Step(name, PASSED)
    steps.append(step)
    try:
        yield step
    except GatewayError as error:
        step.outcome = REFUSED
        step.detail = step.detail or error.detail or error.code
        raise


def _policy_step(rule: str, error: GatewayError) -> str:
    """The step that a rule belongs to: `binding-uncovered` is the binding's, and what decide let pass is its own."""
    if rule == "allowed":
        return error.code
    name = rule.partition(":")[0]
    return next((step for step in POLICY if name == step or name.startswith(f"{step}-")), name)


def _has_say(name: str, route: Route) -> bool:
    if name == "permission":
        return route.permission is not None
    if name == "binding":
        return bool(route.bindings)
    return name != "scope" or getattr(route, "need", None) is not None


def _policy_facts(ctx: RequestContext, route: Route) -> dict[str, dict[str, Any]]:
    return {
        "audience": {"wanted": sorted(route.audiences)},
        "role": {"wanted": sorted(route.roles)},
        "permission": {"wanted": route.permission},
        "binding": {
            "wanted": [
                {"param": b.param, "claim": b.claim, "roles": sorted(b.roles), "hidden": b.hidden}
                for b in route.bindings
            ],
            "unbound_roles": sorted(route.unbound_roles),
        },
    }


def _described(route: Route) -> dict[str, Any]:
    return {
        "name": route.name, "template": route.template, "kind": route.kind.value, "phi": route.phi,
        "hidden": route.hidden, "deadline_ms": route.deadline_ms,
    }  # fmt: skip


def _limit(state: LimitState) -> dict[str, Any]:
    return {
        "limit": state.limit.name, "per": state.limit.per.value, "burst": state.limit.burst, "left": state.left,
        "wait_ms": -(-state.wait_ns // 1_000_000), "full_in_ms": -(-state.full_ns // 1_000_000),
    }  # fmt: skip


def _would(ctx: RequestContext) -> dict[str, Any]:
    """Where the request would go now."""
    route = ctx.route
    if route is None:
        return {"kind": "own"}
    action = route.action
    if isinstance(action, FunctionAction):
        return {"kind": "function", "function": action.function}
    if isinstance(action, UpstreamAction):
        return {"kind": "upstream", "upstream": action.upstream, "target": forward_target(action.target, ctx)}
    if isinstance(action, UnitAction):
        unit = ctx.params.get(action.unit_param, "") if action.unit_param is not None else action.unit
        return {"kind": "unit", "unit": unit, "target": forward_target(action.target, ctx)}
    return {"kind": "resource", "resource": action.entry_point}
