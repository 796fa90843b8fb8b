"""The snapshot of a document: rules in the form requests are decided by."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from ipaddress import ip_network
from pathlib import Path

import jwt
import pytest

from fastpath.token import TokenError
from gateway.config.compile import compile_limit
from gateway.config.model import LimitRule
from gateway.config.snapshot import Snapshot, SnapshotHolder
from gateway.routing.model import Argument, Binding, FunctionAction, LimitKey, RouteKind, UnitAction, UpstreamAction


@pytest.fixture(scope="module")
def snapshot(valid: str, load: Callable[[str], Snapshot]) -> Snapshot:
    return load(valid)


def claims(role: str, audience: str, **changes: object) -> dict[str, object]:
    now = int(time.time())
    issuer = f"https://id.test/{audience}"
    return {"iss": issuer, "aud": audience, "sub": "s", "role": role, "iat": now, "exp": now + 60, **changes}


def sign(key_directory: Path, kid: str, payload: dict[str, object]) -> str:
    file, alg = {"patient-1": ("patient.secret", "HS256"), "nurse-1": ("nurse.key", "ES256")}[kid]
    return jwt.encode(payload, (key_directory / file).read_bytes().strip(), algorithm=alg, headers={"kid": kid})


def test_routes(snapshot: Snapshot) -> None:
    route, params = snapshot.routes.match("GET", "/v1/north/patients/p1/results") or (None, None)
    assert route is snapshot.controllers["results"]
    assert params == {"unit": "north", "patient": "p1"}
    assert route is not None
    assert route.kind is RouteKind.UNIT
    assert route.action == UnitAction(None, "unit", "/fhir/Observation?patient={patient}", False)
    assert route.bindings == (
        Binding("patient", "patient", frozenset({"patient"}), True),
        Binding("unit", "units", frozenset({"nurse"}), False),
    )
    assert (route.phi, route.hidden, route.query) == (True, False, frozenset({"_count"}))
    assert [limit.name for limit in route.limits] == ["link"]
    assert snapshot.routes.match("DELETE", "/v1/ping") is None


def test_actions(snapshot: Snapshot) -> None:
    assert snapshot.controllers["terms"].action == UpstreamAction("terms", "/t/{rest}")
    assert snapshot.controllers["fixed"].action == UnitAction("north", None, "/health", False)
    assert snapshot.controllers["notes"].action == FunctionAction(
        "portal.put_note",
        (
            Argument("p_note", "path", "note", True),
            Argument("p_text", "body", "/text", True),
            Argument("p_lang", "query", "lang", False),
            Argument("p_by", "claim", "sub", True),
        ),
        200,
    )


def test_roles_units_and_the_rest(snapshot: Snapshot) -> None:
    assert snapshot.roles["patient"].permissions == {"results.read"}
    assert [limit.name for limit in snapshot.roles["patient"].limits] == ["caller"]
    assert [limit.name for limit in snapshot.address_limits] == ["address"]
    assert snapshot.known_audiences == {"app", "staff"}
    assert snapshot.trusted_proxies == (ip_network("10.0.0.0/8"),)
    unit = snapshot.units["north"]
    assert (unit.id, unit.enabled, unit.max_connections) == ("north", True, 2)
    assert unit.context_key is not None
    assert unit.context_key.decode() not in repr(snapshot.units)
    with pytest.raises(FrozenInstanceError):
        snapshot.version = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("rate", "period_s", "burst", "interval_ns", "window_s"),
    [
        pytest.param(10, 1, 20, 100_000_000, 2, id="ten a second"),
        pytest.param(10, 60, 5, 6_000_000_000, 30, id="ten a minute"),
        pytest.param(3, 1, 1, 333_333_334, 1, id="rounded so that never more is admitted"),
        pytest.param(7, 1, 7, 142_857_143, 2, id="window rounded up"),
    ],
)
def test_limits(rate: int, period_s: int, burst: int, interval_ns: int, window_s: int) -> None:
    limit = compile_limit("x", LimitRule(per="address", rate=rate, period_s=period_s, burst=burst))
    assert (limit.per, limit.interval_ns, limit.burst, limit.window_s) == (
        LimitKey.ADDRESS, interval_ns, burst, window_s
    )  # fmt: skip
    assert limit.interval_ns * rate >= period_s * 1_000_000_000


def test_each_role_has_its_own_keys(key_directory: Path, snapshot: Snapshot) -> None:
    token = sign(key_directory, "patient-1", claims("patient", "app"))
    verified = snapshot.verifier.verify(token, time.time())
    assert verified.key.role == "patient"
    assert verified.key.attachment is snapshot.roles["patient"]
    for kid, payload in (
        ("patient-1", claims("nurse", "staff")),
        ("patient-1", claims("nurse", "app")),
        ("patient-1", claims("patient", "staff")),
        ("nurse-1", claims("clerk", "staff")),
        ("patient-1", claims("patient", "app", exp=int(time.time()) + 86_400)),
    ):
        with pytest.raises(TokenError):
            snapshot.verifier.verify(sign(key_directory, kid, payload), time.time())


def test_a_unit_signs_for_itself_and_the_unit_link_alone(key_directory: Path, snapshot: Snapshot) -> None:
    now = int(time.time())
    good = {"iss": "north", "sub": "north", "aud": "unit-link", "iat": now, "exp": now + 300, "jti": "1"}
    key = (key_directory / "north.key").read_bytes()

    def token(**changes: object) -> str:
        return jwt.encode({**good, **changes}, key, algorithm="EdDSA", headers={"kid": "north"})

    assert snapshot.unit_verifier.verify(token(), now).key.attachment == "north"
    for changes in ({"iss": "south"}, {"aud": "staff"}, {"exp": now + 301}):
        with pytest.raises(TokenError):
            snapshot.unit_verifier.verify(token(**changes), now)
    with pytest.raises(TokenError):
        snapshot.verifier.verify(token(), now)


def test_digest_is_of_the_meaning_not_of_the_spelling(
    valid: str, changed: Callable[..., str], load: Callable[[str], Snapshot], snapshot: Snapshot
) -> None:
    respelled = changed(
        ("permissions: [results.read]", "permissions:\n      - 'results.read'"), ("phi: true", "phi: True")
    )
    assert load(respelled + "\n# a comment\n").digest == snapshot.digest
    assert load(changed(("phi: true", "phi: false"))).digest != snapshot.digest
    assert len(snapshot.digest) == 64


def test_keys_digest_tells_a_replaced_key(
    changed: Callable[..., str], load: Callable[[str], Snapshot], snapshot: Snapshot, valid: str
) -> None:
    assert load(valid).keys_digest == snapshot.keys_digest
    assert load(changed(("env:NORTH_CONTEXT", "env:OTHER"))).keys_digest != snapshot.keys_digest


def test_swap_keeps_what_was_revoked(key_directory: Path, valid: str, load: Callable[[str], Snapshot]) -> None:
    holder = SnapshotHolder(load(valid))
    token = sign(key_directory, "patient-1", claims("patient", "app", jti="stolen"))
    holder.current.verifier.verify(token, time.time())
    prepared = load(valid)
    holder.current.verifier.revoke_jti("stolen")
    seen: list[Snapshot] = []
    holder.subscribe(lambda snapshot: 1 / 0)  # type: ignore[arg-type,return-value]
    holder.subscribe(seen.append)
    holder.swap(prepared)
    assert holder.current is prepared
    assert seen == [prepared]
    with pytest.raises(TokenError, match="revoked"):
        holder.current.verifier.verify(token, time.time())
