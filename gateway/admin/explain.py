"""Why a request is, would be, or was allowed or refused."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.admin import permissions
from gateway.admin.desk import Desk
from gateway.admin.operation import Body, Call, Operation, Reply
from gateway.errors import NotFound
from gateway.http.explain import Asked, Explainer
from gateway.store.operator_trail import PastRequest

RequestId = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]


class Ask(Body, frozen=True):
    """A request that is not made. Shapes: `token` without `Bearer`; `purpose` its Purpose-Of-Use; `body` JSON.

    `ask_consent`: whoever knows of the patient's consent is asked, as the request would; else nobody is.
    """

    method: Literal["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"]
    target: Annotated[str, Meta(min_length=1, max_length=8_192)]
    token: Annotated[str, Meta(max_length=16_384, pattern=r"^[!-~]+$")] | None = None
    address: Annotated[str, Meta(min_length=2, max_length=45, pattern=r"^[0-9a-fA-F:.]+$")] = "127.0.0.1"
    purpose: Annotated[str, Meta(max_length=64, pattern=r"^[!-~]*$")] = ""
    body: Annotated[str, Meta(max_length=32_768)] = ""
    ask_consent: bool = False

    def asked(self) -> Asked:
        """The request."""
        return Asked(
            self.method, self.target, self.token, self.address, self.purpose, self.body.encode(),
            ask_consent=self.ask_consent,
        )  # fmt: skip


class Step(msgspec.Struct, frozen=True, kw_only=True):
    step: str
    outcome: Literal["passed", "refused", "not-reached", "not-asked"]
    detail: str
    facts: dict[str, Any]


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    """Shapes: `rule` decided; `status`, `problem` of the refusal, 0 and "" if there is none; `would`: where it goes;
    `shadow`: rules that only watch and would have refused it.
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


class OfRequest(Body, frozen=True):
    request_id: RequestId


def explain(desk: Desk, call: Call) -> Reply:
    body: Ask = call.body
    found = desk.explainer.explain(call.snapshot, body.asked())
    return Reply(msgspec.convert(asdict(found), Explained))


def show_past(desk: Desk, call: Call) -> Reply:
    found = desk.past_request(call.path.request_id)
    if found is None:
        raise NotFound("The trail has no such request, or not yet")
    return Reply(found)


def answer_question(explainer: Explainer, snapshot: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """For the control socket: the same by the same struct. Shapes: `asked` as Ask; the answer as Explained."""
    try:
        body = msgspec.convert({name: value for name, value in asked.items() if name != "do"}, Ask)
    except msgspec.ValidationError as error:
        return {"error": str(error)}
    return asdict(explainer.explain(snapshot, body.asked()))


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="explain", method="POST", path="/explain", permission=permissions.EXPLAIN, answer=Explained, body=Ask,
        run=explain, summary="How a request would be decided, step by step; nothing is called or taken from limits",
    ),
    Operation(
        name="explain.request", method="GET", path="/explain/requests/{request_id}", permission=permissions.EXPLAIN,
        answer=PastRequest, params=OfRequest, run=show_past, summary="How a past request was decided, by its id",
    ),
)  # fmt: skip
