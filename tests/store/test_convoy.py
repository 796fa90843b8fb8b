"""Convoys: callers share a connection, and nothing else: not answers, errors, claims, settings or transactions.

tests/store/test_patched.py runs this file again in a process that gevent has patched, as in a worker.
"""

import contextlib
import json
import random
import time

import gevent
import psycopg
import pytest

from gateway.errors import DatabaseTimeout, DatabaseUnavailable
from gateway.store.convoy import Convoy
from gateway.store.departures import LONGEST
from gateway.store.pace import QUICK_NS, SLOW_NS, Pace
from gateway.store.pipeline import Statement, StatementFailed
from gateway.store.pool import Database

SECOND_NS = 1_000_000_000
_WITH = "WITH claims AS MATERIALIZED (SELECT set_config('caregate.claims', $1, true)) SELECT "


def reading(name, expression):
    """A statement as a plan writes them, of a function that was quick so far."""
    pace = Pace()
    pace.note(1)
    return Statement(name.encode(), f"{_WITH}{expression} FROM claims".encode(), claims=True, pace=pace)


def claims_of(caller):
    return json.dumps({"sub": f"s{caller}"}).encode()


@pytest.fixture
def convoys(monkeypatch):
    """The lengths of the convoys that departed."""
    lengths = []
    depart = Convoy.depart

    def counted(self, calls, now_ns):
        lengths.append(len(calls))
        depart(self, calls, now_ns)

    monkeypatch.setattr(Convoy, "depart", counted)
    return lengths


@pytest.fixture
def lane(database):
    """A lane with one open connection."""
    lane = database.lane(1, reserve=True)
    lane.ping(2.0)
    yield lane
    lane.give_back()


def ask_all(lane, statement, values, **more):
    """One caller for each value, all in one turn of the hub; answers or errors in the same order."""
    jobs = [gevent.spawn(lane.call, statement, value, claims_of(caller), **more) for caller, value in enumerate(values)]
    gevent.joinall(jobs, timeout=20)
    assert all(job.ready() for job in jobs), "a caller waits for ever"
    return [job.exception if job.exception is not None else job.value for job in jobs]


def sqlstates(outcomes):
    return [outcome.sqlstate if isinstance(outcome, StatementFailed) else outcome for outcome in outcomes]


SUB = "caregate.claim('sub') || '/' || $2::text"


class TestIsolation:
    def test_each_gets_his_own(self, lane, convoys):
        for _ in range(3):
            statement = reading("c_sub", SUB)  # anew: what a busy machine answers late goes alone next time
            assert ask_all(lane, statement, [(b"%d" % n,) for n in range(8)]) == [b"s%d/%d" % (n, n) for n in range(8)]
        assert convoys == [8] * 3

    def test_longer_than_one_convoy(self, lane, convoys):
        count = 3 * LONGEST + 5
        answers = ask_all(lane, reading("c_sub", SUB), [(b"%d" % n,) for n in range(count)])
        assert answers == [b"s%d/%d" % (n, n) for n in range(count)]
        assert max(convoys) == LONGEST
        assert len(convoys) == 4

    def test_null_and_large_values(self, lane, convoys):
        """Through full socket buffers both ways."""
        values = [None, b"y" * 3_000_000, b"", b"z" * 1_000_000, None, "Zo\u00eb".encode()]
        assert ask_all(lane, reading("c_echo", "$2::text"), [(v,) for v in values]) == values
        assert convoys == [6]

    def test_a_setting_of_one_transaction_is_not_seen_in_the_next(self, lane, convoys):
        statement = reading(
            "c_leak", "coalesce(current_setting('test.leak', true), '') || set_config('test.leak', $2::text, true)"
        )
        assert ask_all(lane, statement, [(b"%d" % n,) for n in range(8)]) == [b"%d" % n for n in range(8)]
        assert convoys == [8]

    def test_each_has_a_transaction_of_its_own(self, lane, convoys):
        """The start of a transaction stands still in it."""
        answers = ask_all(lane, reading("c_now", "extract(epoch FROM now())::text || $2::text"), [(b"",)] * 8)
        assert len(set(answers)) == 8
        assert convoys == [8]

    def test_nothing_is_left_on_the_connection(self, lane, convoys):
        ask_all(lane, reading("c_sub", SUB), [(b"x",)] * 4)
        seen = Statement(b"c_seen", b"SELECT current_setting('caregate.claims', true)")
        assert lane.execute(seen, (), timeout_s=2) in (None, b"")
        mode = Statement(b"c_mode", b"SELECT current_setting('transaction_read_only')")
        assert lane.execute(mode, (), timeout_s=2) == b"off"
        assert convoys == [4]

    def test_different_timeouts_in_one_turn(self, lane, convoys):
        statement = reading("c_timeout", "current_setting('statement_timeout') || $2::text")
        limits = [400, 1900, 400, 1900, 1900]
        jobs = [
            gevent.spawn(lane.call, statement, (b"",), b"{}", deadline_ns=time.monotonic_ns() + limit * 1_000_000)
            for limit in limits
        ]
        gevent.joinall(jobs, raise_error=True)
        for limit, job in zip(limits, jobs, strict=True):
            assert limit * 0.5 < int(job.value.removesuffix(b"ms")) < limit
        assert len(convoys) == 4


class TestFailure:
    @pytest.mark.parametrize("at", [0, 3, 7], ids=["first", "middle", "last"])
    def test_an_error_is_its_callers_alone(self, lane, convoys, at):
        statement = reading("c_divide", "(10 / $2::integer)::text || caregate.claim('sub')")
        backend = lane.execute(Statement(b"c_pid", b"SELECT pg_backend_pid()"), (), timeout_s=2)
        values = [(b"0",) if n == at else (b"5",) for n in range(8)]
        expected = ["22012" if n == at else b"2s%d" % n for n in range(8)]
        assert sqlstates(ask_all(lane, statement, values)) == expected
        assert convoys[0] == 8
        assert lane.execute(Statement(b"c_pid", b"SELECT pg_backend_pid()"), (), timeout_s=2) == backend

    def test_one_that_fails_goes_alone_for_a_while(self, lane, convoys):
        statement = reading("c_divide2", "(10 / $2::integer)::text")
        ask_all(lane, statement, [(b"0",), (b"1",)])
        del convoys[:]
        ask_all(lane, statement, [(b"1",)] * 4)
        assert convoys == []

    def test_all_fail(self, lane):
        statement = reading("c_all", "(1 / $2::integer)::text")
        assert sqlstates(ask_all(lane, statement, [(b"0",)] * 8)) == ["22012"] * 8

    def test_a_statement_that_cannot_be_prepared(self, lane, convoys):
        good, bad = reading("c_good", "$2::text"), reading("c_bad", "no_such_function($2)")
        jobs = [gevent.spawn(lane.call, good if n % 2 else bad, (b"%d" % n,), b"{}") for n in range(6)]
        gevent.joinall(jobs)
        assert sqlstates([j.exception or j.value for j in jobs]) == ["42883", b"1", "42883", b"3", "42883", b"5"]
        assert convoys[0] == 6

    def test_a_forgotten_prepared_statement_is_prepared_again(self, lane):
        statement = reading("c_sub", SUB)
        ask_all(lane, statement, [(b"x",)] * 2)
        lane.execute(Statement(b"c_forget", b"DEALLOCATE ALL"), (), timeout_s=2)
        assert ask_all(lane, statement, [(b"y",)] * 2) == [b"s0/y", b"s1/y"]

    def test_one_that_changes_something_after_all_does_so_once(self, lane, postgres, convoys):
        with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
            admin.execute("DROP TABLE IF EXISTS public.noted; CREATE TABLE public.noted (n integer)")
            admin.execute("GRANT INSERT, SELECT ON public.noted TO caregate_gateway")
            admin.execute(
                "CREATE OR REPLACE FUNCTION public.note(n integer) RETURNS text LANGUAGE plpgsql AS $$ BEGIN "
                "INSERT INTO public.noted VALUES (n); RETURN n; END $$"
            )
            admin.execute("GRANT EXECUTE ON FUNCTION public.note(integer) TO caregate_gateway")
            statement = reading("c_note", "public.note($2::integer)")
            assert ask_all(lane, statement, [(b"%d" % n,) for n in range(4)]) == [b"%d" % n for n in range(4)]
            assert admin.execute("SELECT array_agg(n ORDER BY n) FROM public.noted").fetchall() == [([0, 1, 2, 3],)]
            assert convoys == [4]
            assert not statement.pace.quick
            admin.execute("DROP FUNCTION public.note(integer); DROP TABLE public.noted")


class TestLeft:
    def test_one_that_holds_the_others_up_is_left_behind(self, database, convoys):
        lane = database.lane(4)
        lane.ping(2.0)
        statement = reading("c_sleep", "pg_sleep($2::float8)::text || 'done'")
        order = []

        def ask(caller, seconds):
            assert lane.call(statement, (seconds,), b"{}", deadline_ns=time.monotonic_ns() + 4 * SECOND_NS) == b"done"
            order.append(caller)

        jobs = [gevent.spawn(ask, n, b"1" if n == 0 else b"0") for n in range(4)]
        gevent.joinall(jobs, raise_error=True)
        assert convoys == [4]
        assert order[-1] == 0
        assert not statement.pace.quick
        lane.give_back()

    @pytest.mark.parametrize("leaver", [0, 1, 3])
    def test_a_killed_caller_leaves_no_answer_behind(self, lane, convoys, leaver):
        statement = reading("c_slowly", "pg_sleep(0.01)::text || caregate.claim('sub') || $2::text")
        jobs = [gevent.spawn(lane.call, statement, (b"-",), claims_of(n)) for n in range(4)]
        while not convoys:
            gevent.sleep(0)
        jobs[leaver].kill()
        gevent.joinall(jobs, raise_error=True)
        assert [job.value for n, job in enumerate(jobs) if n != leaver] == [
            b"s%d-" % n for n in range(4) if n != leaver
        ]
        assert ask_all(lane, reading("c_sub", SUB), [(b"%d" % n,) for n in range(4)]) == [
            b"s%d/%d" % (n, n) for n in range(4)
        ]

    def test_killed_before_they_left(self, lane, convoys):
        statement = reading("c_sub", SUB)
        jobs = [gevent.spawn(lane.call, statement, (b"x",), claims_of(n)) for n in range(4)]
        gevent.spawn(gevent.killall, jobs[1:3], block=False)
        gevent.joinall(jobs)
        assert [jobs[0].value, jobs[3].value] == [b"s0/x", b"s3/x"]
        assert ask_all(lane, statement, [(b"y",)] * 2) == [b"s0/y", b"s1/y"]

    def test_a_caller_timed_out_by_gevent(self, lane):
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
            lane.call(reading("c_nap", "pg_sleep(0.3)::text"), (), b"{}")
        assert lane.call(reading("c_sub", SUB), (b"x",), claims_of(7)) == b"s7/x"

    def test_nobody_waits_for_a_connection_past_his_deadline(self, lane, convoys):
        busy = gevent.spawn(lane.execute, Statement(b"c_hold", b"SELECT pg_sleep(0.7)"), (), timeout_s=5)
        gevent.sleep(0)
        outcomes = ask_all(lane, reading("c_sub", SUB), [(b"x",)] * 3, deadline_ns=time.monotonic_ns() + 200_000_000)
        assert all(isinstance(outcome, DatabaseUnavailable) for outcome in outcomes)
        assert not busy.ready()
        busy.get()
        assert lane.call(reading("c_sub", SUB), (b"x",), claims_of(0)) == b"s0/x"

    def test_other_calls_have_their_turn_between_convoys(self, lane):
        """One connection, and readers that never stop asking."""
        statement, stop, asked = reading("c_sub", SUB), [], []

        def read(caller):
            while not stop:
                asked.append(lane.call(statement, (b"x",), claims_of(caller)))

        readers = [gevent.spawn(read, n) for n in range(12)]
        try:
            while len(asked) < 50:
                gevent.sleep(0)
            for n in range(20):
                assert lane.execute(Statement(b"c_one", b"SELECT $1::text"), (b"%d" % n,), timeout_s=5) == b"%d" % n
        finally:
            stop.append(True)
            gevent.joinall(readers, raise_error=True)
        assert set(asked) == {b"s%d/x" % n for n in range(12)}


class TestServerAway:
    def test_backend_ended_under_a_convoy_is_not_noticed(self, database, postgres, convoys):
        """What only reads is asked again."""
        lane = database.lane(4)
        lane.ping(2.0)
        statement = reading("c_nap2", "pg_sleep(0.03)::text || caregate.claim('sub') || $2::text")
        jobs = [gevent.spawn(lane.call, statement, (b"",), claims_of(n)) for n in range(4)]
        while not convoys:
            gevent.sleep(0)
        gevent.sleep(0.01)
        with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE %s", ("WITH%",))
        gevent.joinall(jobs, raise_error=True)
        assert [job.value for job in jobs] == [b"s%d" % n for n in range(4)]
        lane.give_back()

    def test_frozen_under_a_convoy(self, database, postgres, convoys):
        statement = reading("c_sub", SUB)
        assert ask_all(database, statement, [(b"x",)] * 4) == [b"s%d/x" % n for n in range(4)]
        statement.pace.note(1)
        postgres.freeze()
        began = time.monotonic()
        outcomes = ask_all(database, statement, [(b"x",)] * 8, deadline_ns=time.monotonic_ns() + 500_000_000)
        assert all(isinstance(outcome, DatabaseTimeout | DatabaseUnavailable) for outcome in outcomes)
        assert time.monotonic() - began < 5.0
        postgres.thaw()
        while True:
            with contextlib.suppress(DatabaseUnavailable, DatabaseTimeout):
                assert database.call(statement, (b"y",), claims_of(1)) == b"s1/y"
                break
            assert time.monotonic() - began < 15.0
            gevent.sleep(0.01)

    def test_stopped_and_started(self, database, postgres):
        statement = reading("c_sub", SUB)
        ask_all(database, statement, [(b"x",)] * 4)
        postgres.stop()
        outcomes = ask_all(database, statement, [(b"x",)] * 8)
        assert all(isinstance(outcome, DatabaseUnavailable) for outcome in outcomes)
        postgres.start()
        began = time.monotonic()
        while not database.available:
            assert time.monotonic() - began < 10.0
            gevent.sleep(0.01)
        assert ask_all(database, statement, [(b"y",)] * 4) == [b"s%d/y" % n for n in range(4)]


def test_disorder(postgres, convoys):
    """Callers of all kinds at once, some of whom fail, change something, hold others up or are killed."""
    database = Database(postgres.gateway_dsn, pool_max=3, statement_timeout_ms=5_000)
    database.open()
    random_ = random.Random(7)
    sub, divide = reading("c_sub", SUB), reading("c_mix", "(10 / $2::integer)::text || caregate.claim('sub')")
    echo = Statement(b"c_echo1", b"SELECT caregate.claim('sub') || $1::text")
    wrong = []

    def call(caller, n):
        kind = random_.random()
        if kind < 0.7:
            return database.call(sub, (b"%d" % n,), claims_of(caller)), b"s%d/%d" % (caller, n)
        if kind < 0.8:
            return database.call(echo, (b"%d" % n,), claims_of(caller)), b"s%d%d" % (caller, n)
        if kind < 0.95:
            return database.call(divide, (b"2",), claims_of(caller)), b"5s%d" % caller
        with pytest.raises(StatementFailed, match="22012"):
            database.call(divide, (b"0",), claims_of(caller))
        return None, None

    def work(caller):
        for n in range(60):
            found, expected = call(caller, n)
            if found != expected:
                wrong.append((found, expected))
            for statement in (sub, divide):
                statement.pace.note(1)
                statement.pace._alone = 0

    workers = [gevent.spawn(work, n) for n in range(24)]
    killed = [gevent.spawn(work, n) for n in range(24, 30)]
    for job in killed:
        gevent.sleep(0.01)
        job.kill()
    gevent.joinall(workers, raise_error=True)
    assert wrong == []
    assert max(convoys) == LONGEST
    # The server may still be at what the last one asked who was killed.
    with gevent.Timeout(5, False):
        while database._calls._turns.free < 3 or database._calls._departures._out:
            gevent.sleep(0.01)
    assert (database._calls._turns.free, database._calls._departures._out) == (3, 0)
    database.close()


class TestPace:
    @pytest.mark.parametrize(
        ("spent", "quick"),
        [
            ([], False),
            ([QUICK_NS], True),
            ([QUICK_NS + 1], False),
            ([4 * QUICK_NS] * 40, False),
            ([4 * QUICK_NS, 100_000, 4 * QUICK_NS], True),
            ([100_000, SLOW_NS, 100_000], False),
            ([100_000, SLOW_NS] + [100_000] * 200, True),
            ([100_000] + [7 * QUICK_NS] * 40, False),
            ([100_000] + [2 * QUICK_NS] * 63, False),
            ([100_000] + [2 * QUICK_NS] * 30, True),
        ],
        ids=["unknown", "quick", "not quick", "never quick", "beside others", "slow", "slow long ago", "in the mean",
             "quick long ago", "quick of late"],
    )  # fmt: skip
    def test_quick(self, spent, quick):
        pace = Pace()
        for spent_ns in spent:
            pace.note(spent_ns)
        assert pace.quick is quick

    def test_once_alone_always_alone(self):
        pace = Pace()
        pace.stay_alone()
        for spent_ns in [1] * 300 + [SLOW_NS] + [1] * 300:
            pace.note(spent_ns)
            assert not pace.quick
