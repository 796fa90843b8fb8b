"""The keys of identity providers in a worker: kept, refreshed, asked for again within limits, and never another's."""

from __future__ import annotations

import json
import mmap
import time
from dataclasses import replace
from ipaddress import ip_network
from types import SimpleNamespace

import gevent
import pytest

from fastpath.bucket import BucketTable, segment_bytes
from fastpath.token import TokenError, Verifier
from gateway.auth.mapping import ClaimMapping, MappedRole
from gateway.auth.provider_keys import read_provider_keys
from gateway.auth.providers import MAX_UNKNOWN, Providers
from gateway.config.snapshot import CompiledProvider, SnapshotHolder
from gateway.errors import KeysUnavailable

MAPPING = ClaimMapping("staff", (MappedRole("nurse", "", "", 3_600.0),), {})


def provider_of(idp, **more):
    values = {
        "name": "clinic", "issuer": idp.url, "aud": "api", "jwks_url": f"{idp.url}/jwks",
        "algorithms": ("ES256", "RS256"),
        "mapping": MAPPING, "max_lifetime_s": 3_600, "refresh_s": 3_600, "stale_s": 86_400, "timeout_ms": 10_000,
        "max_bytes": 65_536, "unknown_kid_burst": 5, "unknown_kid_period_s": 30, "unknown_kid_memory_s": 300,
        "allowed_networks": (ip_network("127.0.0.0/8"),), "allow_http": True, "certificates": None, **more,
    }  # fmt: skip
    return CompiledProvider(**values)


def snapshot_of(*providers, thumbprints=frozenset()):
    verifier = Verifier([], known_audiences=["staff", "api"])
    for provider in providers:
        verifier.set_issuer(provider.issuer, ())
    return SimpleNamespace(
        version=1, verifier=verifier, unit_verifier=Verifier([]), thumbprints=thumbprints,
        providers={provider.issuer: provider for provider in providers},
    )  # fmt: skip


class Rig:
    """A worker's providers over one scripted provider. Several rigs are workers that share directory and buckets."""

    def __init__(self, idp, directory, table, **more):
        self.idp = idp
        self.offset_s = 0.0
        self.counted = []
        self.holder = SnapshotHolder(snapshot_of(provider_of(idp, **more)))
        self.providers = Providers(
            self.holder, directory, table, count=lambda *event: self.counted.append(event),
            now=lambda: time.time() + self.offset_s,
        )  # fmt: skip

    def start(self):
        """Start, and wait for the first fetch however busy the machine is."""
        self.providers.start()
        if self.source.flight is not None:
            self.source.flight.join(10)

    def knows(self, kid, wait_s=10.0):
        return self.providers.knows(self.idp.url, kid, wait_s)

    def verify(self, kid):
        now = int(time.time())
        token = self.idp.token(kid, sub="s", aud="api", iat=now, exp=now + 60)
        return self.holder.current.verifier.verify(token, now)

    @property
    def source(self):
        return self.providers._sources[self.idp.url]


@pytest.fixture
def table():
    return BucketTable(mmap.mmap(-1, segment_bytes(1_024)), 1_024, b"k" * 16, create=True)


@pytest.fixture
def worker(idp, tmp_path, table):
    made = []

    def worker(**more):
        made.append(Rig(idp, tmp_path, table, **more))
        return made[-1]

    yield worker
    for rig in made:
        rig.providers.stop()


def test_a_worker_starts_with_the_keys(worker):
    rig = worker()
    rig.start()
    assert rig.verify("k1").role == "nurse"
    assert rig.providers.describe()["clinic"]["keys"] == ["k1"]
    assert rig.counted == [("clinic", "ok")]


def test_the_last_good_keys_survive_the_worker_and_the_provider(worker, idp):
    worker().start()
    idp.stop()
    rig = worker()
    assert rig.verify("k1"), "from the disk, before anything is fetched"
    rig.start()
    rig.source.failures = 0
    assert not rig.knows("k2", 1.0)
    assert rig.counted == [("clinic", "unreachable")]
    assert rig.verify("k1")


def test_a_new_key_is_found_when_a_token_brings_it(worker, idp):
    rig = worker()
    rig.start()
    idp.add_key("k2")
    with pytest.raises(TokenError):
        rig.verify("k2")
    assert rig.knows("k2")
    assert rig.verify("k2")
    assert rig.verify("k1"), "the old one stays as long as it is published"


def test_a_removed_key_is_refused_after_the_next_fetch(worker, idp):
    rig = worker()
    rig.start()
    remembered = rig.verify("k1")
    idp.add_key("k2")
    assert rig.knows("k2")
    assert rig.verify("k1").key is remembered.key, "the same key object: its tokens stay verified"
    gone = idp.keys.pop("k1")
    idp.publish()
    idp.add_key("k3")
    assert rig.knows("k3")
    idp.keys["k1"] = gone
    with pytest.raises(TokenError):
        rig.verify("k1")


def test_unknown_ids_take_from_one_bucket_of_all_workers(worker, idp):
    first, second = worker(), worker()
    first.start()
    gevent.sleep(0.01)
    before = idp.fetches()
    found = [rig.knows(f"no-{number}") for number in range(20) for rig in (first, second)]
    assert found == [False] * 40
    assert idp.fetches() - before == 5


def test_an_id_that_was_not_there_is_remembered(worker, idp):
    rig = worker()
    rig.start()
    before = idp.fetches()
    assert [rig.knows("no") for _ in range(9)] == [False] * 9
    assert idp.fetches() - before == 1
    rig.offset_s = 301.0
    assert not rig.knows("no")
    assert idp.fetches() - before == 2
    for number in range(3 * MAX_UNKNOWN):
        rig.source.remember(str(number), 1e12)
    assert len(rig.source.unknown) == MAX_UNKNOWN


def test_one_fetch_at_a_time(worker, idp):
    first, second = worker(), worker()
    first.start()
    second.start()
    body = idp.answers["/jwks"]
    flying, most = [0], [0]

    def slow(sock):
        flying[0] += 1
        most[0] = max(most[0], flying[0])
        gevent.sleep(0.2)
        flying[0] -= 1
        sock.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )

    idp.add_key("k2")
    body = idp.answers["/jwks"]
    idp.answers["/jwks"] = slow
    before = idp.fetches()
    asked = [gevent.spawn(rig.knows, "k2") for rig in (first, second) for _ in range(10)]
    gevent.joinall(asked, timeout=20)
    assert [greenlet.value for greenlet in asked] == [True] * 20
    assert (idp.fetches() - before, most[0]) == (1, 1)


def test_a_request_waits_no_longer_than_it_may(worker, idp):
    rig = worker()
    rig.start()
    idp.answers["/jwks"] = lambda sock: gevent.sleep(1.5)
    begun_s = time.monotonic()
    assert not rig.knows("k2", 0.05)
    assert time.monotonic() - begun_s < 1.0
    assert "k2" not in rig.source.unknown, "nobody knows yet"


def test_nothing_known_is_unavailable_and_not_refused(worker, idp):
    idp.answers["/jwks"] = b"{}"
    rig = worker()
    rig.start()
    for _ in range(8):
        with pytest.raises(KeysUnavailable):
            rig.knows("k1")
    assert ("clinic", "malformed") in rig.counted


@pytest.mark.parametrize("bad", [b"{}", b"[]", b"no json", b'{"keys": []}', b'{"keys": {}}', b"\xff"], ids=str)
def test_the_last_good_keys_stay_when_the_next_are_none(worker, idp, bad):
    rig = worker()
    rig.start()
    idp.answers["/jwks"] = bad
    assert not rig.knows("k2")
    assert rig.counted[-1] == ("clinic", "malformed")
    assert rig.verify("k1")


def test_old_keys_are_not_used_for_ever(worker, idp):
    rig = worker(stale_s=100)
    rig.start()
    rig.offset_s = 101.0
    rig.providers._drop_stale(rig.source)
    with pytest.raises(TokenError):
        rig.verify("k1")
    idp.answers["/jwks"] = b"gone"
    with pytest.raises(KeysUnavailable):
        rig.knows("k1")


def test_refreshed_in_the_background(worker, idp):
    rig = worker(refresh_s=0)
    rig.start()
    idp.add_key("k2")
    until_s = time.monotonic() + 5
    while "k2" not in rig.source.keys:
        assert time.monotonic() < until_s
        gevent.sleep(0.01)


def test_a_configuration_brings_its_own_mapping_and_keeps_the_keys(worker, idp):
    rig = worker()
    rig.start()
    before = idp.fetches()
    other = ClaimMapping("staff", (MappedRole("clerk", "", "", 3_600.0),), {})
    rig.holder.swap(snapshot_of(provider_of(idp, mapping=other)))
    assert rig.verify("k1").role == "clerk"
    assert idp.fetches() == before
    rig.holder.swap(snapshot_of())
    assert not rig.knows("k1")


def test_a_fetch_that_a_configuration_overtakes_goes_to_the_new_one(worker, idp):
    rig = worker()
    rig.start()
    idp.add_key("k2")
    body = idp.answers["/jwks"]

    def slow(sock):
        gevent.sleep(0.1)
        sock.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )

    idp.answers["/jwks"] = slow
    asked = gevent.spawn(rig.knows, "k2")
    gevent.sleep(0.02)
    other = ClaimMapping("staff", (MappedRole("clerk", "", "", 3_600.0),), {})
    rig.holder.swap(snapshot_of(provider_of(idp, mapping=other)))
    asked.join(timeout=20)
    assert asked.value is True
    assert rig.verify("k2").role == "clerk"


def test_discovery(worker, idp):
    rig = worker(jwks_url=None)
    rig.start()
    assert rig.verify("k1")
    assert idp.asked == ["/.well-known/openid-configuration", "/jwks"]


# --- what of a set is used


def entries(idp):
    good = idp.jwk("k1")
    idp.keys["k2"] = idp.keys["k1"]
    return {
        "good": [good],
        "no-alg": [{name: value for name, value in good.items() if name != "alg"}],
        "for-encryption": [idp.jwk("k2", use="enc"), good],
        "key-ops": [idp.jwk("k2", key_ops=["encrypt"]), good],
        "private": [idp.jwk("k2", d="AAAA"), good],
        "secret": [{"kty": "oct", "k": "A" * 64, "kid": "k2", "alg": "HS256"}, good],
        "no-kid": [{name: value for name, value in good.items() if name != "kid"}, good],
        "another-alg": [idp.jwk("k2", alg="ES384"), good],
        "garbage": [7, None, {"kty": "EC"}, good],
        "long-kid": [{**good, "kid": "x" * 300}, good],
    }


@pytest.mark.parametrize(
    "case",
    [
        "good", "no-alg", "for-encryption", "key-ops", "private", "secret", "no-kid", "another-alg", "garbage",
        "long-kid",
    ],
)  # fmt: skip
def test_only_good_keys_are_used(idp, case):
    text = json.dumps({"keys": entries(idp)[case]}).encode()
    keys, faults = read_provider_keys(text, ("ES256",), ())
    assert [key.kid for key in keys] == ["k1"]
    assert len(faults) == len(entries(idp)[case]) - 1


@pytest.mark.parametrize(
    "keys",
    [
        lambda idp: [idp.jwk("k1"), idp.jwk("k1")],
        lambda idp: [idp.jwk("k1"), {"kty": "oct", "k": "A" * 64, "kid": "k1", "alg": "HS256"}],
        lambda idp: [idp.jwk("k1", use="enc")],
        lambda idp: [{**idp.jwk("k1"), "kid": f"k{number}"} for number in range(65)],
        lambda idp: [],
    ],
    ids=["double-kid", "kid-of-a-secret", "wrong-use", "too-many", "none"],
)
def test_no_key_is_usable(idp, keys):
    with pytest.raises(ValueError, match=r"no key|more than"):
        read_provider_keys(json.dumps({"keys": keys(idp)}).encode(), ("ES256",), ())


def test_a_key_of_ours_is_not_theirs(idp):
    text = idp.answers["/jwks"]
    (mine, *_), _ = read_provider_keys(text, ("ES256",), ())
    with pytest.raises(ValueError, match="no key"):
        read_provider_keys(text, ("ES256",), {mine.thumbprint})


def test_an_rsa_key_without_an_algorithm_is_for_the_first_that_fits(idp):
    import jwt
    from cryptography.hazmat.primitives.asymmetric import rsa

    members = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048).public_key()))
    text = json.dumps({"keys": [{**members, "kid": "r"}]}).encode()
    assert read_provider_keys(text, ("ES256", "PS256", "RS256"), ())[0][0].alg == "PS256"
    with pytest.raises(ValueError, match="no key"):
        read_provider_keys(text, ("ES256",), ())


def test_the_kept_keys_of_another_configuration_are_not_taken(worker, idp, tmp_path):
    worker().start()
    rig = worker(jwks_url=f"{idp.url}/other")
    with pytest.raises(TokenError):
        rig.verify("k1")
    assert replace(provider_of(idp), name="x").name == "x"
