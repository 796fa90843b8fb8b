"""Sessions: codes and refresh tokens, who may present them, how often, and what a second time does."""

from __future__ import annotations

import json
import secrets
import time

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.auth.issue import issue_access_token
from tests.auth.kit import FAILURES, VERIFIER, claims_of, dpop, proof, thumbprint

pytestmark = pytest.mark.usefixtures("quick")

KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def alive(service, post):
    """Is this access token taken, as the database knows it?"""

    def alive(token):
        return post("introspect", {"token": token, **proof("watch")}).json["active"]

    return alive


def age(sql, seconds):
    """All sessions, and what belongs to them, are older now."""
    change = f"- interval '{seconds} s'"
    times = ", ".join(f"{name} = {name} {change}" for name in ("started_at", "used_at", "ends_at"))
    sql(f"UPDATE caregate.session SET {times}")
    sql(f"UPDATE caregate.refresh_token SET until_at = until_at {change}, used_at = used_at {change}")


# --- refresh tokens


def test_a_refresh_token_gives_the_next(service, log_in, refresh):
    first = log_in()
    answer = refresh(first["refresh_token"])
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    second = answer.json
    assert second["refresh_token"] != first["refresh_token"]
    one, two = claims_of(first["access_token"]), claims_of(second["access_token"])
    assert one["jti"] != two["jti"]
    for name in ("sid", "sub", "patient", "amr", "role", "client_id", "auth_time"):
        assert one[name] == two[name], name
    assert refresh(second["refresh_token"]).status_code == 200


def test_claims_are_those_of_now(service, log_in, refresh, sql):
    first = log_in("weber")
    with_trigger_off = "ALTER TABLE caregate.account {} TRIGGER end_sessions"
    sql(with_trigger_off.format("DISABLE"))
    try:
        changed = json.dumps({"units": ["south"], "sid": "x", "act": {}})
        sql("UPDATE caregate.account SET claims = %s WHERE login = 'weber'", changed)
    finally:
        sql(with_trigger_off.format("ENABLE"))
    claims = claims_of(refresh(first["refresh_token"]).json["access_token"])
    assert claims["units"] == ["south"]
    assert claims["sid"] == claims_of(first["access_token"])["sid"], "the service's own claims are its own"
    assert "act" not in claims


def test_a_used_token_ends_the_session(service, log_in, refresh, alive, sql):
    first = log_in()
    second = refresh(first["refresh_token"]).json
    third = refresh(second["refresh_token"]).json
    other = log_in()
    assert all(alive(given["access_token"]) for given in (first, second, third))
    again = refresh(first["refresh_token"])
    assert (again.status_code, again.json["error"]) == (400, "invalid_grant")
    for given in (first, second, third):
        assert refresh(given["refresh_token"]).json["error"] == "invalid_grant"
        assert not alive(given["access_token"])
    assert alive(other["access_token"])
    assert refresh(other["refresh_token"]).status_code == 200, "another session of the same account"
    rules = [(kind, more.get("rule") or more.get("reason")) for kind, _, more in service.notes]
    assert ("token.refreshed", "refresh:reused") in rules
    assert ("token.revoked", "refresh-token-reused") in rules


def test_no_session_is_ended_without_the_trail(service, log_in, refresh, alive):
    first = log_in()
    second = refresh(first["refresh_token"]).json
    service.notes.full = True
    assert refresh(first["refresh_token"]).status_code == 503
    service.notes.full = False
    assert alive(second["access_token"])
    assert refresh(first["refresh_token"]).status_code == 400
    assert not alive(second["access_token"])
    ended = [outcome for kind, outcome, _ in service.notes if kind == "token.revoked"]
    assert ended == ["pending", "allowed"]


def with_key(key=KEY):
    return {"headers": {"DPoP": dpop(key)}}


SAME_CLIENT = {
    "by a DPoP key": ("terminal", with_key),
    "by an assertion": ("desk", dict),
}


@pytest.mark.parametrize(("client", "more"), SAME_CLIENT.values(), ids=SAME_CLIENT.keys())
def test_a_lost_answer_is_given_once_more(log_in, refresh, sql, alive, client, more):
    first = log_in("weber", client, **more())
    second = refresh(first["refresh_token"], client, **more()).json
    repeated = refresh(first["refresh_token"], client, **more())
    assert repeated.status_code == 200, repeated.text
    assert repeated.json["refresh_token"] == second["refresh_token"], "the same successor"
    assert alive(repeated.json["access_token"])
    assert refresh(first["refresh_token"], client, **more()).status_code == 400, "once"
    assert refresh(second["refresh_token"], client, **more()).status_code == 400, "the session has ended"
    assert not alive(repeated.json["access_token"])


LATER = "UPDATE caregate.refresh_token SET used_at = used_at - interval '10.5 s'"
NOT_AGAIN = {
    "who proves nothing": ("terminal", dict, dict, None),
    "after ten seconds": (
        "desk",
        dict,
        dict,
        LATER,
    ),
    "a successor that was burnt": ("desk", dict, dict, "UPDATE caregate.refresh_token SET successor = NULL"),
}


@pytest.mark.parametrize(("client", "first_by", "again_by", "change"), NOT_AGAIN.values(), ids=NOT_AGAIN.keys())
def test_what_is_not_given_again(log_in, refresh, sql, client, first_by, again_by, change):
    first = log_in("weber", client, **first_by())
    second = refresh(first["refresh_token"], client, **first_by()).json
    if change:
        sql(change)
    assert refresh(first["refresh_token"], client, **again_by()).status_code == 400
    assert refresh(second["refresh_token"], client, **first_by()).status_code == 400, "the session has ended"


def test_nothing_is_given_again_once_the_successor_was_used(log_in, refresh):
    first = log_in("weber", "desk")
    second = refresh(first["refresh_token"], "desk").json
    third = refresh(second["refresh_token"], "desk").json
    assert refresh(first["refresh_token"], "desk").status_code == 400
    assert refresh(third["refresh_token"], "desk").status_code == 400


def test_the_successor_is_not_in_the_database_in_clear(log_in, refresh, sql):
    first = log_in("weber", "desk")
    second = refresh(first["refresh_token"], "desk").json
    kept = str(sql("SELECT t::text, encode(successor, 'escape') FROM caregate.refresh_token t"))
    for token in (first["refresh_token"], second["refresh_token"]):
        assert token not in kept
        assert token[4:20] not in kept


def test_a_bound_token_is_for_its_key(log_in, refresh):
    first = log_in("anna", "bound", **with_key())
    for wrong in ({}, with_key(OTHER), {"headers": {"DPoP": dpop(KEY, sign=OTHER)}}):
        assert refresh(first["refresh_token"], "bound", **wrong).status_code == 400
    second = refresh(first["refresh_token"], "bound", **with_key())
    assert second.status_code == 200, "whoever has not the key ends nothing"
    assert second.json["token_type"] == "Bearer"
    assert refresh(first["refresh_token"], "bound", **with_key(OTHER)).status_code == 400
    assert refresh(second.json["refresh_token"], "bound", **with_key()).status_code == 200, "nor by a used token"


def test_an_app_that_must_prove_a_key(post, log_in):
    form = {"grant_type": "password", "client_id": "bound", "username": "anna", "password": "x"}
    assert post("token", form).json["error"] == "invalid_dpop_proof"


def test_a_proof_is_for_one_use(post, log_in):
    field = dpop(KEY)
    assert log_in("anna", "bound", headers={"DPoP": field})
    form = {"grant_type": "password", "client_id": "bound", "username": "anna", "password": "x"}
    assert post("token", form, DPoP=field).json["error_description"] == "The DPoP proof was used before"


def test_another_app_gets_nothing_and_ends_nothing(log_in, refresh):
    first = log_in("anna", "terminal")
    assert refresh(first["refresh_token"], "app").json["error"] == "invalid_grant"
    assert refresh(first["refresh_token"], "desk").json["error"] == "invalid_grant"
    assert refresh(first["refresh_token"], "terminal").status_code == 200


LIMITS = {
    "absolute limit of staff": ("weber", 12 * 3_600),
    "refresh lifetime of patients": ("anna", 14 * 86_400),
    "idle limit of staff": ("weber", 1_801),
}


@pytest.mark.parametrize(("login", "after_s"), LIMITS.values(), ids=LIMITS.keys())
def test_sessions_run_out(log_in, refresh, sql, login, after_s):
    first = log_in(login)
    age(sql, after_s)
    assert refresh(first["refresh_token"]).json["error"] == "invalid_grant"


def test_within_the_limits(log_in, refresh, sql):
    token = log_in("weber")["refresh_token"]
    for _ in range(3):
        age(sql, 1_700)
        answer = refresh(token)
        assert answer.status_code == 200
        token = answer.json["refresh_token"]


def test_a_patients_session_ends_after_thirty_days_however_it_is_used(log_in, refresh, sql):
    token = log_in()["refresh_token"]
    for _ in range(2):
        age(sql, 13 * 86_400)
        token = refresh(token).json["refresh_token"]
    age(sql, 4 * 86_400 - 300)
    answer = refresh(token)
    assert answer.status_code == 200
    assert answer.json["expires_in"] <= 300, "not longer than the session"
    age(sql, 300)
    assert refresh(answer.json["refresh_token"]).status_code == 400


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda service: service.operator.disable("anna", ""), id="disabled"),
        pytest.param(lambda service: service.operator.set_factor("anna", bytes(48)), id="second factor"),
    ],
)
def test_a_change_of_the_account_ends_its_sessions(service, log_in, refresh, alive, change):
    first = log_in()
    change(service)
    assert refresh(first["refresh_token"]).status_code == 400
    assert not alive(first["access_token"])


@pytest.mark.parametrize("token", ["", "cgr_", "cgr_" + "x" * 43, "cgr_" + "x" * 44, "x.y.z", "cgc_" + "x" * 43])
def test_what_is_no_refresh_token(refresh, token):
    assert refresh(token).json["error"] == ("invalid_grant" if token else "invalid_request")


# --- authorization codes


def test_a_code_gives_tokens(page, redeem, refresh):
    answer = redeem(page.code())
    assert answer.status_code == 200, answer.text
    claims = claims_of(answer.json["access_token"])
    assert (claims["sub"], claims["client_id"], claims["amr"]) == ("user-anna", "app", ["pwd"])
    assert refresh(answer.json["refresh_token"], "app").status_code == 200


WRONG = {
    "another redirect_uri": {"redirect_uri": "https://app.test/other?x=1"},
    "no redirect_uri": {"redirect_uri": None},
    "another client": {"client_id": "terminal"},
    "another verifier": {"code_verifier": VERIFIER[:-1] + "x"},
    "no verifier": {"code_verifier": None},
    "the challenge": {"code_verifier": "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_a_code_is_bound(page, redeem, wrong):
    answer = redeem(page.code(), **wrong)
    missing = None in wrong.values()
    assert (answer.status_code, answer.json["error"]) == (400, "invalid_request" if missing else "invalid_grant")


def test_a_code_that_was_shown_with_a_wrong_verifier_is_spent(page, redeem):
    code = page.code()
    assert redeem(code, code_verifier="x" * 43).status_code == 400
    assert redeem(code).status_code == 400


def test_a_code_that_comes_again_ends_what_it_gave(page, redeem, refresh, alive, service):
    code = page.code()
    given = redeem(code).json
    assert alive(given["access_token"])
    assert redeem(code).json["error"] == "invalid_grant"
    assert not alive(given["access_token"])
    assert refresh(given["refresh_token"], "app").status_code == 400
    assert "code:reused" in [members.get("rule") for _, _, members in service.notes]


def test_a_code_is_good_for_a_minute(page, redeem, sql):
    code = page.code()
    sql("UPDATE caregate.authorization_code SET until_at = until_at - interval '59 s'")
    assert redeem(code).status_code == 200
    code = page.code()
    sql("UPDATE caregate.authorization_code SET until_at = until_at - interval '60 s' WHERE used_at IS NULL")
    assert redeem(code).status_code == 400


def test_a_code_of_an_account_that_was_disabled_meanwhile(page, redeem, service):
    code = page.code()
    service.operator.disable("anna", "")
    assert redeem(code).status_code == 400


def test_a_code_may_be_bound_to_a_key(page, redeem):
    code = page.code(dpop_jkt=thumbprint(KEY))
    assert redeem(code, headers={"DPoP": dpop(OTHER)}).status_code == 400
    code = page.code(dpop_jkt=thumbprint(KEY))
    assert redeem(code).status_code == 400
    code = page.code(dpop_jkt=thumbprint(KEY))
    assert redeem(code, headers={"DPoP": dpop(KEY)}).status_code == 200


def test_what_is_no_code(redeem):
    for code in ("cgc_" + "x" * 43, "cgr_" + "x" * 43, "x"):
        assert redeem(code).json["error"] == "invalid_grant"


# --- revocation and introspection of refresh tokens


def test_a_session_ends_by_its_refresh_token(post, log_in, refresh, alive, service):
    first = log_in()
    form = {"token": first["refresh_token"]}
    assert post("revoke", form).json["error"] == "invalid_client"
    assert post("revoke", {**form, "client_id": "app"}).json["error"] == "invalid_grant"
    assert post("revoke", {**form, "client_id": "desk"}).json["error"] == "invalid_client"
    assert alive(first["access_token"])
    answer = post("revoke", {**form, "client_id": "terminal", "token_type_hint": "refresh_token"})
    assert (answer.status_code, answer.content) == (200, b"")
    assert not alive(first["access_token"])
    assert refresh(first["refresh_token"]).status_code == 400
    assert [outcome for kind, outcome, _ in service.notes if kind == "logout"] == ["pending", "allowed"]
    assert post("revoke", {"token": "cgr_" + "x" * 43, "client_id": "terminal"}).status_code == 200


@pytest.mark.parametrize("client", [{}, {"client_id": "terminal"}], ids=["nobody", "a public app"])
def test_guesses_at_refresh_tokens_count_where_they_are_revoked(post, client):
    """Each is a question to the database, and needs no proof."""
    statuses = {
        post("revoke", {"token": "cgr_" + secrets.token_urlsafe(32), **client}).status_code for _ in range(3 * FAILURES)
    }
    assert statuses == {200, 429}


def test_an_app_revokes_its_access_tokens(post, log_in, refresh, alive):
    first = log_in()
    form = {"token": first["access_token"]}
    assert post("revoke", {**form, "client_id": "app"}).json["error"] == "invalid_grant"
    assert post("revoke", {**form, "client_id": "terminal"}).status_code == 200
    assert not alive(first["access_token"])
    assert refresh(first["refresh_token"]).status_code == 200


def test_introspection_of_a_refresh_token(post, log_in, refresh, sql):
    def look(token):
        return post("introspect", {"token": token, **proof("watch")}).json

    first = log_in("weber")
    found = look(first["refresh_token"])
    claims = claims_of(first["access_token"])
    assert {name: found[name] for name in ("active", "sub", "client_id", "role", "sid", "aud", "iss")} == {
        "active": True, "sub": "user-weber", "client_id": "terminal", "role": "practitioner", "sid": claims["sid"],
        "aud": "practitioner", "iss": claims["iss"],
    }  # fmt: skip
    assert 0 < found["exp"] - found["iat"] <= 1_800, "the idle limit comes first"
    refresh(first["refresh_token"])
    assert look(first["refresh_token"]) == {"active": False}, "used"
    assert look("cgr_" + "x" * 43) == {"active": False}
    second = log_in("weber")
    age(sql, 1_801)
    assert look(second["refresh_token"]) == {"active": False}, "idle"


REVOKED = [
    pytest.param("jti", lambda claims: claims["jti"], {}, False, True, id="jti"),
    pytest.param("session", lambda claims: claims["sid"], {}, False, False, id="session"),
    pytest.param("subject", lambda claims: "user-weber", {}, False, False, id="subject"),
    pytest.param("subject", lambda claims: "user-weber", {"audience": "practitioner"}, False, False, id="... here"),
    pytest.param("subject", lambda claims: "user-weber", {"audience": "patient"}, True, True, id="... elsewhere"),
    pytest.param("subject", lambda claims: "user-anna", {}, True, True, id="another subject"),
    pytest.param("unit", lambda claims: claims["units"][0], {}, False, False, id="unit"),
    pytest.param("unit", lambda claims: "nowhere", {}, True, True, id="another unit"),
    pytest.param("before", lambda claims: "", {}, False, False, id="moment"),
    pytest.param("before", lambda claims: "", {"role": "practitioner"}, False, False, id="moment, of its role"),
    pytest.param("before", lambda claims: "", {"role": "patient"}, True, True, id="moment, of another role"),
]


@pytest.mark.parametrize(("kind", "value", "of", "access", "refreshing"), REVOKED)
def test_introspection_knows_every_kind_of_revocation(
    post, log_in, refresh, service, kind, value, of, access, refreshing
):
    """By what this worker knows of; the database has heard of none of it."""
    given = log_in("weber")
    claims = claims_of(given["access_token"])
    revocations = service.gateway.holder.current.verifier.revocations

    def look():
        return [
            post("introspect", {"token": given[name], **proof("watch")}).json["active"]
            for name in ("access_token", "refresh_token")
        ]

    assert look() == [True, True]
    revocations.revoke(kind, value(claims), time.time() + 60, time.time() + 600, **of)
    assert look() == [access, refreshing]
    if kind != "jti":
        assert (refresh(given["refresh_token"]).status_code == 200) == refreshing, "what it says is what then happens"


# --- acting for somebody

EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS = "urn:ietf:params:oauth:token-type:access_token"


@pytest.fixture
def parent(page, redeem, service):
    """Anna, who may act for pat-9, logged in by an app with proxies."""
    service.operator.add_proxy("anna", "pat-9", "kid-nine", None, "")
    return redeem(page.code()).json


@pytest.fixture
def exchange(post):
    def exchange(token, patient="pat-9", **changes):
        form = {
            "grant_type": EXCHANGE, "client_id": "app", "subject_token": token, "subject_token_type": ACCESS,
            "requested_subject": patient, **changes,
        }  # fmt: skip
        return post("token", {name: value for name, value in form.items() if value is not None})

    return exchange


def test_a_parent_acts_for_a_child(service, parent, exchange, alive):
    answer = exchange(parent["access_token"])
    assert answer.status_code == 200, answer.text
    given, own = claims_of(answer.json["access_token"]), claims_of(parent["access_token"])
    assert {**answer.json, "access_token": "", "expires_in": 0} == {
        "access_token": "", "token_type": "Bearer", "expires_in": 0, "issued_token_type": ACCESS,
    }  # fmt: skip
    assert (given["sub"], given["patient"], given["act"]) == ("kid-nine", "pat-9", {"sub": "user-anna"})
    for name in ("role", "aud", "iss", "sid", "client_id", "amr", "auth_time"):
        assert given[name] == own[name], name
    assert given["exp"] <= own["exp"], "not longer than what it was given for"
    headers = {"Authorization": f"Bearer {answer.json['access_token']}"}
    assert service.client.simulate_get("/anything", headers=headers).status_code == 200
    assert alive(answer.json["access_token"])


def test_it_is_not_longer_than_the_parents_token(parent, exchange, monkeypatch):
    def later(snapshot, role, subject, client_id, claims, now_s, **more):
        return issue_access_token(snapshot, role, subject, client_id, claims, now_s + 100, **more)

    monkeypatch.setattr("gateway.auth.grants.issue_access_token", later)
    child = claims_of(exchange(parent["access_token"]).json["access_token"])
    assert child["exp"] == claims_of(parent["access_token"])["exp"]


def test_it_ends_with_the_parents_session(post, parent, exchange, alive):
    child = exchange(parent["access_token"]).json["access_token"]
    post("revoke", {"token": parent["refresh_token"], "client_id": "app"})
    assert not alive(child)
    assert exchange(parent["access_token"]).status_code == 400


def test_whom_nobody_acts_for(parent, exchange, service, sql):
    assert exchange(parent["access_token"], "pat-8").json["error"] == "invalid_grant"
    assert exchange(parent["access_token"], "x" * 300).json["error"] == "invalid_grant"
    sql("UPDATE caregate.proxy SET until_at = now() - interval '1 s'")
    assert exchange(parent["access_token"]).json["error"] == "invalid_grant"
    sql("UPDATE caregate.proxy SET until_at = now() + interval '1 h'")
    assert exchange(parent["access_token"]).status_code == 200
    service.operator.drop_proxy("anna", "pat-9")
    assert exchange(parent["access_token"]).json["error"] == "invalid_grant"


def test_a_child_acts_for_nobody(service, parent, exchange):
    service.operator.add_proxy("anna", "pat-10", "kid-ten", None, "")
    child = exchange(parent["access_token"]).json["access_token"]
    assert exchange(child, "pat-10").json["error"] == "invalid_grant"


def test_whose_token_is_taken(parent, exchange, log_in, post, service):
    elsewhere = log_in("anna", "terminal")
    assert exchange(elsewhere["access_token"]).json["error"] == "invalid_grant", "another app's"
    assert exchange("x.y.z").json["error"] == "invalid_grant"
    assert exchange(elsewhere["access_token"], client_id="terminal").json["error"] == "unauthorized_client"
    post("revoke", {"token": parent["access_token"], "client_id": "app"})
    assert exchange(parent["access_token"]).json["error"] == "invalid_grant", "revoked"


FORMS = {
    "no type": {"subject_token_type": None},
    "another type": {"subject_token_type": "urn:ietf:params:oauth:token-type:refresh_token"},
    "another wish": {"requested_token_type": "urn:ietf:params:oauth:token-type:refresh_token"},
    "an actor of its own": {"actor_token": "x", "actor_token_type": ACCESS},
    "nobody": {"requested_subject": None},
    "no token": {"subject_token": None},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_what_an_exchange_must_say(parent, exchange, form):
    assert exchange(parent["access_token"], **form).json["error"] == "invalid_request"


@pytest.mark.parametrize("target", [{"audience": "staff"}, {"resource": "https://staff.example.org"}])
def test_an_exchange_is_for_no_other_target(parent, exchange, target):
    assert exchange(parent["access_token"], **target).json["error"] == "invalid_target"


def test_metadata(service):
    found = service.client.simulate_get("/.well-known/oauth-authorization-server").json
    assert found["grant_types_supported"] == [
        "client_credentials", "authorization_code", "password", "refresh_token", EXCHANGE,
    ]  # fmt: skip
    assert found["code_challenge_methods_supported"] == ["S256"]
    assert found["response_types_supported"] == ["code"]
    assert found["token_endpoint_auth_methods_supported"] == ["private_key_jwt", "none"]
    assert "ES256" in found["dpop_signing_alg_values_supported"]
    assert found["authorization_endpoint"].endswith("/auth/v1/authorize")
    assert found["authorization_response_iss_parameter_supported"] is True


# --- apps in browsers


@pytest.mark.parametrize(
    ("origin", "allowed"), [("https://app.test", True), ("https://evil.test", False), ("null", False)]
)
def test_whose_pages_may_get_tokens(service, origin, allowed):
    for path in ("/auth/v1/token", "/auth/v1/revoke"):
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "dpop"}
        preflight = service.client.simulate_options(path, headers=asked)
        answer = service.client.simulate_post(path, headers={"Origin": origin})
        assert (preflight.status_code, answer.status_code) == (204, 400)
        for found in (preflight, answer):
            assert found.headers.get("access-control-allow-origin") == (origin if allowed else None)
            assert "access-control-allow-credentials" not in found.headers
        assert ("dpop" in preflight.headers.get("access-control-allow-headers", "")) is allowed
        assert "origin" in answer.headers["vary"].lower()
    for path in ("/auth/v1/introspect", "/auth/v1/authorize"):
        found = service.client.simulate_post(path, headers={"Origin": origin})
        assert "access-control-allow-origin" not in found.headers
    keys = service.client.simulate_get("/auth/v1/jwks", headers={"Origin": origin})
    assert keys.headers["access-control-allow-origin"] == "*"
