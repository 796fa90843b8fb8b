"""The ledger alone: what it answers about a key, what survives, and what it refuses when it cannot know."""

from __future__ import annotations

import os
import sqlite3

import gevent
import pytest

from gateway.agent.ledger import KEY_FILE, KeyRefused, Ledger
from gateway.agent.ledger_store import FILE, LedgerUnavailable
from gateway.agent.log import Log
from gateway.agent.settings import LedgerSettings

FIELDS = [("content-type", "application/json"), ("set-cookie", "a=b"), ("set-cookie", "c=d")]
DURABLE = {"journal_mode": "wal", "synchronous": 2}
ANSWER = (201, FIELDS, b'{"name": "Weber"}', b"digest-of-the-request")


class Clock:
    def __init__(self):
        self.now_s = 1_800_000_000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(tmp_path, clock):
    """A ledger over the same directory, each time; the one before is closed."""
    made = []

    def start(**changes):
        for old in made:
            old.close()
        made.append(Ledger(LedgerSettings(tmp_path, **changes), Log("error", open(os.devnull, "wb")), clock))  # noqa: SIM115
        return made[-1]

    yield start
    for ledger in made:
        ledger.close()


def run(ledger, key="k", method="POST", target="/x", answer=ANSWER):
    """A request from claim to kept answer."""
    claim = ledger.claim(key, method, target)
    claim.intend()
    claim.keep(*answer)
    claim.close(True)


def refusal(ledger, key="k", method="POST", target="/x"):
    with pytest.raises(KeyRefused) as caught:
        ledger.claim(key, method, target)
    return str(caught.value.reason)


def test_an_answer_is_given_again(make):
    ledger = make()
    run(ledger)
    claim = ledger.claim("k", "POST", "/x")
    assert (claim.kept.status, claim.kept.fields, claim.kept.body) == ANSWER[:3]
    assert claim.matches(b"digest-of-the-request")
    assert not claim.matches(b"of another body")


@pytest.fixture
def careless_sqlite(monkeypatch):
    """SQLite as a build of it may be: nothing waits for the disk unless it is told to."""
    connect = sqlite3.connect

    def carelessly(*arguments, **options):
        database = connect(*arguments, **options)
        database.execute("PRAGMA synchronous = OFF")
        return database

    monkeypatch.setattr(sqlite3, "connect", carelessly)


@pytest.mark.usefixtures("careless_sqlite")
def test_a_commit_is_on_the_disk(make):
    """Power that fails cannot be tried here: what SQLite is told makes every commit an fsync of its log."""
    ledger = make()
    run(ledger)
    told = {name: ledger._store._database.execute(f"PRAGMA {name}").fetchone()[0] for name in DURABLE}
    assert told == DURABLE


def test_it_survives_a_restart_and_another_key_is_new(make):
    run(make())
    ledger = make()
    assert ledger.claim("k", "POST", "/x").kept.body == ANSWER[2]
    assert ledger.claim("other", "POST", "/x").kept is None


def test_an_answer_before_the_whole_request_is_bound_to_method_and_target_alone(make):
    ledger = make()
    run(ledger, answer=(*ANSWER[:3], None))
    assert ledger.claim("k", "POST", "/x").matches(b"anything")


@pytest.mark.parametrize(("method", "target"), [("PUT", "/x"), ("POST", "/x?y"), ("POST", "/X")])
@pytest.mark.parametrize("when", ["running", "kept", "unknown"])
def test_another_request_under_the_same_key(make, method, target, when):
    ledger = make()
    claim = ledger.claim("k", "POST", "/x")
    claim.intend()
    if when == "kept":
        claim.keep(*ANSWER)
    if when != "running":
        claim.close(True)
    assert refusal(ledger, "k", method, target) == "idempotency-key-reused"


def test_while_it_runs(make):
    ledger = make()
    claim = ledger.claim("k", "POST", "/x")
    assert refusal(ledger) == "idempotency-in-progress"
    claim.intend()
    assert refusal(ledger) == "idempotency-in-progress"
    claim.close(False)
    assert ledger.claim("k", "POST", "/x").kept is None


@pytest.mark.parametrize("restart", [False, True])
def test_an_intent_without_an_answer_is_never_run_again(make, restart):
    ledger = make()
    claim = ledger.claim("k", "POST", "/x")
    claim.intend()
    claim.close(True)
    assert refusal(make() if restart else ledger) == "outcome-unknown"


def test_what_was_not_dispatched_is_forgotten(make):
    ledger = make()
    claim = ledger.claim("k", "POST", "/x")
    claim.intend()
    claim.close(False)
    assert ledger.claim("k", "POST", "/x").kept is None
    assert make().claim("k", "POST", "/x").kept is None


def test_an_answer_too_large_to_keep(make):
    ledger = make()
    claim = ledger.claim("k", "POST", "/x")
    claim.intend()
    claim.spend()
    claim.close(True)
    assert refusal(make()) == "idempotency-answer-not-kept"


@pytest.mark.parametrize("state", ["kept", "unknown"])
def test_expiry(make, clock, state):
    ledger = make()
    claim = ledger.claim("k", "POST", "/x")
    claim.intend()
    if state == "kept":
        claim.keep(*ANSWER)
    claim.close(True)
    clock.now_s += 86_399
    if state == "kept":
        claim = ledger.claim("k", "POST", "/x")
        assert claim.kept is not None
        claim.close(True)
    else:
        assert refusal(ledger) == "outcome-unknown"
    clock.now_s += 1
    again = ledger.claim("k", "POST", "/x")
    assert again.kept is None
    again.intend()
    again.close(True)


def test_expired_entries_leave_the_file(make, clock, tmp_path):
    ledger = make()
    for number in range(20):
        run(ledger, f"k{number}")
    clock.now_s += 86_400
    run(ledger, "late")
    make().close()
    with sqlite3.connect(tmp_path / FILE) as database:
        assert database.execute("SELECT count(*) FROM entry").fetchone() == (1,)


def test_old_answers_make_room_and_their_keys_stay(make, clock):
    ledger = make(max_bytes=65_536)
    for number in range(30):
        clock.now_s += 1
        run(ledger, f"k{number}", answer=(200, [], bytes(8_000), None))
    assert refusal(ledger, "k0") == "idempotency-answer-not-kept"
    assert len(ledger.claim("k29", "POST", "/x").kept.body) == 8_000


def test_a_full_ledger_refuses_new_keys_and_knows_the_old(make, clock):
    ledger = make(max_entries=3)
    for number in range(3):
        run(ledger, f"k{number}")
    claim = ledger.claim("new", "POST", "/x")
    with pytest.raises(LedgerUnavailable):
        claim.intend()
    claim.close(False)
    assert ledger.claim("k0", "POST", "/x").kept is not None
    clock.now_s += 90_000
    run(ledger, "new")


def test_a_refused_operation_does_not_undo_its_neighbours(make):
    """Both share one commit; one finds the ledger full."""
    ledger = make(max_entries=1)
    first, second = ledger.claim("a", "POST", "/x"), ledger.claim("b", "POST", "/x")
    done = [gevent.spawn(claim.intend) for claim in (first, second)]
    gevent.joinall(done)
    assert [type(one.exception) for one in done] == [type(None), LedgerUnavailable]
    first.keep(*ANSWER)
    first.close(True)
    assert ledger.claim("a", "POST", "/x").kept is not None


# --- the disk


def test_nothing_personal_is_readable_on_the_disk(make, tmp_path):
    ledger = make()
    run(ledger, "the-key-of-weber", target="/Patient/weber")
    ledger.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for secret in (b"weber", b"Weber", b"set-cookie", b"digest-of-the-request", b"POST"):
        assert secret not in stored
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_every_answer_is_sealed_for_its_own_key(make, tmp_path):
    ledger = make()
    run(ledger, "a")
    run(ledger, "b", answer=(200, [], b"b", None))
    ledger.close()
    with sqlite3.connect(tmp_path / FILE) as database:
        (swapped,) = database.execute("SELECT answer FROM entry WHERE id = 2").fetchone()
        database.execute("UPDATE entry SET answer = ? WHERE id = 1", (swapped,))
    assert refusal(make(), "a") == "idempotency-unavailable"


def lose_the_key(directory):
    (directory / KEY_FILE).unlink()


def change_the_key(directory):
    (directory / KEY_FILE).write_bytes(os.urandom(32))


def shorten_the_key(directory):
    (directory / KEY_FILE).write_bytes(b"short")


def overwrite(directory):
    (directory / FILE).write_bytes(os.urandom(8192))


def be_of_the_future(directory):
    with sqlite3.connect(directory / FILE) as database:
        database.execute("PRAGMA user_version = 99")


def become_a_directory(directory):
    (directory / FILE).unlink()
    (directory / FILE).mkdir()
    (directory / FILE / "x").touch()


@pytest.mark.parametrize(
    "harm", [lose_the_key, change_the_key, shorten_the_key, overwrite, be_of_the_future, become_a_directory]
)
def test_a_ledger_that_cannot_be_read_refuses_every_key(make, tmp_path, harm):
    run(make())
    make().close()
    harm(tmp_path)
    ledger = make()
    assert not ledger.open()
    assert not ledger.available
    assert refusal(ledger) == "idempotency-unavailable"
    assert refusal(ledger, "new") == "idempotency-unavailable"


def intend_many(ledger):
    for number in range(1000):
        claim = ledger.claim(f"k{number}", "POST", "/x")
        claim.intend()
        claim.close(True)


def test_a_full_disk(make):
    ledger = make()
    run(ledger)
    pages = ledger._store._database.execute("PRAGMA page_count").fetchone()[0]
    ledger._store._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LedgerUnavailable):
        intend_many(ledger)
    assert not ledger.available
    assert ledger.claim("k", "POST", "/x").kept is not None
    ledger._store._database.execute(f"PRAGMA max_page_count = {pages + 1000}")
    run(ledger, "after")
    assert ledger.available


def test_one_agent_a_directory(make, tmp_path, clock):
    first = make()
    assert first.open()
    second = Ledger(LedgerSettings(tmp_path), Log("error", open(os.devnull, "wb")), clock)  # noqa: SIM115
    assert refusal(second) == "idempotency-unavailable"
    first.close()
    second._retry_at_s = 0.0
    assert second.open()
    second.close()


def test_the_hub_goes_on_while_the_disk_is_slow(make, monkeypatch):
    """An fsync of 50 ms: other greenlets run meanwhile, and whoever asks meanwhile shares the next commit."""
    ledger = make()
    ledger.open()
    store, batches = ledger._store, []
    real = store.transaction

    def slow(operations, now_s):
        batches.append(len(operations))
        gevent.get_hub()
        import time

        time.sleep(0.05)
        return real(operations, now_s)

    monkeypatch.setattr(type(store), "transaction", lambda self, operations, now_s: slow(operations, now_s))
    claims = [ledger.claim(f"k{number}", "POST", "/x") for number in range(1)]
    claims += [gevent.spawn(ledger.claim, f"more{number}", "POST", "/x") for number in range(8)]
    turns = 0
    while not all(one.ready() for one in claims[1:]):
        gevent.sleep(0.001)
        turns += 1
    assert turns >= 20
    assert max(batches) >= 7
