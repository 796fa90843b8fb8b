"""The story of the demo: who asks for what, and what each must be answered; printed as curl lines, or played."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Step:
    """One request and its one right answer.

    Shapes: `who` names a token (empty: none); `expect` is the status, `contains` a piece of the body or header dump.
    `before` names an action of the platform ("stop:UNIT", "start:UNIT", "burst:N").
    """

    title: str
    who: str
    method: str
    path: str
    expect: int
    contains: str = ""
    body: object = None
    headers: Mapping[str, str] = field(default_factory=dict)
    before: str = ""


PATIENT, PRACTITIONER, PARTNER = "PATIENT", "PRACTITIONER", "PARTNER"
OWN, OTHER, WITHDRAWN = "pat-0001", "pat-0002", "pat-0005"
HOSPITAL, CLINIC, POST = "st-marien-hospital", "linden-clinic", "hollow-creek-post"

TOKENS: dict[str, tuple[str, dict[str, object]]] = {
    PATIENT: ("patient", {"sub": "user-anna", "patient": OWN}),
    PRACTITIONER: ("practitioner", {"sub": "user-weber", "units": [HOSPITAL]}),
    PARTNER: ("partner", {"sub": "client-insurer", "org": "insurer-1"}),
}
"""Token name -> role and claims."""

STEPS: tuple[Step, ...] = (
    Step("A patient reads her appointments (Type A: the portal database)", PATIENT, "GET",
         f"/portal/v1/patients/{OWN}/appointments", 200, "unit"),
    Step("... her lab results at the hospital (Type B: relayed to the unit)", PATIENT, "GET",
         f"/units/v1/{HOSPITAL}/patients/{OWN}/lab-results", 200, "Bundle"),
    Step("... and at the clinic", PATIENT, "GET",
         f"/units/v1/{CLINIC}/patients/{OWN}/lab-results", 200, "Bundle"),
    Step("She tries another patient's record: for her it does not exist", PATIENT, "GET",
         f"/portal/v1/patients/{OTHER}/appointments", 404, "urn:caregate:problem:not-found"),
    Step("She tries the staff portal: her token is for another audience", PATIENT, "GET",
         f"/staff/v1/units/{HOSPITAL}/appointments", 401, "invalid_token"),
    Step("A practitioner reads a patient of his own unit", PRACTITIONER, "GET",
         f"/units/v1/{HOSPITAL}/fhir/Patient/{OWN}", 200, '"Patient"'),
    Step("... and is refused another unit's", PRACTITIONER, "GET",
         f"/units/v1/{CLINIC}/fhir/Patient/{OWN}", 403, "insufficient_scope"),
    Step("... and of his own unit's patients must say why he asks", PRACTITIONER, "GET",
         f"/units/v1/{HOSPITAL}/patients/{OWN}/conditions", 403, "purpose-refused"),
    Step("... for treatment he is answered", PRACTITIONER, "GET",
         f"/units/v1/{HOSPITAL}/patients/{OWN}/conditions", 200, "Bundle", headers={"Purpose-Of-Use": "TREAT"}),
    Step("... but not of one who has withdrawn her consent", PRACTITIONER, "GET",
         f"/units/v1/{HOSPITAL}/patients/{WITHDRAWN}/conditions", 403, "consent-refused",
         headers={"Purpose-Of-Use": "TREAT"}),
    Step("A partner lists the units", PARTNER, "GET", "/partner/v1/units", 200, HOSPITAL),
    Step("... too often: limited, and told when to come back", PARTNER, "GET", "/partner/v1/units", 429,
         "RateLimit", before="burst:40"),
    Step("The clinic's agent is stopped: its callers are told at once", PATIENT, "GET",
         f"/units/v1/{CLINIC}/patients/{OWN}/lab-results", 503, "client not connected", before=f"stop:{CLINIC}"),
    Step("It comes back, and so do the answers", PATIENT, "GET",
         f"/units/v1/{CLINIC}/patients/{OWN}/lab-results", 200, "Bundle", before=f"start:{CLINIC}"),
)  # fmt: skip


def curl(step: Step, base: str) -> str:
    """The step as a line for the shell."""
    parts = ["curl -si"]
    if step.method != "GET":
        parts.append(f"-X {step.method}")
    if step.who:
        parts.append(f'-H "Authorization: Bearer ${step.who}"')
    parts += [f"-H '{name}: {value}'" for name, value in step.headers.items()]
    if step.body is not None:
        parts.append(f"-H 'Content-Type: application/json' -d '{json.dumps(step.body)}'")
    parts.append(base + step.path)
    return " ".join(parts)


def print_story(base: str, write: Callable[[str], None]) -> None:
    """All steps with what each must answer."""
    for step in STEPS:
        write(f"\n# {step.title}  ->  {step.expect}")
        verb, _, argument = step.before.partition(":")
        if verb == "burst":
            line = curl(step, base).replace("-si", "-so /dev/null")
            write(f"for i in $(seq {argument}); do {line}; done")
        elif verb:
            write(f".venv/bin/caregate demo unit {verb} {argument}")
        write(curl(step, base))


@dataclass(frozen=True, slots=True)
class Outcome:
    step: Step
    status: int
    ok: bool
    answer: str


def request(port: int, step: Step, tokens: Mapping[str, str]) -> tuple[int, str]:
    """Send a step's request; returns status and the dump of headers and body.

    Raises: OSError if the gateway cannot be reached.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=35)
    try:
        headers = dict(step.headers)
        if step.who:
            headers["Authorization"] = f"Bearer {tokens[step.who]}"
        payload = None
        if step.body is not None:
            payload = json.dumps(step.body).encode()
            headers["Content-Type"] = "application/json"
        connection.request(step.method, step.path, payload, headers)
        answer = connection.getresponse()
        text = str(answer.headers) + answer.read().decode("utf-8", "replace")
        return answer.status, text
    finally:
        connection.close()


def play(
    port: int, tokens: Mapping[str, str], act: Callable[[str, str], None], tell: Callable[[Outcome], None]
) -> list[Outcome]:
    """Play the story against a running platform; `act(verb, unit)` stops and starts units."""
    outcomes = []
    for step in STEPS:
        verb, _, argument = step.before.partition(":")
        if verb == "burst":
            for _ in range(int(argument)):
                request(port, step, tokens)
        elif verb:
            act(verb, argument)
        status, text = request(port, step, tokens)
        outcome = Outcome(step, status, status == step.expect and step.contains.lower() in text.lower(), text)
        outcomes.append(outcome)
        tell(outcome)
    return outcomes
