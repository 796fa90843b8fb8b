"""A checked document -> Snapshot: every name resolved, every rule in the form a request is decided by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from ipaddress import ip_network

import orjson

from fastpath.routes import RouteTable
from fastpath.token import Key, Verifier
from gateway.auth.claims import CHECKS
from gateway.auth.keys import KeyMaterial, public_jwk_set
from gateway.auth.mapping import ClaimMapping, MappedRole
from gateway.config.check_bindings import own_roles, read_param, searched_roles, takes_own_patient
from gateway.config.check_consent import CLAIM
from gateway.config.check_routes import ACTIONS, read_source
from gateway.config.check_scopes import need_of
from gateway.config.fault import WHOLE, step
from gateway.config.keyring import Keyring
from gateway.config.model import (
    App,
    Audited,
    Bind,
    Client,
    ClientKey,
    Controller,
    Document,
    Function,
    LimitRule,
    Logged,
    ToUnit,
)
from gateway.config.model import Consent as ConsentRule
from gateway.config.parse import canonical
from gateway.config.role_defaults import lifetimes_of
from gateway.config.snapshot import (
    ASSERTION_MAX_LIFETIME_S,
    TOKEN_PATH,
    UNIT_LINK_AUDIENCE,
    UNIT_LINK_MAX_LIFETIME_S,
    CompiledApp,
    CompiledClient,
    CompiledProvider,
    CompiledRole,
    CompiledTokens,
    CompiledUnit,
    Snapshot,
)
from gateway.openapi.reading import Description
from gateway.rbac.scopes import read_ceiling
from gateway.routing.model import (
    LEVELS,
    Action,
    Argument,
    Binding,
    Consent,
    FunctionAction,
    Limit,
    LimitKey,
    Logging,
    Need,
    Purpose,
    ResourceAction,
    Route,
    RouteKind,
    UnitAction,
    UpstreamAction,
)

TOKEN_CACHE_SIZE = 65_536
UNIT_TOKEN_CACHE_SIZE = 4_096
_NS = 1_000_000_000


def compile_document(
    document: Document,
    keyring: Keyring,
    *,
    version: int = 1,
    token_cache_size: int = TOKEN_CACHE_SIZE,
    descriptions: Mapping[str, Description] | None = None,
) -> Snapshot:
    """The snapshot of a document that `gateway.config.check` found no fault in.

    Raises: ValueError, KeyError for a document that was not checked.
    """
    limits = {name: compile_limit(name, rule) for name, rule in document.limits.items()}
    roles = {name: _role(document, name, limits) for name in document.roles}
    bases = document.gateway.fhir_bases
    controllers = {name: _route(name, controller, limits, bases) for name, controller in document.controllers.items()}
    return Snapshot(
        version=version,
        digest=hashlib.sha256(canonical(document)).hexdigest(),
        keys_digest=keyring.digest(),
        document=document,
        verifier=_verifier(document, keyring, roles, token_cache_size),
        unit_verifier=_unit_verifier(document, keyring),
        routes=RouteTable(
            (method, route.template, route) for route in controllers.values() for method in route.methods
        ),
        controllers=controllers,
        roles=roles,
        audiences=dict(document.audiences),
        known_audiences=frozenset(document.audiences),
        address_limits=tuple(limits[name] for name in document.gateway.limits),
        upstreams=dict(document.upstreams),
        units=dict(_units(document, keyring)),
        realm=document.gateway.realm,
        trusted_proxies=tuple(ip_network(text) for text in document.gateway.trusted_proxies),
        tokens=_tokens(document, keyring),
        descriptions=dict(descriptions or {}),
        providers={provider.issuer: provider for provider in _providers(document, keyring)},
        thumbprints=frozenset(keyring.thumbprints),
        role_keys={name: tuple(_keys_of(document, keyring, name)) for name in document.roles},
    )


def compile_limit(name: str, rule: LimitRule) -> Limit:
    """SEC: the interval is rounded up, so that rounding never admits more than the configured rate."""
    interval_ns = -(-rule.period_s * _NS // rule.rate)
    return Limit(name, LimitKey(rule.per), interval_ns, rule.burst, -(-rule.burst * interval_ns // _NS), rule.shadow)


def _role(document: Document, name: str, limits: dict[str, Limit]) -> CompiledRole:
    role = document.roles[name]
    return CompiledRole(
        name=name,
        audience=role.audience,
        permissions=frozenset(role.permissions),
        limits=tuple(limits[limit] for limit in role.limits),
        access_lifetime_s=(lifetimes := lifetimes_of(name, role)).access_s,
        max_lifetime_s=role.max_lifetime_s,
        lifetimes=lifetimes,
        scopes=None if role.scopes is None else read_ceiling(role.scopes),
    )


def _verifier(document: Document, keyring: Keyring, roles: dict[str, CompiledRole], cache_size: int) -> Verifier:
    keys = []
    for name, role in document.roles.items():
        path = step(step(step(WHOLE, "roles"), name), "keys")
        for index, key in enumerate(role.keys):
            keys.append(
                Key(
                    key.kid,
                    key.alg,
                    keyring.keys[step(path, index)].verifying,
                    issuer=document.audiences[role.audience].issuer,
                    audiences=(role.audience,),
                    role=name,
                    max_lifetime_s=role.max_lifetime_s,
                    attachment=roles[name],
                )
            )
    theirs = [provider.aud for provider in document.identity_providers.values() if provider.aud]
    verifier = Verifier(
        keys,
        leeway_s=document.gateway.leeway_s,
        known_audiences=(*document.audiences, *theirs, UNIT_LINK_AUDIENCE),
        cache_size=cache_size,
        checks=CHECKS,
    )
    for provider in document.identity_providers.values():
        # NOTE: it has no keys yet: auth.providers puts them in.
        verifier.set_issuer(provider.issuer, ())
    return verifier


def _providers(document: Document, keyring: Keyring) -> Iterator[CompiledProvider]:
    for name, provider in document.identity_providers.items():
        roles = tuple(
            MappedRole(entry.role, entry.claim, entry.value, document.roles[entry.role].max_lifetime_s)
            for entry in provider.roles
        )
        yield CompiledProvider(
            name=name,
            issuer=provider.issuer,
            aud=provider.aud or provider.audience,
            jwks_url=provider.jwks_url,
            algorithms=provider.algorithms,
            mapping=ClaimMapping(provider.audience, roles, dict(provider.claims)),
            max_lifetime_s=max(document.roles[entry.role].max_lifetime_s for entry in provider.roles),
            refresh_s=provider.refresh_s,
            stale_s=provider.stale_s,
            timeout_ms=provider.timeout_ms,
            max_bytes=provider.max_bytes,
            unknown_kid_burst=provider.unknown_kid_burst,
            unknown_kid_period_s=provider.unknown_kid_period_s,
            unknown_kid_memory_s=provider.unknown_kid_memory_s,
            allowed_networks=tuple(ip_network(text) for text in provider.allowed_networks),
            allow_http=provider.allow_http,
            certificates=keyring.authorities.get(name),
        )


def _unit_verifier(document: Document, keyring: Keyring) -> Verifier:
    keys = []
    for unit_id, unit in document.units.items():
        path = step(step(step(WHOLE, "units"), unit_id), "keys")
        for index, key in enumerate(unit.keys):
            keys.append(
                Key(
                    key.kid,
                    key.alg,
                    keyring.keys[step(path, index)].verifying,
                    issuer=unit_id,
                    audiences=(UNIT_LINK_AUDIENCE,),
                    max_lifetime_s=UNIT_LINK_MAX_LIFETIME_S,
                    attachment=unit_id,
                )
            )
    return Verifier(
        keys,
        leeway_s=document.gateway.leeway_s,
        known_audiences=(*document.audiences, UNIT_LINK_AUDIENCE),
        cache_size=UNIT_TOKEN_CACHE_SIZE,
    )


def _tokens(document: Document, keyring: Keyring) -> CompiledTokens | None:
    service = document.token_service
    if service is None:
        return None
    of_role = {name: list(_keys_of(document, keyring, name)) for name in document.roles}
    signing = {name: [key for key in keys if key.signing is not None] for name, keys in of_role.items()}
    apps = {name: _app(name, app) for name, app in document.apps.items()}
    return CompiledTokens(
        url=service.url,
        verifier=_client_verifier(document, keyring, service.url, apps),
        signers={name: keys[0] for name, keys in signing.items() if keys},
        jwks=orjson.dumps(public_jwk_set([key for keys in of_role.values() for key in keys])),
        apps=apps,
    )


def _app(name: str, app: App) -> CompiledApp:
    return CompiledApp(
        id=name,
        title=app.title,
        roles=frozenset(app.roles),
        redirect_uris=frozenset(app.redirect_uris),
        public=not app.keys,
        first_party=app.first_party,
        proxies=app.proxies,
        dpop_required=app.dpop == "required",
    )


def _keys_of(document: Document, keyring: Keyring, role: str) -> Iterator[KeyMaterial]:
    path = step(step(step(WHOLE, "roles"), role), "keys")
    for index in range(len(document.roles[role].keys)):
        yield keyring.keys[step(path, index)]


def _client_verifier(document: Document, keyring: Keyring, url: str, apps: dict[str, CompiledApp]) -> Verifier:
    """Source: RFC 7523, 3: `iss` is the client, `aud` the service or its token endpoint."""
    audiences = (url, url + TOKEN_PATH)
    owners: list[tuple[str, str, tuple[ClientKey, ...], CompiledClient | CompiledApp]] = [
        *(("clients", name, client.keys, _client(name, client)) for name, client in document.clients.items()),
        *(("apps", name, app.keys, apps[name]) for name, app in document.apps.items()),
    ]
    keys = []
    for section, name, owned, compiled in owners:
        path = step(step(step(WHOLE, section), name), "keys")
        for index, key in enumerate(owned):
            keys.append(
                Key(
                    key.kid,
                    key.alg,
                    keyring.keys[step(path, index)].verifying,
                    issuer=name,
                    audiences=audiences,
                    max_lifetime_s=ASSERTION_MAX_LIFETIME_S,
                    attachment=compiled,
                )
            )
    # NOTE: an assertion is for one use, so none is worth remembering.
    return Verifier(keys, leeway_s=document.gateway.leeway_s, known_audiences=audiences, cache_size=0)


def _client(name: str, client: Client) -> CompiledClient:
    return CompiledClient(
        name,
        client.role,
        {claim: list(value) if isinstance(value, tuple) else value for claim, value in client.claims.items()},
        frozenset(client.introspect),
    )


def _units(document: Document, keyring: Keyring) -> Iterator[tuple[str, CompiledUnit]]:
    for unit_id, unit in document.units.items():
        yield (
            unit_id,
            CompiledUnit(
                id=unit_id,
                name=unit.name,
                enabled=unit.enabled,
                max_connections=unit.max_connections,
                context_key=keyring.contexts[unit_id] if unit.context_key is not None else None,
            ),
        )


def _route(name: str, controller: Controller, limits: dict[str, Limit], bases: tuple[str, ...]) -> Route:
    kind, action = _action(controller)
    bindings = tuple(_binding(bind) for bind in controller.bind)
    purpose = controller.purpose
    permission = controller.permission_rule
    need = need_of(controller)
    consent = None if controller.consent is None else _consent(controller.consent)
    emergency = None if controller.break_glass is None else _emergency(controller, controller.break_glass)
    looked_at = [*bindings, *([consent.patient] if consent else []), *([emergency] if emergency else [])]
    return Route(
        name=name,
        template=controller.path,
        methods=controller.methods,
        kind=kind,
        action=action,
        audiences=frozenset(controller.audiences),
        roles=frozenset(controller.roles),
        permission=None if permission is None else permission.name,
        permission_shadow=permission is not None and permission.shadow,
        bindings=bindings,
        unbound_roles=frozenset(controller.unbound_roles),
        need=need,
        own_roles=own_roles(controller),
        own_patient=takes_own_patient(controller),
        searched=searched_roles(controller),
        bases=bases,
        purpose=None if purpose is None else Purpose(purpose.required, purpose.shadow),
        consent=consent,
        careful=purpose is not None
        or consent is not None
        or (permission is not None and permission.shadow)
        or (need is not None and need.shadow)
        or any(binding.source != "path" or binding.shadow for binding in bindings),
        limits=tuple(limits[limit] for limit in controller.limits),
        query=None if controller.query == "any" else frozenset(controller.query).union(*map(_typed_names, looked_at)),
        phi=controller.phi,
        break_glass=emergency,
        hidden=controller.hidden,
        body_max_bytes=controller.body_max_bytes,
        response_max_bytes=controller.response_max_bytes,
        deadline_ms=controller.deadline_ms,
        logging=_logging(controller.log),
        metadata=_audited(controller.audit, need),
    )


def _logging(log: Logged) -> Logging | None:
    return None if log == Logged() else Logging(log.level.encode(), LEVELS[log.level], log.sample)


def _binding(bind: Bind) -> Binding:
    bound = read_param(bind.param)
    if bound is None:
        raise ValueError(f"{bind.param}: not what a binding looks at")
    return Binding(
        bound.param,
        bind.claim,
        frozenset(bind.roles),
        bind.refuse == "hidden",
        source=bound.source,
        names=bound.names,
        steps=bound.steps,
        reference=bind.reference,
        shadow=bind.shadow,
    )


def _consent(consent: ConsentRule) -> Consent:
    if consent.patient.startswith(CLAIM):
        where = Binding(consent.patient, consent.patient.removeprefix(CLAIM), frozenset(), False, source="claim")
    else:
        where = _binding(Bind(param=consent.patient, claim="", reference="Patient"))
    return Consent(
        consent.hook, consent.function, where, frozenset(consent.roles), consent.refuse == "hidden", consent.shadow
    )


def _emergency(controller: Controller, param: str) -> Binding:
    """Where the patient is named: read as the binding of that place reads it, else as a reference."""
    looked = [bind.reference for bind in controller.bind if bind.param == param and ":" in param]
    reference = looked[0] if looked else "Patient"
    return _binding(Bind(param=param, claim="", reference=reference))


def _typed_names(binding: Binding) -> Iterator[str]:
    """The other spelling of a parameter that is a reference: `subject:Patient`."""
    if binding.reference is not None:
        yield from (f"{name}:{binding.reference}" for name in binding.names)


def _audited(audit: Audited, need: Need | None) -> dict[str, str]:
    fhir = audit.fhir
    if fhir is None and audit.resource is None and need is not None:
        fhir = need.param
    about = {
        "resource_type": audit.resource, "resource_param": audit.id, "fhir_param": fhir, "purpose": audit.purpose,
    }  # fmt: skip
    return {name: value for name, value in about.items() if value is not None}


def _action(controller: Controller) -> tuple[RouteKind, Action]:
    if controller.function is not None:
        return RouteKind.FUNCTION, _function(controller.function)
    if controller.upstream is not None:
        return RouteKind.UPSTREAM, UpstreamAction(controller.upstream.name, controller.upstream.target)
    if controller.unit is not None:
        return RouteKind.UNIT, _unit_action(controller.unit)
    if controller.resource is not None:
        return RouteKind.RESOURCE, ResourceAction(controller.resource)
    raise ValueError(f"a controller without one of {', '.join(ACTIONS)}")


def _unit_action(unit: ToUnit) -> UnitAction:
    param = unit.unit.removeprefix("path:")
    if param != unit.unit:
        return UnitAction(unit=None, unit_param=param, target=unit.target, cookies=unit.cookies)
    return UnitAction(unit=unit.unit, unit_param=None, target=unit.target, cookies=unit.cookies)


def _function(function: Function) -> FunctionAction:
    arguments = []
    for parameter, text in function.arguments.items():
        source = read_source(text)
        if source is None:
            raise ValueError(f"{parameter}: not an argument's source")
        arguments.append(Argument(parameter, source.kind, source.name, source.required))
    return FunctionAction(function.name, tuple(arguments), function.success_status)
