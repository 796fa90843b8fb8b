"""Checkpoints by living workers, and their verification from end to end."""

import threading
import time
from collections import Counter

import gevent
import orjson
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.audit import notary
from gateway.audit.checkpoint import ChainHead, CheckpointBad, Sealed, encode, merkle_root, unseal
from gateway.audit.copies import mirror
from gateway.audit.lines import append
from gateway.audit.notary import KEY, KeyUnusable, load_or_make_key, read_private_key, read_sealed
from gateway.audit.spool import adopt, chains, open_spool
from gateway.audit.trail import AuditTrail
from gateway.cli.main import main
from gateway.context import RequestContext, new_request_id
from gateway.store.pool import Database


@pytest.fixture
def database(postgres):
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as connection:
        connection.execute("DELETE FROM audit.event; DELETE FROM audit.checkpoint")
    database = Database(postgres.gateway_dsn, pool_max=2)
    database.open()
    yield database
    database.close()


@pytest.fixture
def start(database, tmp_path):
    running = []

    def start(**options):
        counts = Counter()
        trail = AuditTrail(
            database, tmp_path, node="node-1", segment_bytes=262_144,
            count=lambda outcome, number: counts.update({outcome: number}),
            **{"checkpoint_s": 0.05, **options},
        )  # fmt: skip
        trail.counts = counts
        trail.start()
        running.append(trail)
        return trail

    yield start
    for trail in running:
        trail.stop(timeout_s=2)


def _access(trail, count=1):
    for _ in range(count):
        trail.enqueue_finished(RequestContext(id=new_request_id(), started_ns=0, method="GET"), 200)


def _sealed(tmp_path):
    return [one for path in sorted((tmp_path / "audit/checkpoints").glob("*.ndjson")) for one in read_sealed(path)]


def wait(condition, within_s=5.0):
    end = time.monotonic() + within_s
    while not condition() and time.monotonic() < end:
        gevent.sleep(0.01)
    assert condition()


def rows(postgres):
    with psycopg.connect(postgres.admin_dsn) as connection:
        return connection.execute("SELECT number FROM audit.checkpoint ORDER BY number").fetchall()


def test_one_of_the_workers_signs_for_all_chains(start, tmp_path, postgres):
    first, second = start(), start()
    _access(first, 3)
    _access(second, 4)
    wait(lambda: any(
        sorted(head.sequence for head in checkpoint.heads) == [3, 4] for checkpoint in _checkpoints(tmp_path)
    ))  # fmt: skip
    assert {head.chain for head in _checkpoints(tmp_path)[-1].heads} == {
        path.name for path in chains(tmp_path / "audit")
    }
    wait(lambda: first.counts["sealed"] > 0)
    assert second.counts["sealed"] == 0
    first.stop()
    before = len(_sealed(tmp_path))
    wait(lambda: len(_sealed(tmp_path)) > before + 1)
    assert [checkpoint.number for checkpoint in _checkpoints(tmp_path)] == list(range(1, len(_sealed(tmp_path)) + 1))
    wait(lambda: len(rows(postgres)) > before)


def _checkpoints(tmp_path):
    key = load_or_make_key(tmp_path / "audit" / KEY).public_key()
    return [unseal(one, [key]) for one in _sealed(tmp_path)]


def test_end_to_end(start, tmp_path, postgres, capsys, monkeypatch):
    monkeypatch.setenv("CAREGATE_DATA_DIR", str(tmp_path))
    trail = start()
    _access(trail, 700)
    trail.stop()
    trail = start()
    _access(trail, 5)
    trail.stop()
    assert main(["audit", "verify", "--dsn", postgres.admin_dsn]) == 0
    assert capsys.readouterr().out.startswith("705 records in 1 chains, 705 of them under")
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as connection:
        connection.execute("DELETE FROM audit.event WHERE sequence = 700")
    assert main(["audit", "verify", "--dsn", postgres.admin_dsn]) == 1
    assert " record 700: missing" in capsys.readouterr().out.splitlines()[0]


def test_what_postgresql_missed_is_sent_later(start, tmp_path, postgres):
    postgres.stop()
    trail = start()
    wait(lambda: len(_sealed(tmp_path)) >= 3)
    trail.stop(timeout_s=0.2)
    count = len(_sealed(tmp_path))
    postgres.start()
    start()
    wait(lambda: len(rows(postgres)) > count)
    assert [number for (number,) in rows(postgres)] == list(range(1, len(rows(postgres)) + 1))


def test_a_torn_line_is_cut_off(start, tmp_path):
    start().stop()
    (path,) = (tmp_path / "audit/checkpoints").glob("*.ndjson")
    whole = len(_sealed(tmp_path))
    path.write_bytes(path.read_bytes() + b'{"checkpoint":"{')
    start().stop()
    assert [checkpoint.number for checkpoint in _checkpoints(tmp_path)] == list(range(1, len(_sealed(tmp_path)) + 1))
    assert len(_sealed(tmp_path)) > whole


def test_a_second_place(start, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    trail = start(checkpoint_copies=(tmp_path / "elsewhere", tmp_path / "missing"))
    wait(lambda: trail.counts["uncopied"])
    trail.stop()
    (copy,) = (tmp_path / "elsewhere").iterdir()
    (original,) = (tmp_path / "audit/checkpoints").glob("*.ndjson")
    assert copy.read_bytes() == original.read_bytes()


def _copied(tmp_path):
    """Are the files of both places the same?"""
    originals, copies = (sorted(path.glob("*.ndjson")) for path in (tmp_path / "audit/checkpoints", tmp_path / "there"))
    return [path.read_bytes() for path in copies] == [path.read_bytes() for path in originals]


def test_a_second_place_that_was_away_gets_what_it_missed(start, tmp_path):
    there, away = tmp_path / "there", tmp_path / "away"
    there.mkdir()
    trail = start(checkpoint_copies=(there,))
    wait(lambda: trail.counts["sealed"] >= 2)
    there.rename(away)
    wait(lambda: trail.counts["uncopied"] >= 3)
    away.rename(there)
    sealed = trail.counts["sealed"]
    wait(lambda: trail.counts["sealed"] > sealed + 1)
    trail.stop()
    assert _copied(tmp_path)
    trail = start(checkpoint_copies=(tmp_path / "nowhere",))
    wait(lambda: trail.counts["sealed"] >= 2)
    trail.stop()
    assert not _copied(tmp_path)
    for path in there.iterdir():
        path.unlink()  # as the place under a mount that came later
    start(checkpoint_copies=(there,)).stop()
    assert _copied(tmp_path)


def test_a_place_that_hangs_holds_up_no_checkpoint(start, tmp_path, monkeypatch):
    hangs = threading.Event()
    monkeypatch.setattr("gateway.audit.copies.mirror", lambda *about: int(not hangs.wait(30)))
    trail = start(checkpoint_copies=(tmp_path,))
    wait(lambda: trail.counts["sealed"] >= 3)
    hangs.set()


LINES = [b'{"n":%d}\n' % n for n in range(4)]


@pytest.mark.parametrize(
    ("there", "found"),
    [
        pytest.param(None, LINES[:3], id="nothing"),
        pytest.param(LINES[:1], LINES[:3], id="the first"),
        pytest.param(LINES[:3], LINES[:3], id="all"),
        pytest.param([*LINES[:2], LINES[2][:4]], LINES[:3], id="a torn line"),
        pytest.param([LINES[0], LINES[2]], [LINES[0], LINES[2], LINES[1]], id="a gap"),
        pytest.param([LINES[0], b"x"], LINES[:3], id="a torn line of something else"),
        pytest.param([LINES[0], b"other\n"], [LINES[0], b"other\n", LINES[1], LINES[2]], id="a line that is not ours"),
        pytest.param(LINES, LINES, id="more than is durable"),
    ],
)
def test_what_is_added_to_a_copy(tmp_path, there, found):
    ours, place = tmp_path / "ours", tmp_path / "place"
    ours.mkdir()
    place.mkdir()
    (ours / "2026-01.ndjson").write_bytes(b"".join(LINES))
    if there is not None:
        (place / "s-2026-01.ndjson").write_bytes(b"".join(there))
    mirror(ours, place, "s", {"2026-01.ndjson": len(b"".join(LINES[:3]))})
    assert (place / "s-2026-01.ndjson").read_bytes() == b"".join(found)


class TestKey:
    def test_made_once(self, tmp_path):
        path = tmp_path / KEY
        one, two = load_or_make_key(path), load_or_make_key(path)
        assert one.private_bytes_raw() == two.private_bytes_raw()
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.with_suffix(".pub").exists()

    def test_readable_by_others(self, tmp_path):
        load_or_make_key(tmp_path / KEY)
        (tmp_path / KEY).chmod(0o640)
        with pytest.raises(KeyUnusable, match="readable by others"):
            load_or_make_key(tmp_path / KEY)

    @pytest.mark.parametrize("pem", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"])
    def test_not_a_key(self, pem):
        with pytest.raises(KeyUnusable):
            read_private_key(pem, "it")

    def test_without_a_key_requests_are_answered_and_it_is_told(self, start, tmp_path):
        def none():
            raise KeyUnusable("it is not there")

        trail = start(key=none)
        wait(lambda: trail.counts["unsealed"])
        trail.record(RequestContext(id="r", started_ns=0), 200)
        assert _sealed(tmp_path) == []


def _head(chain, sequence, byte):
    return ChainHead(chain, sequence, bytes([byte] * 32).hex(), 0)


HEADS = st.lists(
    st.builds(_head, st.text("abc", min_size=1, max_size=4), st.integers(0, 2**40), st.integers(0, 255)), max_size=9
)


@settings(max_examples=100, deadline=None)
@given(HEADS, HEADS)
def test_different_heads_have_different_roots(one, other):
    view = [(head.chain, head.sequence, head.hash) for head in one]
    assert (merkle_root(one) == merkle_root(other)) == (
        view == [(head.chain, head.sequence, head.hash) for head in other]
    )


def test_a_root_that_is_not_that_of_its_heads(tmp_path, start):
    """By one who has the key and hides a chain."""
    start().stop()
    key = load_or_make_key(tmp_path / "audit" / KEY)
    body = orjson.loads(_sealed(tmp_path)[-1].checkpoint)
    canonical = orjson.dumps(body | {"heads": []})
    bad = Sealed(canonical.decode(), key.sign(b"caregate-checkpoint-1\0" + canonical).hex())
    with pytest.raises(CheckpointBad, match="root"):
        unseal(bad, [key.public_key()])
    with pytest.raises(CheckpointBad, match="no key"):
        unseal(_sealed(tmp_path)[-1], [Ed25519PrivateKey.generate().public_key()])


def test_a_clock_that_was_set_back_is_signed_at_once(start, tmp_path, monkeypatch):
    trail = start(checkpoint_s=3600.0)
    monkeypatch.setattr("gateway.audit.notary._LOOK_S", 0.02)
    wait(lambda: trail.counts["sealed"] == 1)
    trail._notary._interval_s = 0.02
    trail._notary._due_s = time.monotonic() + 3600
    trail._notary._clock_s += 600
    wait(lambda: trail.counts["sealed"] == 2, 10)


def test_a_chain_of_the_dead_is_not_covered_until_somebody_has_looked(tmp_path):
    """What was written behind its head is in no checkpoint: none may say that everything until now is."""
    spool = open_spool(tmp_path, 262_144, 2_000_000)
    spool.append(b"one")
    spool.synced(spool.files_to_sync(1_000)[0])
    spool.append(b"two")
    spool.close()
    assert notary._heads(tmp_path, 9_000, 500)[1] == 1_000
    (spool.folder / "state").write_bytes(bytes(4096))
    assert notary._heads(tmp_path, 9_000, 500) == ((), 500), "power was lost"
    for found in adopt(tmp_path, {}):
        found.settle(8_000)
        found.close()
    heads, covers_ms = notary._heads(tmp_path, 9_000, 500)
    assert (heads[0].sequence, covers_ms) == (2, 9_000)


def test_a_checkpoint_that_could_not_be_synced_leaves_no_line(tmp_path, monkeypatch):
    path = tmp_path / "2026-01.ndjson"
    append(path, encode(Sealed("{}", "00")) + b"\n")
    whole = path.read_bytes()

    def fail(fd):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("gateway.audit.lines.os.fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        append(path, encode(Sealed('{"n":2}', "00")) + b"\n")
    assert path.read_bytes() == whole
