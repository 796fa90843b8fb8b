"""The pool, its lanes and the pipelined call, against a real server that is stopped, killed and frozen.

tests/store/test_patched.py runs this file again in a process that gevent has patched, as in a worker.
"""

import contextlib
import json
import time

import gevent
import gevent.monkey
import psycopg
import pytest

from gateway.errors import DatabaseInterrupted, DatabaseTimeout, DatabaseUnavailable
from gateway.store.pipeline import ConnectionLost, Pipeline, Statement, StatementFailed
from gateway.store.pool import Database, _coarse

CLAIMS = b'{"sub":"anna"}'
ECHO = Statement(b"t_echo", b"SELECT $1::text")
SEEN = Statement(b"t_seen", b"SELECT current_setting('caregate.claims', true)")
SUB = Statement(b"t_sub", b"SELECT caregate.claim('sub')")
SLEEP = Statement(b"t_sleep", b"SELECT pg_sleep($1::float8)::text")
BACKEND = Statement(b"t_backend", b"SELECT pg_backend_pid()")
TIMEOUT = Statement(b"t_timeout", b"SELECT current_setting('statement_timeout')")
BROKEN = Statement(b"t_broken", b"SELECT 1/$1::integer")
UNPARSABLE = Statement(b"t_unparsable", b"SELEC 1")


def _admin(postgres, query, *values):
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as connection:
        return connection.execute(query, values).fetchall()


def _until_answers(database, within_s=3.0):
    """Seconds until the first success; every refusal before must be fast."""
    began = time.monotonic()
    while True:
        at = time.monotonic()
        try:
            database.call(ECHO, (b"x",), CLAIMS)
            return time.monotonic() - began
        except DatabaseUnavailable:
            assert time.monotonic() - at < 1.5
            assert time.monotonic() - began < within_s, "the database is back, but nobody noticed"
            gevent.sleep(0.005)


class TestCall:
    @pytest.mark.parametrize(
        "value",
        [b"", b"x", "Zo\u00eb \U0001f600".encode(), b"y" * 1_000_000, b"'; DROP TABLE x; --"],
        ids=["empty", "one", "unicode", "1MB", "sql"],
    )
    def test_value_comes_back_as_it_went(self, database, value):
        assert database.call(ECHO, (value,), CLAIMS) == value

    def test_null_both_ways(self, database):
        assert database.call(ECHO, (None,), CLAIMS) is None

    def test_ten_megabytes_through_full_socket_buffers(self, database):
        statement = Statement(b"t_big", b"SELECT repeat($1::text, 10)")
        assert len(database.call(statement, (b"z" * 1_000_000,), CLAIMS)) == 10_000_000

    def test_claims_are_seen_in_the_call(self, database):
        assert database.call(SUB, (), CLAIMS) == b"anna"

    def test_claims_and_call_are_one_transaction(self, database):
        pipeline = Pipeline(database.take())
        try:
            first = Statement(b"t_keep", b"SELECT set_config('test.xact', pg_current_xact_id()::text, true)")
            same = Statement(b"t_same", b"SELECT current_setting('test.xact') = pg_current_xact_id()::text")
            assert pipeline.run(((first, ()), (same, ())), time.monotonic_ns() + 2 * 10**9) == b"t"
        finally:
            pipeline.leave()
            database.give_back(pipeline.connection)

    def test_claims_do_not_reach_the_next_user_of_the_connection(self, database):
        lane = database.lane(1)
        backend = lane.call(BACKEND, (), CLAIMS)
        assert lane.execute(BACKEND, (), timeout_s=2) == backend
        assert lane.execute(SEEN, (), timeout_s=2) in (None, b"")
        lane.give_back()

    def test_claims_do_not_outlive_a_failed_call(self, database):
        lane = database.lane(1)
        with pytest.raises(StatementFailed):
            lane.call(BROKEN, (b"0",), CLAIMS)
        assert lane.execute(SEEN, (), timeout_s=2) in (None, b"")
        assert lane.execute(TIMEOUT, (), timeout_s=2) == b"1min"
        lane.give_back()

    @pytest.mark.parametrize(
        ("statement", "values", "sqlstate"),
        [(BROKEN, (b"0",), "22012"), (UNPARSABLE, (), "42601"), (BROKEN, (b"x",), "22P02")],
        ids=["execute", "prepare", "bind"],
    )
    def test_a_failed_statement_leaves_the_connection_good(self, database, statement, values, sqlstate):
        lane = database.lane(1)
        backend = lane.call(BACKEND, (), CLAIMS)
        for _ in range(2):
            with pytest.raises(StatementFailed) as caught:
                lane.call(statement, values, CLAIMS)
            assert caught.value.sqlstate == sqlstate
        assert lane.call(BACKEND, (), CLAIMS) == backend
        assert lane.call(BROKEN, (b"1",), CLAIMS) == b"1"
        lane.give_back()

    def test_a_failed_call_changes_nothing(self, database, postgres):
        with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
            admin.execute("DROP TABLE IF EXISTS public.tried; CREATE TABLE public.tried (n integer)")
            admin.execute("GRANT INSERT ON public.tried TO caregate_gateway")
        insert = Statement(
            b"t_insert", b"WITH i AS (INSERT INTO public.tried VALUES (1) RETURNING n) SELECT n / 0 FROM i"
        )
        with pytest.raises(StatementFailed):
            database.call(insert, (), CLAIMS)
        assert _admin(postgres, "SELECT count(*) FROM public.tried") == [(0,)]
        with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
            admin.execute("DROP TABLE public.tried")

    def test_a_timeout_set_for_a_call_is_not_the_connections_next_users(self, database):
        lane = database.lane(1)
        for _ in range(3):
            assert lane.call(TIMEOUT, (), CLAIMS, deadline_ns=time.monotonic_ns() + 900_000_000)[-2:] == b"ms"
        with pytest.raises(StatementFailed):
            lane.call(BROKEN, (b"0",), CLAIMS, deadline_ns=time.monotonic_ns() + 300_000_000)
        backend = lane.call(BACKEND, (), CLAIMS)
        lane.give_back()
        query = "SELECT pg_backend_pid()::text, current_setting('statement_timeout')"
        with contextlib.ExitStack() as stack:
            found = dict(
                stack.enter_context(database.connection()).execute(query).fetchone()
                for _ in range(database.stats()["pool_size"])
            )
        assert found[backend.decode()] == "1min"

    @pytest.mark.parametrize(
        ("given_ms", "set_ms"), [(1, 1), (31, 31), (33, 32), (160, 160), (167, 160), (1900, 1856), (4900, 4864)]
    )
    def test_timeouts_are_set_in_steps(self, given_ms, set_ms):
        assert _coarse(given_ms) == set_ms

    def test_prepared_statements_survive_a_return_to_the_pool(self, database):
        lane = database.lane(1)
        for _ in range(3):
            assert lane.call(ECHO, (b"x",), CLAIMS) == b"x"
            lane.give_back()

    def test_a_forgotten_prepared_statement_is_prepared_again(self, database):
        lane = database.lane(1)
        lane.call(ECHO, (b"x",), CLAIMS)
        lane.execute(Statement(b"t_forget", b"DEALLOCATE ALL"), (), timeout_s=2)
        assert lane.call(ECHO, (b"y",), CLAIMS) == b"y"
        lane.give_back()

    def test_deadlock_victim_is_run_once_more(self, database, postgres):
        with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
            admin.execute("CREATE SEQUENCE public.tries")
            admin.execute("GRANT USAGE ON SEQUENCE public.tries TO caregate_gateway")
            admin.execute(
                "CREATE OR REPLACE FUNCTION public.once() RETURNS text LANGUAGE plpgsql AS $$ DECLARE n bigint; BEGIN "
                "n := nextval('public.tries'); IF n = 1 THEN RAISE EXCEPTION USING ERRCODE = '40P01'; END IF; "
                "RETURN n; END $$"
            )
            admin.execute("GRANT EXECUTE ON FUNCTION public.once() TO caregate_gateway")
        assert database.call(Statement(b"t_once", b"SELECT public.once()"), (), CLAIMS) == b"2"
        with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
            admin.execute("DROP FUNCTION public.once(); DROP SEQUENCE public.tries")


class TestConcurrency:
    def test_many_callers_each_get_their_own_answer(self, database):
        def ask(n):
            claims = json.dumps({"sub": f"s{n}"}).encode()
            return [(database.call(ECHO, (b"v%d" % n,), claims), database.call(SUB, (), claims)) for _ in range(20)]

        jobs = [gevent.spawn(ask, n) for n in range(20)]
        gevent.joinall(jobs, raise_error=True)
        assert [job.value for job in jobs] == [[(b"v%d" % n, b"s%d" % n)] * 20 for n in range(20)]

    def test_no_more_connections_than_allowed(self, database, postgres):
        jobs = [gevent.spawn(database.call, SLEEP, (b"0.05",), CLAIMS) for _ in range(12)]
        gevent.joinall(jobs, raise_error=True)
        held = _admin(postgres, "SELECT count(*) FROM pg_stat_activity WHERE usename = 'caregate_gateway'")
        assert held[0][0] <= 4 + 2

    def test_the_hub_runs_while_a_call_waits(self, database):
        ticks = []

        def tick():
            while True:
                ticks.append(1)
                gevent.sleep(0.005)

        database.call(ECHO, (b"x",), CLAIMS)
        ticker = gevent.spawn(tick)
        database.call(SLEEP, (b"0.2",), CLAIMS)
        ticker.kill()
        assert len(ticks) > 10

    def test_a_killed_caller_leaves_no_answer_behind(self, database):
        database.call(ECHO, (b"x",), CLAIMS)
        caller = gevent.spawn(database.call, SLEEP, (b"0.3",), b'{"sub":"killed"}')
        gevent.sleep(0.01)
        caller.kill()
        for n in range(10):
            assert database.call(ECHO, (b"%d" % n,), CLAIMS) == b"%d" % n

    def test_a_caller_timed_out_by_gevent_leaves_no_answer_behind(self, database):
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
            database.call(SLEEP, (b"0.3",), CLAIMS)
        assert database.call(ECHO, (b"x",), CLAIMS) == b"x"

    def test_waiting_for_a_connection_has_an_end(self, postgres):
        database = Database(postgres.gateway_dsn, pool_max=1, statement_timeout_ms=300)
        database.open()
        database.call(ECHO, (b"x",), CLAIMS)
        jobs = [gevent.spawn(database.call, SLEEP, (b"5",), CLAIMS) for _ in range(4)]
        began = time.monotonic()
        gevent.joinall(jobs)
        assert time.monotonic() - began < 1.5
        assert all(isinstance(j.exception, (DatabaseUnavailable, StatementFailed, DatabaseTimeout)) for j in jobs)
        database.close()


class TestDeadline:
    def test_statement_timeout(self, database):
        began = time.monotonic()
        with pytest.raises(StatementFailed) as caught:
            database.call(SLEEP, (b"30",), CLAIMS)
        assert caught.value.sqlstate == "57014"
        assert 1.5 < time.monotonic() - began < 5

    def test_the_requests_deadline_is_the_shorter_one(self, database):
        database.call(ECHO, (b"x",), CLAIMS)
        began = time.monotonic()
        with pytest.raises(StatementFailed):
            database.call(SLEEP, (b"30",), CLAIMS, deadline_ns=time.monotonic_ns() + 200_000_000)
        assert time.monotonic() - began < 1.4

    def test_no_time_left(self, database):
        with pytest.raises(DatabaseTimeout):
            database.call(ECHO, (b"x",), CLAIMS, deadline_ns=time.monotonic_ns() - 1)

    def test_a_call_that_was_too_slow_costs_no_connection(self, database):
        lane = database.lane(1)
        backend = lane.call(BACKEND, (), CLAIMS)
        with pytest.raises(StatementFailed):
            lane.call(SLEEP, (b"30",), CLAIMS, deadline_ns=time.monotonic_ns() + 100_000_000)
        assert lane.call(BACKEND, (), CLAIMS) == backend
        lane.give_back()


class TestServerAway:
    def test_never_there(self, tmp_path):
        database = Database(f"postgresql://x@/y?host={tmp_path}")
        database.open()
        began = time.monotonic()
        for _ in range(20):
            with pytest.raises(DatabaseUnavailable) as caught:
                database.call(ECHO, (b"x",), CLAIMS)
            assert caught.value.retry_after_s == 1
        assert time.monotonic() - began < 3.0
        assert not database.available
        database.close()

    def test_stopped_and_started(self, database, postgres):
        database.call(ECHO, (b"x",), CLAIMS)
        postgres.stop()
        for _ in range(10):
            began = time.monotonic()
            with pytest.raises(DatabaseUnavailable):
                database.call(ECHO, (b"x",), CLAIMS)
            assert time.monotonic() - began < 1.5
        with pytest.raises(DatabaseUnavailable), database.connection():
            pass
        postgres.start()
        assert _until_answers(database) < 0.5
        assert database.available

    def test_restarted_between_two_calls_is_not_noticed(self, database, postgres):
        database.call(ECHO, (b"x",), CLAIMS)
        postgres.stop()
        postgres.start()
        assert database.call(ECHO, (b"y",), CLAIMS) == b"y"

    def test_backend_ended_between_two_calls_is_not_noticed(self, database, postgres):
        backend = database.call(BACKEND, (), CLAIMS)
        _admin(postgres, "SELECT pg_terminate_backend(%s, 1000)", int(backend))
        assert database.call(ECHO, (b"y",), CLAIMS) == b"y"

    def test_backend_ended_during_a_call(self, database, postgres):
        found = []

        def call():
            database.call(Statement(b"t_long", b"SELECT pg_sleep(5)::text"), (), CLAIMS)

        caller = gevent.spawn(call)
        for _ in range(200):
            gevent.sleep(0.01)
            found = _admin(postgres, "SELECT pid FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(5)%%'")
            if found:
                break
        _admin(postgres, "SELECT pg_terminate_backend(%s)", found[0][0])
        with pytest.raises(DatabaseInterrupted):
            caller.get(timeout=2)
        assert database.call(ECHO, (b"x",), CLAIMS) == b"x"

    def test_frozen_while_calls_wait(self, database, postgres):
        database.call(ECHO, (b"x",), CLAIMS)
        postgres.freeze()
        began = time.monotonic()
        deadline_ns = time.monotonic_ns() + 300_000_000
        jobs = [gevent.spawn(database.call, ECHO, (b"x",), CLAIMS, deadline_ns=deadline_ns) for _ in range(8)]
        gevent.joinall(jobs)
        assert time.monotonic() - began < 3.0
        assert all(isinstance(job.exception, (DatabaseTimeout, DatabaseUnavailable)) for job in jobs)
        while database.available and time.monotonic() - began < 5.0:
            gevent.sleep(0.01)
        for _ in range(10):
            at = time.monotonic()
            with pytest.raises(DatabaseUnavailable):
                database.call(ECHO, (b"x",), CLAIMS)
            assert time.monotonic() - at < 0.5
        postgres.thaw()
        assert _until_answers(database) < 2.0

    def test_frozen_during_a_call(self, database, postgres):
        caller = gevent.spawn(database.call, SLEEP, (b"0.5",), CLAIMS, deadline_ns=time.monotonic_ns() + 800_000_000)
        gevent.sleep(0.1)
        postgres.freeze()
        with pytest.raises((DatabaseTimeout, DatabaseUnavailable)):
            caller.get(timeout=1.5)
        postgres.thaw()

    def test_ordinary_connection_on_a_frozen_server(self, database, postgres):
        with database.connection() as connection:
            connection.execute("SELECT 1")
        postgres.freeze()
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable), database.connection():
            pass
        assert time.monotonic() - began < 3.0
        postgres.thaw()
        assert _until_answers(database) < 2.0

    def test_frozen_during_ordinary_use(self, database, postgres):
        if not gevent.monkey.is_module_patched("select"):
            pytest.skip("psycopg waits for itself here")

        def use():
            with database.connection(timeout_s=0.3) as connection:
                connection.execute("SELECT 1")
                postgres.freeze()
                connection.execute("SELECT 2")

        with pytest.raises(DatabaseTimeout):
            use()
        postgres.thaw()
        assert database.call(ECHO, (b"x",), CLAIMS) == b"x"

    def test_an_ordinary_connection_left_by_an_error_is_good_again(self, database):
        def use():
            with database.connection() as connection:
                connection.execute("SELECT 1")
                raise KeyError

        for _ in range(8):
            with pytest.raises(KeyError):
                use()
        with database.connection() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)

    def test_a_reserved_lane_works_while_all_others_are_busy(self, database):
        lane = database.lane(1, reserve=True)
        busy = [gevent.spawn(database.call, SLEEP, (b"1",), CLAIMS) for _ in range(8)]
        gevent.sleep(0.1)
        lane.ping(2.0)
        assert not any(job.ready() for job in busy)
        gevent.joinall(busy)


def test_pipeline_says_that_nothing_ran_if_the_server_left_before(database, postgres):
    pipeline = Pipeline(database.take())
    pipeline.run(((ECHO, (b"x",)),), time.monotonic_ns() + 2 * 10**9)
    _admin(postgres, "SELECT pg_terminate_backend(%s, 1000)", pipeline.connection.info.backend_pid)
    with pytest.raises(ConnectionLost) as caught:
        pipeline.run(((ECHO, (b"x",)),), time.monotonic_ns() + 2 * 10**9)
    assert caught.value.executed is False
    pipeline.leave()
    database.give_back(pipeline.connection)


def test_no_process_has_the_roles_power(postgres):
    rows = _admin(
        postgres,
        "SELECT rolsuper, rolbypassrls, rolcreatedb, rolcreaterole, rolreplication FROM pg_roles WHERE rolname = %s",
        "caregate_gateway",
    )
    assert rows == [(False,) * 5]
