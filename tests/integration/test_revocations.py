"""Revocation by session, subject, unit and moment: in four real workers, by the command, and over a restart."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import jwt
import psycopg
import pytest
import yaml

from gateway.cli.main import main

pytestmark = pytest.mark.integration

WORKERS = 4


@pytest.fixture(scope="module")
def mint(platform):
    """A token of a role whose key is a shared secret, issued a minute ago."""
    document = yaml.safe_load(Path(platform._env["CAREGATE_CONFIG_PATH"]).read_text())

    def mint(role="hcu_clerk", age_s=60, **claims):
        key = document["roles"][role]["keys"][0]
        secret = (platform.directory / key["secret"].removeprefix("file:")).read_bytes().strip()
        audience = document["roles"][role]["audience"]
        now = int(time.time())
        payload = {
            "iss": document["audiences"][audience]["issuer"], "aud": audience, "sub": "rev-sub", "iat": now - age_s,
            "exp": now + 600, "jti": str(uuid.uuid4()), **claims,
        }  # fmt: skip
        return jwt.encode(payload, secret, key["alg"], {"kid": key["kid"]})

    return mint


@pytest.fixture
def revoke(platform, capsys):
    def revoke(*arguments):
        code = main(
            ["revoke", *arguments, "--reason", "a test", "--author", "ada", "--data-dir", str(platform.directory)]
        )
        assert code == 0, capsys.readouterr()
        return capsys.readouterr().out

    return revoke


def everywhere(call, token, status, rounds=32):
    """Is this what each of many new connections is answered? The kernel spreads them over the workers."""
    return all(call("GET", "/auth/v1/none", token).status == status for _ in range(rounds))


CASES = {
    "jti": (["jti", "rev-jti"], {"jti": "rev-jti"}, {}),
    "session": (["session", "rev-sid"], {"sid": "rev-sid"}, {"sid": "another"}),
    "subject": (["subject", "rev-a", "--audience", "staff-portal"], {"sub": "rev-a"}, {"sub": "rev-b"}),
    "subject-issued-later": (["subject", "rev-c"], {"sub": "rev-c"}, {"sub": "rev-c", "age_s": -2}),
    "unit": (["unit", "rev-unit", "--tokens-only"], {"units": ["x", "rev-unit"]}, {"units": ["x"]}),
    "role": (["before", "now", "--role", "hcu_clerk"], {}, {"role": "patient", "sub": "rev-d"}),
}


@pytest.mark.parametrize("case", CASES)
def test_in_force_in_every_worker(platform, call, mint, revoke, wait, case):
    arguments, claims, other_claims = CASES[case]
    token, other = mint(**claims), mint(**other_claims)
    assert everywhere(call, token, 404), "a good token, no such path"
    assert f"in force in {WORKERS} workers" in revoke(*arguments)
    assert everywhere(call, token, 401)
    # One that was issued after the revocation of its subject, or that it does not cover.
    assert everywhere(call, other, 404)


def test_after_a_restart(platform, call, mint, wait, worker_pids, kill):
    tokens = [mint(**claims) for case, (_, claims, _) in CASES.items() if case != "role"]
    before = set(worker_pids())
    for pid in before:
        kill(pid)
    wait(lambda: len(set(worker_pids()) - before) == WORKERS, limit_s=30)
    wait(lambda: answers(call), limit_s=30)
    for token in tokens:
        assert everywhere(call, token, 401, rounds=12)


def answers(call):
    try:
        return call("GET", "/auth/v1/jwks").status == 200
    except OSError:
        return False


def test_the_trail_has_each_once_with_its_author(platform, wait):
    query = "SELECT canonical::json -> 'detail' FROM audit.event WHERE kind = 'revocation'"

    def noted():
        with psycopg.connect(platform._postgres.admin_dsn) as admin:
            found = [detail for (detail,) in admin.execute(query) if detail["author"] == "ada"]
        return found if len(found) >= len(CASES) else None

    found = wait(noted)
    assert len(found) == len(CASES)
    assert {detail["what"] for detail in found} == {"jti", "session", "subject", "unit", "before"}
    assert {(detail["reason"], detail["actor"]) for detail in found} == {("a test", "caregate_operator")}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["before", "2999-01-01T00:00:00Z"], "has not come yet"),
        (["before", "2026-01-01"], "with its zone"),
        (["before", "yesterday"], "now, or a time"),
        (["unit", "Not A Unit"], "lower case"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_nonsense(platform, capsys, arguments, said):
    with pytest.raises(SystemExit):
        main(["revoke", *arguments, "--reason", "x"])
    assert said in capsys.readouterr().err
