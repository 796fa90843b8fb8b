"""The composition root: builds the gateway of one worker from its settings; the only file that knows every package."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import falcon
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from gevent.lock import BoundedSemaphore

import fastpath
from gateway import __version__, shared
from gateway.accesslog import AccessLog
from gateway.admin.desk import Desk
from gateway.admin.endpoint import create_admin
from gateway.admin.explain import answer_question
from gateway.audit.notary import read_private_key
from gateway.audit.pseudonyms import KEY as PATIENTS_KEY
from gateway.audit.pseudonyms import Keys
from gateway.audit.pseudonyms import load_or_make_key as load_or_make_patients_key
from gateway.audit.reading import AuditReading
from gateway.audit.trail import FOLDER, AuditTrail
from gateway.auth.providers import Providers
from gateway.auth.service import Tokens
from gateway.breakglass.service import BreakGlassService
from gateway.config.control import ControlServer
from gateway.config.fault import Fault
from gateway.config.inforce import InForce
from gateway.config.model import Document
from gateway.config.secret import Secrets
from gateway.config.snapshot import Snapshot, SnapshotHolder
from gateway.config.versions import Versions
from gateway.context import RequestContext, new_request_id
from gateway.errors import (
    BadRequest,
    BodyTooLarge,
    ClientDisconnected,
    Conflict,
    Forbidden,
    GatewayError,
    InternalError,
    MethodNotMapped,
    NotFound,
    Unprocessable,
)
from gateway.gauges import AuditLook, Gauges, UnitsLook, UpstreamsLook
from gateway.health import Dependency, Health
from gateway.http.accounting import Accounting, BareAccounting, answer_error
from gateway.http.admission import Admission
from gateway.http.application import Application
from gateway.http.authorization import Authorization
from gateway.http.care import Care
from gateway.http.consents import Consents, consent_hooks
from gateway.http.console import FleetStatus
from gateway.http.cors import Cors
from gateway.http.explain import Explainer
from gateway.http.identity import Identity
from gateway.http.lane import Lanes
from gateway.http.openapi import PATH as OPENAPI_PATH
from gateway.http.openapi import OpenApiResource
from gateway.http.operations import create_operations
from gateway.http.traced import TracedAccounting
from gateway.logs import configure, set_level
from gateway.metrics import Metrics
from gateway.portal.catalog import check_functions
from gateway.portal.consent import ConsentFunctions
from gateway.portal.resource import PortalResource
from gateway.relay.service import Relay
from gateway.routing.kinds import ResourceTable, entry_points
from gateway.routing.model import LEVELS
from gateway.routing.router import Router
from gateway.settings import Settings
from gateway.store.config_version import VersionFeed
from gateway.store.pool import Database
from gateway.tracing.exporter import Exporter
from gateway.tracing.tracer import Tracer
from gateway.units.service import Units
from gateway.upstream.pool import Pools
from gateway.upstream.resource import UpstreamResource

BARE = "CAREGATE_TEST_BARE"
"""A variable for benchmarks: leaves out the access log, metrics, and the audit of routes without `phi`."""

EARLY = "CAREGATE_TEST_EARLY_ANSWER"
"""A variable for the test of `make ledger`: answers are sent before their audit events are synced."""

AUDIT_OUTCOMES = ("written", "refused", "damaged", "unwritten", "sealed", "unsealed", "uncopied")
"""Scraped from the start on: an alert on an increase does not see one from nothing to 1."""

WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Gateway:
    """What a worker serves: the public application, and the operations application on its own listener."""

    def __init__(self, settings: Settings, memory: shared.Shared, slot: int) -> None:
        """Build all parts; nothing runs before `start`.

        Raises: ConfigRefused if no configuration can be loaded.
        """
        fastpath.require()
        self.settings = settings
        self.log = configure(settings.log_level, worker=os.getpid())
        region = memory.regions[slot] if slot >= 0 else memoryview(bytearray(settings.metric_series * 64))
        self.metrics = Metrics(region, memory.regions if slot >= 0 else None)
        self.database = _database(settings)
        self.portal = PortalResource(self.database)
        self.upstreams = Pools()
        self.versions = self._versions(settings)
        self.in_force = InForce(settings)
        self.holder = SnapshotHolder(
            self.in_force.boot(self._check_functions) if self.versions is None else self.versions.boot()
        )
        self._digests = ("", self.holder.current.digest)
        """Of the configuration before the one in force, and of that one."""
        self.access_log = AccessLog(
            sys.stdout.fileno() if settings.access_log else -1, os.getpid(), settings.log_level, lost=self._count_lost
        )
        self.audit = AuditTrail(
            self.database,
            settings.data_dir,
            node=settings.node_name,
            segment_bytes=settings.audit_segment_bytes,
            spool_bytes=settings.audit_spool_bytes,
            count=self._count_audit,
            measure=self._measure_audit,
            unfinished=lambda found: self.metrics.set("caregate_audit_unfinished_intents", (), found),
            admit=self._admit,
            early=self._is_early(),
            key=self._audit_key(settings),
            checkpoint_s=settings.audit_checkpoint_s,
            patients=self._patient_keys(settings),
            months_ahead=settings.audit_months_ahead,
            checkpoint_copies=(Path(settings.audit_checkpoint_copy),) if settings.audit_checkpoint_copy else (),
        )
        for outcome in AUDIT_OUTCOMES:
            self.metrics.cell("caregate_audit_events", (outcome,))
        self.audit_reading = AuditReading(settings, self.audit, self._patient_keys(settings))
        self.relay = Relay(settings, self.holder, self.metrics, self.log)
        self.units = Units(settings, self.holder, self.database, self.relay, self.metrics, note=self.audit.try_note)
        self.tokens = Tokens(
            settings, self.holder, self.database, self.metrics, enforce=self.relay.enforce, note=self.audit.note
        )
        self.providers = Providers(self.holder, settings.data_dir, memory.buckets, count=self._count_provider)
        self.relay.revoked = self.tokens.revoked.refuses_link
        self.break_glass = BreakGlassService(self.holder, self.database, self.metrics, self.audit.note)
        self.control = ControlServer(
            settings,
            self.holder,
            self._check_functions,
            in_force=self.versions or self.in_force,
            questions={
                "units": self.units.describe,
                "access": self.tokens.describe,
                "keys": self.tokens.describe_keys,
                "providers": self.providers.describe,
            },
            orders={"log-level": self._set_log_level, "explain": self._explain},
        )
        looks = (
            UnitsLook(self.relay, self.units.roster, settings.relay_buffer_bytes),
            UpstreamsLook(self.upstreams, lambda: self.holder.current.upstreams),
            AuditLook(self.audit),
            self._look,
        )
        self.health = Health(
            [
                Dependency("configuration", lambda: self.holder.current.version > 0, required=True),
                Dependency("audit", lambda: self.audit.ready, required=True),
                Dependency("database", lambda: self.database.available, required=False),
            ]
        )
        self.gauges = Gauges(self.metrics, looks)
        self.exporter = self._exporter(settings)
        self.accounting = self._accounting(settings)
        self.public = self._public(memory)
        self.admin = self._admin(settings)
        registry, roster = self.relay.registry, self.units.roster
        self.fleet = FleetStatus(
            self.holder, settings.run_dir, settings.ops_bind,
            lambda unit: (registry.last_seen(unit), registry.why(unit)), lambda unit: (unit, "") in roster.revoked,
        )  # fmt: skip
        self.operations = create_operations(
            self.holder, self.metrics, self._state, self.relay.units, self._on_error, self.fleet
        )

    def _admin(self, settings: Settings) -> Application:
        desk = Desk(
            settings=settings,
            holder=self.holder,
            admission=self._admission,
            metrics=self.metrics,
            explainer=self.explainer,
            tokens=self.tokens,
            catalog_check=self._check_functions,
            busy=BoundedSemaphore(settings.admin_connections),
        )
        return create_admin(desk, self.accounting, self._admission, self._identity, self.audit, self._on_error)

    def _explain(self, asked: dict[str, Any]) -> dict[str, Any]:
        return answer_question(self.explainer, self.holder.current, asked)

    def _check_functions(self, document: Document) -> list[Fault]:
        """The configuration's check against the database; what it found is how the functions are called.

        Raises: DatabaseUnavailable.
        """
        catalog, faults = check_functions(document, self.database)
        self.portal.merge(catalog)
        return faults

    def _versions(self, settings: Settings) -> Versions | None:
        """Where the configuration comes from, if it is the database."""
        if settings.config_source != "database":
            return None
        return Versions(
            settings,
            lambda: VersionFeed(settings.dsn),
            self._check_functions,
            note=self._note_version,
            refused=lambda: self.metrics.inc("caregate_config_reloads", ("refused",)),
        )

    def _note_version(self, outcome: str, detail: Mapping[str, str]) -> None:
        before = self._digests[0] if outcome == "allowed" else self._digests[1]
        members: dict[str, Any] = {**detail, "before": before, "source": "database"}
        self.audit.note("config", outcome, **members)

    def _note_worker(self, what: str) -> None:
        snapshot = self.holder.current
        about = {"version": str(snapshot.version), "digest": snapshot.digest} if what == "started" else {}
        self.audit.try_note(f"worker.{what}", "allowed", worker=str(os.getpid()), **about)

    def _is_bare(self) -> bool:
        """Is this a benchmark of the policy path alone? `make bench` compares it with the whole gateway."""
        if os.environ.get(BARE) != "1":
            return False
        self.log.critical(f"{BARE}=1: NO ACCESS LOG, NO METRICS, NO AUDIT: for benchmarks only, never in service")
        return True

    def _exporter(self, settings: Settings) -> Exporter | None:
        """Where spans go, if anything is traced."""
        if not settings.trace_endpoint:
            return None
        return Exporter(
            settings.trace_endpoint,
            {
                "service.name": "caregate",
                "service.version": __version__,
                "service.instance.id": f"{settings.node_name}-{os.getpid()}",
            },
            __version__,
            queue=settings.trace_queue,
            interval_s=settings.trace_interval_ms / 1000,
            count=lambda outcome, number: self.metrics.inc("caregate_trace_spans", (outcome,), number),
        )

    def _accounting(self, settings: Settings) -> Accounting:
        parts = (self.holder, self.metrics, self.access_log, self.audit)
        if self._is_bare():
            return BareAccounting(*parts)
        if self.exporter is None:
            return Accounting(*parts)
        tracer = Tracer(settings.trace_ratio, follow_parent=settings.trace_parent, add=self.exporter.add)
        self._begin_trace = tracer.begin
        return TracedAccounting(*parts, tracer=tracer)

    def _is_early(self) -> bool:
        """Is this the fault that `make ledger` must find?"""
        if os.environ.get(EARLY) != "1":
            return False
        self.log.critical(f"{EARLY}=1: ANSWERS DO NOT WAIT FOR THEIR AUDIT EVENTS: for tests only, never in service")
        return True

    def _count_lost(self, lines: int) -> None:
        self.metrics.inc("caregate_log_lines_lost", (), lines)

    def _count_audit(self, outcome: str, number: int) -> None:
        self.metrics.inc("caregate_audit_events", (outcome,), number)

    def _measure_audit(self, pending: int) -> None:
        self.metrics.set("caregate_audit_backlog", (), pending)

    def _audit_key(self, settings: Settings) -> Callable[[], Ed25519PrivateKey] | None:
        """How to come by the key that signs checkpoints; None: a file of the trail's own."""
        if not settings.audit_key:
            return None
        secrets = Secrets(settings.config_path.parent, os.environ)
        return lambda: read_private_key(secrets.resolve(settings.audit_key, private=True), "CAREGATE_AUDIT_KEY")

    def _patient_keys(self, settings: Settings) -> Callable[[], Keys] | None:
        """How to come by what joins pseudonyms to patients; None: there are no pseudonyms."""
        if not settings.audit_pseudonyms:
            return None
        path = settings.data_dir / FOLDER / PATIENTS_KEY
        if not settings.audit_patient_key:
            return lambda: Keys(load_or_make_patients_key(path))
        secrets = Secrets(settings.config_path.parent, os.environ)
        return lambda: Keys(secrets.resolve(settings.audit_patient_key, private=True).strip())

    def _admit(self, ready: bool) -> None:
        """While the trail has no room, or no configuration is in force, every request goes by way of the middleware,
        where `accounting` refuses it.
        """
        self.public.lane = self._lanes if ready and self.holder.current.version else None

    def _count_provider(self, provider: str, outcome: str) -> None:
        self.metrics.inc("caregate_identity_provider_fetches", (provider, outcome))

    def _count_upstream(self, upstream: str, outcome: str) -> None:
        self.metrics.inc("caregate_upstream_requests", (upstream, outcome))

    def _authorization(self) -> Authorization:
        self._consents = Consents(ConsentFunctions(self.database).permits, consent_hooks())
        return Authorization(self.accounting.intent, Care(self._consents, self.break_glass.opens))

    def _public(self, memory: shared.Shared) -> Application:
        resources = ResourceTable(
            function=self.portal,
            unit=self.relay.unit_resource,
            upstream=UpstreamResource(self.upstreams, self._count_upstream),
            entry_points=entry_points(),
        )
        router, admission, identity = (
            Router(self.holder, resources), Admission(memory.buckets), Identity(time.time, self.metrics)
        )  # fmt: skip
        app = Application(
            router=cast("Any", router),  # Falcon's annotation names its own router only
            middleware=[
                self.accounting,
                admission,
                Cors(router.own_methods),
                identity,
                self._authorization(),
            ],
        )
        identity.knows_key = self.providers.knows
        self._admission, self._identity = admission, identity
        self.explainer = Explainer(admission, router, self.break_glass.case_of, consents=self._consents)
        self._lanes = Lanes(
            self.holder, memory.buckets, self.metrics, admission, identity, router, self.accounting.intent
        )  # fmt: skip
        app.lane = self._lanes if self.holder.current.version else None
        app.req_options.strip_url_path_trailing_slash = False
        app.add_route("/relay/v1/connect", self.relay.connect_resource)
        app.add_route(OPENAPI_PATH, OpenApiResource())
        own = {
            **self.units.resources(memory.buckets),
            **self.tokens.resources(memory.buckets),
            **self.break_glass.resources(),
            **self.audit_reading.resources(),
        }
        for path, resource in own.items():
            app.add_route(path, resource)
        # NOTE: Falcon's own handler of its errors would be nearer to them than one of Exception.
        app.add_error_handler((Exception, falcon.HTTPError), self._on_error)
        return app

    def _on_error(self, req: falcon.Request, resp: falcon.Response, error: Exception, params: dict[str, Any]) -> None:
        """The one way from an exception to an answer."""
        ctx: RequestContext | None = getattr(req.context, "gateway", None)
        if ctx is None:
            ctx = req.context.gateway = RequestContext(id=new_request_id(), started_ns=time.monotonic_ns())
        answer_error(resp, ctx, self._known(error, ctx))
        _forget_frames(error)

    def _known(self, error: Exception, ctx: RequestContext) -> GatewayError:
        if isinstance(error, GatewayError):
            return error
        if isinstance(error, falcon.HTTPError) and 400 <= error.status_code < 500:
            return _of_falcon(error)
        self.log.error("request failed", request_id=ctx.id, route=ctx.route and ctx.route.name, exc_info=error)
        return InternalError()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """WSGI: the operations listener gets its own application, everything else the public one."""
        if environ.get("caregate.listener") == "ops":
            # SEC: the canonical path is looked at, as the Admin API does: there is one way to spell it.
            path = environ.get("caregate.path") or ""
            return (self.admin if path.startswith("/admin/") else self.operations)(environ, start_response)
        return self.public(environ, start_response)

    # --- life

    def start(self) -> None:
        """Start the greenlets of this worker: audit trail, relay, control socket, log."""
        self.access_log.start()
        if self.exporter is not None:
            self.exporter.start()
        self.holder.subscribe(self._on_snapshot)
        self.audit.start()
        self.tokens.start()
        self.break_glass.start()
        self.providers.start()
        self.units.start()
        self.relay.start()
        self.control.start()
        if self.versions is not None:
            self.versions.start(self.holder)
        self._note_worker("started")
        self.metrics.set("caregate_workers", (), 1)
        self._set_version(self.holder.current.version)
        self.gauges.start()
        self.log.info("worker ready", config_version=self.holder.current.version)

    def ready(self) -> None:
        """The worker accepts connections."""
        self.control.phase = "serving"

    def drain(self) -> None:
        """The worker leaves: it accepts no connections, units move elsewhere, open streams finish.

        Yields to the hub: until the relay is empty or the grace has ended.
        """
        self.control.phase = "draining"
        self.relay.drain()

    def stop(self) -> None:
        """Everything has ended: write what is left."""
        self.gauges.stop()
        self.relay.stop()
        self.units.stop()
        self.break_glass.stop()
        self.tokens.stop()
        self.providers.stop()
        self.upstreams.close()
        self.control.stop()
        if self.versions is not None:
            self.versions.stop()
        self._note_worker("stopped")
        self.audit.stop()
        self.access_log.stop()
        if self.exporter is not None:
            self.exporter.stop()
        self.audit_reading.stop()
        self.database.close()

    def refused(self, environ: dict[str, Any], error: GatewayError, status: int) -> None:
        """Account for a request that the worker refused before it became one."""
        ctx = RequestContext(
            id=environ.get("caregate.request_id") or new_request_id(),
            started_ns=environ.get("caregate.started_ns") or time.monotonic_ns(),
            method=environ.get("REQUEST_METHOD", ""),
            snapshot=self.holder.current,
            error=error,
        )
        self.metrics.inc("caregate_requests_in_flight")
        self.accounting.close(ctx, 499 if isinstance(error, ClientDisconnected) else status)

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        self._set_version(snapshot.version)
        self._digests = (self._digests[1], snapshot.digest)
        if self.versions is None:
            self.audit.try_note(
                "config", "allowed", version=str(snapshot.version), digest=snapshot.digest, before=self._digests[0],
                source="file", worker=str(os.getpid()),
            )  # fmt: skip
        self.metrics.inc("caregate_config_reloads", ("applied",))
        self._admit(self.audit.ready)
        self.log.info("configuration in force", config_version=snapshot.version, digest=snapshot.digest)

    def _set_log_level(self, order: Mapping[str, object]) -> dict[str, object]:
        """Of this worker, until it ends."""
        level = order.get("level")
        if level is not None:
            if not isinstance(level, str) or level not in LEVELS:
                return {"ok": False, "error": f"a level is one of {', '.join(LEVELS)}"}
            before = self._log_level()
            # SEC: who turns the log down is not seen there any more.
            self.audit.try_note(
                "admin", "allowed", what="log-level", target=level, before=before, worker=str(os.getpid())
            )
            set_level(level)
            self.access_log.least = LEVELS[level]
            self.log.warning("log level changed", level=level)
        return {"level": self._log_level()}

    def _log_level(self) -> str:
        return next(name for name, rank in LEVELS.items() if rank == self.access_log.least)

    def _set_version(self, version: int) -> None:
        self.metrics.set("caregate_config_version", (), version)
        self.metrics.set("caregate_config_version_lowest", (), version)

    def _look(self, metrics: Metrics) -> None:
        metrics.set("caregate_metric_series_dropped", (), metrics.dropped)
        self.health.look()

    def _state(self) -> dict[str, Any]:
        snapshot = self.holder.current
        return {
            "config_version": snapshot.version,
            "draining": self.control.phase == "draining",
            "ready": self.health.ready() and self.control.phase != "draining",
            "dependencies": self.health.describe(),
        }


class TracedGateway(Gateway):
    """A gateway whose requests may be traced: nothing of it is in the way of one that traces nothing."""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """WSGI."""
        if environ.get("caregate.listener") == "ops":
            return self.operations(environ, start_response)
        self._begin_trace(environ)
        return self.public(environ, start_response)


_OF_STATUS: dict[int, type[GatewayError]] = {
    403: Forbidden,
    404: NotFound,
    405: MethodNotMapped,
    409: Conflict,
    413: BodyTooLarge,
    422: Unprocessable,
}


_MOST_CAUSES = 16
"""Of how many errors, each of which came of the next, the frames are let go."""


def _forget_frames(error: BaseException | None) -> None:
    """Let go of the frames that an error has passed, whose variables hold the request, which holds the error.

    PERF: `absent_p99_ms` of `make fleet`: what some hundred refused requests left stood still for 8 ms to be collected.
    """
    for _ in range(_MOST_CAUSES):
        if error is None:
            return
        error.__traceback__ = None
        error = error.__context__


def _of_falcon(error: falcon.HTTPError) -> GatewayError:
    """What a Falcon resource of somebody else refuses, in our words: its own may quote what was sent."""
    headers = tuple(dict(error.headers or {}).items()) if isinstance(error, falcon.HTTPMethodNotAllowed) else ()
    return _OF_STATUS.get(error.status_code, BadRequest)(headers=headers)


def _database(settings: Settings) -> Database:
    database = Database(
        settings.dsn,
        pool_min=settings.pool_min,
        pool_max=settings.pool_max,
        statement_timeout_ms=settings.statement_timeout_ms,
        connect_timeout_ms=settings.connect_timeout_ms,
    )
    database.open()
    return database


COLLECT_AFTER = (2_000, 100, 20)
"""Objects made and not freed, passes over those, and over what survived them, until the collector looks again.

PERF: to free 10,000 at once takes 8 ms, in which nobody is answered.
"""


def create() -> Gateway:
    """The WSGI callable of a worker, started; gunicorn calls this after the fork, under gevent.

    Raises: ConfigRefused, SettingsError: the worker does not start.
    """
    settings = Settings.from_environ()
    kind = TracedGateway if settings.trace_endpoint else Gateway
    gateway = kind(settings, shared.arbiter(settings), shared.slot)
    gateway.start()
    # PERF: `policy_rs256` of `make bench`: what a worker starts with stays; the collector need not look at it again.
    gc.collect()
    gc.freeze()
    # PERF: `worker_ms_per_dial` of `make fleet`, 2.27 to 2.09: what connections add stays too; passes find little.
    gc.set_threshold(*COLLECT_AFTER)
    return gateway
