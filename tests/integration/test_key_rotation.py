"""Keys of roles: made, rotated with an overlap, retired and sealed anew by the command, in four real workers."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from urllib.parse import urlencode

import jwt
import psycopg
import pytest
import yaml

from gateway.cli.main import main
from gateway.config.reload import ReloadFailed, ask
from gateway.demo.platform import Platform
from loadtests.demo import free_base_port

pytestmark = pytest.mark.integration

WORKERS = 4
URL = "https://api.caregate.test"
TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    """One of its own, without units: its keys end."""
    started = Platform(tmp_path_factory.mktemp("rotation"), free_base_port(), WORKERS, tell=lambda text: None)
    try:
        started.start_gateway()
        yield started
    finally:
        started.stop()


@pytest.fixture
def keys(platform, capsys):
    """`caregate keys …`: exit status and what it said."""

    def keys(*arguments):
        why = () if arguments[0] == "list" else ("--reason", "a test", "--author", "ada")
        code = main(["keys", *arguments, *why, "--data-dir", str(platform.directory)])
        said = capsys.readouterr()
        return code, said.out + said.err

    return keys


@pytest.fixture
def grant(platform, call):
    """A token for the partner, by the client's own key."""
    private = (platform.directory / "keys" / "client-insurer.key").read_bytes()

    def grant():
        now = int(time.time())
        claims = {"iss": "client-insurer", "sub": "client-insurer", "aud": URL, "iat": now, "exp": now + 60}
        proof = jwt.encode({**claims, "jti": str(uuid.uuid4())}, private, "EdDSA", {"kid": "client-insurer-1"})
        form = {"grant_type": "client_credentials", "client_assertion_type": TYPE, "client_assertion": proof}
        body = urlencode(form).encode()
        answer = call("POST", "/auth/v1/token", None, body, Content_Type="application/x-www-form-urlencoded")
        assert answer.status == 200, answer.body
        return answer.json["access_token"]

    return grant


def everywhere(call, token, status, rounds=24):
    return all(call("GET", "/auth/v1/none", token).status == status for _ in range(rounds))


def kid_of(token):
    return jwt.get_unverified_header(token)["kid"]


def sql(platform, query):
    with psycopg.connect(platform._postgres.admin_dsn) as admin:
        return admin.execute(query).fetchall()


def test_a_rotation_from_its_beginning_to_its_end(platform, call, keys, grant, wait, worker_pids, kill, monkeypatch):
    wait(lambda: all_are_up(platform), 60)
    before = grant()
    code, said = keys("rotate", "partner")
    assert (code, f"in force in {WORKERS} workers" in said) == (0, True), said
    made = said.split()[0]
    tokens = [grant() for _ in range(8)]
    assert {kid_of(token) for token in tokens} == {made}, "it signs at once, in every worker"
    assert everywhere(call, tokens[0], 404)
    assert everywhere(call, before, 404), "the old one verifies until the overlap ends"
    published = {key["kid"] for key in call("GET", "/auth/v1/jwks").json["keys"]}
    assert {made, kid_of(before)} <= published

    code, said = keys("rotate", "partner")
    assert (code, "2 keys of partner are live" in said) == (1, True)

    ((sealed,),) = sql(platform, f"SELECT sealed FROM caregate.signing_key WHERE kid = '{made}'")
    assert bytes(sealed).startswith(b"CGK\x01")
    copy = platform.directory / "tokens-last-known.json"
    wait(copy.exists)
    for kept in (bytes(sealed), copy.read_bytes()):
        assert b"PRIVATE" not in kept

    rewrapped(platform, keys, monkeypatch, made, bytes(sealed))

    old = set(worker_pids())
    for pid in old:
        kill(pid)
    wait(lambda: len(set(worker_pids()) - old) == WORKERS, limit_s=30)
    wait(lambda: all_are_up(platform), limit_s=30)
    assert kid_of(grant()) == made, "also after a restart"
    assert everywhere(call, tokens[0], 404)

    code, said = keys("retire", made)
    assert (code, f"in force in {WORKERS} workers" in said) == (0, True), said
    assert everywhere(call, tokens[0], 401)
    assert kid_of(grant()) == kid_of(before), "the other one signs again"
    assert made not in {key["kid"] for key in call("GET", "/auth/v1/jwks").json["keys"]}
    code, said = keys("retire", kid_of(before))
    assert (code, "is the last key of partner" in said) == (2, True)


def rewrapped(platform, keys, monkeypatch, kid, sealed):
    """Sealed under another key-encryption key, and back again."""
    first, second = platform.directory / "key-encryption.key", platform.directory / "other.kek"
    second.write_bytes(b"another key-encryption key, 32 bytes or more")
    second.chmod(0o600)
    for current, before in ((second, first), (first, second)):
        monkeypatch.setenv("CAREGATE_KEY_ENCRYPTION_KEY", f"file:{current}")
        monkeypatch.setenv("CAREGATE_KEY_ENCRYPTION_KEY_BEFORE", f"file:{before}")
        assert keys("rewrap") == (0, f"{kid} is sealed anew\n")
        assert keys("rewrap") == (0, ""), "there is no more to do"
        ((now,),) = sql(platform, f"SELECT sealed FROM caregate.signing_key WHERE kid = '{kid}'")
        assert (bytes(now)[:12] == sealed[:12]) is (current is first)
    monkeypatch.delenv("CAREGATE_KEY_ENCRYPTION_KEY")
    monkeypatch.delenv("CAREGATE_KEY_ENCRYPTION_KEY_BEFORE")


def all_are_up(platform):
    try:
        return len(ask(platform.directory / "run", "keys")) == WORKERS
    except ReloadFailed:
        return False


def test_the_overlap_ends_by_itself_in_every_worker(platform, call, keys, wait):
    document = yaml.safe_load(Path(platform._env["CAREGATE_CONFIG_PATH"]).read_text())
    role = document["roles"]["platform_admin"]
    key = role["keys"][0]
    private = (platform.directory / (key.get("secret") or key["private_key"]).removeprefix("file:")).read_bytes()
    now = int(time.time())
    claims = {
        "iss": document["audiences"][role["audience"]]["issuer"], "aud": role["audience"], "sub": "s", "iat": now,
        "exp": now + 240,
    }  # fmt: skip
    token = jwt.encode(claims, private.strip() if key["alg"][:2] == "HS" else private, key["alg"], {"kid": key["kid"]})
    assert everywhere(call, token, 404)
    assert keys("rotate", "platform_admin", "--overlap", "3s")[0] == 0
    states = {one["kid"]: one for one in json.loads(keys("list", "--json")[1])["platform_admin"]}
    ends_s = states[key["kid"]]["retires_s"]
    assert everywhere(call, token, 404, rounds=8) or time.time() >= ends_s
    wait(lambda: everywhere(call, token, 401), limit_s=15)
    assert time.time() >= ends_s
    assert "retired" in keys("list")[1]


def test_a_rotation_at_a_stated_time(platform, keys):
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3_600))
    code, said = keys("rotate", "hcu_admin", "--at", at, "--alg", "EdDSA")
    assert code == 0, said
    states = json.loads(keys("list", "--json")[1])["hcu_admin"]
    made = next(key for key in states if key["source"] == "made")
    assert (made["alg"], made["live"], made["signs"]) == ("EdDSA", True, False)
    assert f"signs from {at}" in keys("list")[1]
    assert keys("retire", made["kid"])[0] == 0


def test_the_trail_has_each_change_once_with_its_author(platform, wait):
    query = "SELECT canonical::json -> 'detail' FROM audit.event WHERE kind = 'key'"
    found = wait(lambda: found if len(found := [row[0] for row in sql(platform, query)]) >= 7 else None)
    assert sorted(detail["what"] for detail in found) == ["retired"] * 2 + ["rewrapped"] * 2 + ["rotated"] * 3
    assert {(detail["author"], detail["actor"], detail["reason"]) for detail in found} == {
        ("ada", "caregate_operator", "a test")
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rotate", "nobody"], "has no role nobody"),
        (["rotate", "partner", "--at", "2020-01-01T00:00:00Z"], "is over already"),
        (["retire", "nothing"], "has a key nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_nonsense(keys, arguments, said):
    code, text = keys(*arguments)
    assert (code, said in text) == (2, True), text
