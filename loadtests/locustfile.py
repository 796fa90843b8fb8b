"""The callers: patients who read and book at the portal, patients and staff who ask units.

Run by `loadtests.run`; by hand, against a running rig: `locust -f loadtests/locustfile.py --plan PLAN`.
"""

# mypy: disable-error-code="untyped-decorator"
# NOTE: locust's types are not followed, so its decorators have none.
from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, constant_throughput, events, task

from loadtests import answers
from loadtests.answers import Check
from loadtests.measure import PORTAL_READ, PORTAL_WRITE, UNIT_CALL, Measure, write_report
from loadtests.plan import Caller, Plan, read_plan

NETWORK_TIMEOUT_S = 40.0
"""Above the longest deadline of a route, so that the gateway's own answer is what counts."""
REPORT_EVERY_S = 0.5
_bookings = count(random.randrange(1_000_000))


@events.init_command_line_parser.add_listener
def _add_arguments(parser: Any) -> None:
    parser.add_argument("--plan", default="", help="the plan with the callers' tokens")
    parser.add_argument("--rate", type=float, default=6.0, help="requests a second of one user")
    parser.add_argument("--report", default="", help="JSON file with what was measured, renewed twice a second")


@events.init.add_listener
def _prepare(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    if not options.plan:
        raise SystemExit("locust: --plan is needed; `python -m loadtests.run` writes one")
    plan = read_plan(Path(options.plan))
    _Client.plan = plan
    _Client.period_s = 1 / options.rate
    _Client.wait_time = constant_throughput(options.rate)
    environment.host = environment.host or plan.gateway
    measure = Measure()
    environment.events.request.add_listener(_recorder(measure))
    if options.report:
        path = Path(options.report)
        gevent.spawn(_report_for_ever, measure, path)
        environment.events.quitting.add_listener(lambda **_: write_report(path, measure.summary()))


def _recorder(measure: Measure) -> Any:
    def record(response_time: float, context: dict[str, str], exception: BaseException | None, **_: Any) -> None:
        measure.add(context["kind"], response_time, None if exception is None else _reason(exception))

    return record


def _reason(exception: BaseException) -> str:
    return str(exception) if isinstance(exception, Exception) and str(exception) else type(exception).__name__


def _report_for_ever(measure: Measure, path: Path) -> None:
    while True:
        write_report(path, measure.counts())
        gevent.sleep(REPORT_EVERY_S)


class _Client(FastHttpUser):  # type: ignore[misc]
    """Asks, and judges the answer. A connection of its own, kept alive; nothing is repeated."""

    abstract = True
    network_timeout = NETWORK_TIMEOUT_S
    connection_timeout = 10.0
    max_retries = 0
    max_redirects = 0
    kind = ""
    period_s = 1.0
    plan: Plan

    def on_start(self) -> None:
        """Out of step with the other users, who all keep the same pace."""
        gevent.sleep(random.random() * self.period_s)

    def ask(
        self, method: str, route: str, path: str, caller: Caller, check: Check, status: int = 200, body: Any = None
    ) -> None:
        headers = {"Authorization": f"Bearer {caller.token}", "Accept-Encoding": "identity"}
        with self.client.request(
            method, path, name=route, headers=headers, json=body, catch_response=True, context={"kind": self.kind}
        ) as response:
            if response.status_code == 0:
                response.failure(f"no answer: {type(response.error).__name__}")
            elif fault := answers.judge(response.status_code, response.content or b"", status, check):
                response.failure(fault)
            else:
                response.success()


class PortalReader(_Client):
    """A patient who looks into her calendar (Type A, reads)."""

    weight = 4
    kind = PORTAL_READ

    @task(3)
    def appointments(self) -> None:
        patient = random.choice(self.plan.patients)
        self.ask(
            "GET",
            "/portal/v1/patients/{patient}/appointments",
            f"/portal/v1/patients/{patient.subject}/appointments",
            patient,
            answers.appointments_of(patient.subject),
        )

    @task(1)
    def profile(self) -> None:
        patient = random.choice(self.plan.patients)
        self.ask("GET", "/portal/v1/me", "/portal/v1/me", patient, answers.profile_of(patient.subject))


class PortalWriter(_Client):
    """A patient who books an appointment (Type A, writes)."""

    weight = 1
    kind = PORTAL_WRITE

    @task
    def book(self) -> None:
        patient = random.choice(self.plan.patients)
        booking = {"unit": self.plan.booking_unit, "starts_at": _free_slot(), "reason": "check-up"}
        self.ask(
            "POST",
            "/portal/v1/patients/{patient}/appointments",
            f"/portal/v1/patients/{patient.subject}/appointments",
            patient,
            answers.booked_by(patient.subject, self.plan.booking_unit, booking["starts_at"]),
            status=201,
            body=booking,
        )


def _free_slot() -> str:
    """Another quarter of an hour each time, so that no two bookings are the same."""
    start = datetime(2030, 1, 1, 8, tzinfo=UTC) + timedelta(minutes=15 * next(_bookings))
    return start.isoformat().replace("+00:00", "Z")


class UnitCaller(_Client):
    """Patients and staff who read at the units (Type B), each request at another unit."""

    weight = 5
    kind = UNIT_CALL

    @task(3)
    def lab_results(self) -> None:
        patient = random.choice(self.plan.patients)
        unit = random.choice(self.plan.units).id
        self.ask(
            "GET",
            "/units/v1/{unit}/patients/{patient}/lab-results",
            f"/units/v1/{unit}/patients/{patient.subject}/lab-results",
            patient,
            answers.bundle_of(unit, patient.subject),
        )

    @task(1)
    def record(self) -> None:
        staff = random.choice(self.plan.staff)
        patient = random.choice(self.plan.patients).subject
        self.ask(
            "GET",
            "/units/v1/{unit}/fhir/{path}",
            f"/units/v1/{staff.subject}/fhir/Patient/{patient}",
            staff,
            answers.record_of(staff.subject, patient),
        )
