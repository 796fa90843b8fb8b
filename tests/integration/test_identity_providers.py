"""Tokens of identity providers at four real workers: a provider from the npm registry, its keys, its absence."""

from __future__ import annotations

import time

import jwt
import pytest

from tests.integration.conftest import Client
from tests.integration.providers import HOSPITAL, WORKERS

pytestmark = pytest.mark.integration

PATH = f"/staff/v1/units/{HOSPITAL}/appointments"
DOCTOR = {"realm_access": {"roles": ["offline_access", "doctor"]}, "hospital_units": [HOSPITAL]}
ROUNDS = 24
"""New connections a check: the kernel spreads them over the workers."""


@pytest.fixture
def call(provider_site):
    return Client(provider_site)


def statuses(call, token, path=PATH):
    return {call("GET", path, token).status for _ in range(ROUNDS)}


def test_a_mapped_token_is_as_good_as_ours_at_every_worker(provider_site, call):
    token = provider_site.real.token(**DOCTOR)
    assert statuses(call, token) == {200}


def test_by_the_providers_own_token_endpoint(provider_site, call):
    import json
    from urllib.parse import urlencode
    from urllib.request import urlopen

    claims = json.dumps({"sub": "u", "aud": "caregate-api", "exp": int(time.time()) + 300, **DOCTOR})
    form = urlencode({"grant_type": "client_credentials", "claims": claims}).encode()
    with urlopen(f"{provider_site.real.issuer}/token", form, timeout=10) as answer:
        token = json.load(answer)["access_token"]
    assert call("GET", PATH, token).status == 200


@pytest.mark.parametrize(
    ("changes", "status", "problem"),
    [
        ({"realm_access": {"roles": ["cleaner"]}}, 401, "token-invalid"),
        ({"realm_access": {}, "role": "practitioner"}, 401, "token-invalid"),
        ({"aud": "somebody-else"}, 401, "token-invalid"),
        ({"aud": ["caregate-api", "patient-app"]}, 401, "token-invalid"),
        ({"aud": ["caregate-api", "account"]}, 200, ""),
        ({"hospital_units": ["another"]}, 403, "binding"),
        ({"hospital_units": None, "units": [HOSPITAL]}, 403, "binding"),
        ({"exp": 1}, 401, "token-invalid"),
        ({"exp": 4_000_000_000}, 401, "token-invalid"),
        ({"nonce": "n"}, 401, "token-invalid"),
        ({"iss": "https://id.caregate.test/staff"}, 401, "token-invalid"),
    ],
    ids=[
        "no-role", "role-of-its-own", "audience", "two-of-ours", "one-of-ours", "unit", "unit-unmapped", "expired",
        "too-long", "id-token", "our-issuer",
    ],
)  # fmt: skip
def test_what_a_token_says_counts_only_as_mapped(provider_site, call, changes, status, problem):
    claims = {name: value for name, value in {**DOCTOR, **changes}.items() if value is not None}
    answer = call("GET", PATH, provider_site.real.token(**claims))
    assert answer.status == status, answer.body
    if problem:
        assert problem in answer.json["type"]


def test_a_new_key_of_the_provider_is_found_by_every_worker(provider_site, call, wait):
    provider_site.real.generate("ES256", "ec-2")
    token = provider_site.real.token("ec-2", **DOCTOR)
    # NOTE: at once, unless another test emptied the bucket with keys that are none: it has one again after 30 s.
    wait(lambda: call("GET", PATH, token).status == 200, limit_s=60)
    assert statuses(call, token) == {200}
    assert statuses(call, provider_site.real.token("rsa-1", **DOCTOR)) == {200}


def test_unknown_keys_fetch_five_times_for_all_workers(provider_site, call):
    before = provider_site.own.fetches
    found = {call("GET", PATH, provider_site.own.token(f"no-{number}")).status for number in range(60)}
    assert found == {401}
    assert provider_site.own.fetches - before <= 5
    assert call("GET", PATH, provider_site.own.token(units=[HOSPITAL])).status == 200


def test_a_provider_that_never_answered_is_a_dependency(provider_site, call):
    now = int(time.time())
    claims = {"iss": provider_site.gone, "sub": "s", "aud": "staff-portal", "iat": now, "exp": now + 60}
    token = jwt.encode(claims, provider_site.own.key, "ES256", {"kid": "k"})
    answer = call("GET", PATH, token)
    assert (answer.status, answer.json["type"].rpartition(":")[2]) == (503, "keys-unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.json["retryable"] is True


def test_the_last_good_keys_outlive_provider_and_workers(provider_site, call, wait):
    token = provider_site.real.token(**DOCTOR)
    assert call("GET", PATH, token).status == 200
    provider_site.real.stop()
    child = provider_site.children["gateway"]
    child.signal(15)
    child.wait(time.monotonic() + 15)
    provider_site._start_workers()
    assert statuses(call, token) == {200}
    assert WORKERS > 1


def test_metrics(provider_site, call):
    text = call.ops("/metrics")
    assert 'caregate_identity_provider_fetches_total{outcome="unreachable",provider="gone"}' in text
