"""Function routes against the demo portal: what is bound, what comes back, and what the database refuses by itself."""

import io
import json
import time
from unittest.mock import Mock

import falcon.testing
import gevent
import psycopg
import pytest

from gateway import errors
from gateway.context import Principal, RequestContext
from gateway.http.problems import body as problem_body
from gateway.portal.resource import PortalResource, claims_of, read_body
from gateway.routing.model import Argument, Binding, FunctionAction, Route, RouteKind
from gateway.store.convoy import Convoy
from gateway.store.pipeline import Statement, StatementFailed


def _principal(role, audience, /, **claims):
    return Principal("user-1", "https://id", audience, role, frozenset(), "jti", "kid", 0.0, claims)


ANNA = _principal("patient", "patient-app", patient="pat-0001")
BERT = _principal("patient", "patient-app", patient="pat-0002")
WEBER = _principal("practitioner", "staff-portal", units=["linden-clinic"])
PARTNER = _principal("partner", "partner-api", org="insurer-1")
OWN = Binding("patient", "patient", frozenset(), hidden=True)


def _route(function, arguments=None, *, status=200, bindings=(), limit=4096):
    made = tuple(
        Argument(parameter, source.partition(":")[0], source.removesuffix("?").partition(":")[2], source[-1:] != "?")
        for parameter, source in (arguments or {}).items()
    )
    made = tuple(Argument(a.parameter, a.source.removesuffix("?"), a.name, a.required) for a in made)
    return Route(
        name="r",
        template="/x/{patient}",
        methods=("GET",),
        kind=RouteKind.FUNCTION,
        action=FunctionAction(function, made, status),
        audiences=frozenset(),
        roles=frozenset(),
        permission=None,
        bindings=bindings,
        body_max_bytes=limit,
    )


PROFILE = _route("portal.patient_profile", {"p_patient": "path:patient"}, bindings=(OWN,))
MINE = _route("portal.patient_profile", {"p_patient": "claim:patient"})
APPOINTMENTS = _route(
    "portal.patient_appointments", {"p_patient": "path:patient", "p_limit": "query:limit?"}, bindings=(OWN,)
)
BOOK = _route(
    "portal.book_appointment",
    {
        "p_patient": "path:patient",
        "p_unit": "body:/unit",
        "p_starts_at": "body:/starts_at",
        "p_reason": "body:/reason?",
    },
    status=201,
    bindings=(OWN,),
)
UNIT_DAY = _route("portal.unit_appointments", {"p_unit": "path:unit", "p_day": "query:day"})
SHARE = _route(
    "portal.share_summary",
    {"p_unit": "path:unit", "p_patient": "body:/patient", "p_title": "body:/title", "p_content": "body:/content"},
)


@pytest.fixture
def ask(database):
    """Ask a route as a principal; the response, or the error as it would be answered."""
    resource = PortalResource(database)

    def ask(route, principal, params=None, *, query="", body=b"", deadline_ms=0):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        req = falcon.testing.create_req(method="POST" if raw else "GET", body=raw)
        req.context.gateway = ctx = RequestContext(
            id="r", started_ns=time.monotonic_ns(), query=query, principal=principal, route=route, params=params or {}
        )
        if deadline_ms:
            ctx.deadline_ns = time.monotonic_ns() + deadline_ms * 1_000_000
        resp = falcon.Response()
        resource.on_request(req, resp)
        assert ctx.upstream_ns > 0
        return resp

    return ask


def _json(resp):
    return json.loads(resp.data)


class TestAnswers:
    def test_bytes_pass_through(self, ask, portal):
        resp = ask(PROFILE, ANNA, {"patient": "pat-0001"})
        with psycopg.connect(portal.admin_dsn) as admin:
            row = admin.execute("SELECT portal.patient_profile('pat-0001')::text").fetchone()
        assert resp.data == row[0].encode()
        assert (resp.status, resp.content_type) == (200, "application/json")

    def test_argument_from_a_claim(self, ask):
        assert _json(ask(MINE, BERT))["id"] == "pat-0002"

    @pytest.mark.parametrize(("query", "count"), [("", 10), ("limit=3", 3), ("limit=%33", 3)], ids=str)
    def test_optional_query(self, ask, query, count):
        answer = _json(ask(APPOINTMENTS, ANNA, {"patient": "pat-0001"}, query=query))
        assert len(answer["appointments"]) == count

    def test_required_query(self, ask):
        answer = _json(ask(UNIT_DAY, WEBER, {"unit": "linden-clinic"}, query="day=2031-01-01"))
        assert (answer["day"], answer["appointments"]) == ("2031-01-01", [])

    def test_no_arguments(self, ask):
        assert len(_json(ask(_route("portal.list_units"), PARTNER))["units"]) == 3

    def test_null_is_not_found(self, ask):
        with pytest.raises(errors.NotFound):
            ask(UNIT_DAY, WEBER, {"unit": "no-such-unit"}, query="day=2031-01-01")

    def test_a_status_without_content(self, ask, owner):
        owner("CREATE FUNCTION portal.t_done() RETURNS json LANGUAGE sql AS $$ SELECT '1'::json $$")
        resp = ask(_route("portal.t_done", status=204), ANNA)
        assert (resp.status, resp.data) == (204, None)

    def test_jsonb(self, ask, owner):
        owner("CREATE FUNCTION portal.t_b() RETURNS jsonb LANGUAGE sql AS $$ SELECT '{\"é\": [1.10]}'::jsonb $$")
        assert ask(_route("portal.t_b"), ANNA).data == '{"é": [1.10]}'.encode()


class TestBodies:
    def _book(self, ask, body, principal=ANNA, patient="pat-0001"):
        return ask(BOOK, principal, {"patient": patient}, body=body)

    def test_booked(self, ask):
        resp = self._book(ask, {"unit": "linden-clinic", "starts_at": "2033-01-01T09:00:00Z", "reason": "Zoë"})
        assert resp.status == 201
        booked = _json(resp)
        assert (booked["patient"], booked["unit"], booked["reason"]) == ("pat-0001", "linden-clinic", "Zoë")
        assert booked["starts_at"] == "2033-01-01T09:00:00+00:00"

    @pytest.mark.parametrize("member", [{}, {"reason": None}], ids=["absent", "null"])
    def test_optional_member(self, ask, member):
        at = f"2033-02-0{len(member) + 1}T09:00:00Z"
        assert _json(self._book(ask, {"unit": "linden-clinic", "starts_at": at, **member}))["reason"] == "consultation"

    def test_booked_twice_is_a_conflict(self, ask):
        body = {"unit": "linden-clinic", "starts_at": "2033-03-01T09:00:00Z"}
        self._book(ask, body)
        with pytest.raises(errors.Conflict):
            self._book(ask, body)

    @pytest.mark.parametrize(
        ("body", "faults"),
        [
            ({}, [("/unit", "is required"), ("/starts_at", "is required")]),
            (
                {"unit": 5, "starts_at": "x"},
                [("/unit", "must be text"), ("/starts_at", "must be a time with its offset")],
            ),
            ({"unit": "a\0b", "starts_at": "2033-01-01T09:00:00Z"}, [("/unit", "must not contain U+0000")]),
            ({"unit": None, "starts_at": "2033-01-01T09:00:00Z"}, [("/unit", "is required")]),
            (
                {"unit": "linden-clinic", "starts_at": "2033-01-01T09:00:00Z", "invented": 1},
                [("", "has a member that is not declared")],
            ),
            ([], [("", "must be an object"), ("/unit", "is required"), ("/starts_at", "is required")]),
            ({"unit": "nowhere", "starts_at": "2033-04-01T09:00:00Z"}, [("", "A value is not one")]),
            ({"unit": "linden-clinic", "starts_at": "2033-04-01T09:00:00Z", "reason": "x" * 201}, [("", "A value is")]),
        ],
        ids=["empty", "types", "nul", "null", "undeclared", "array", "foreign-key", "check"],
    )
    def test_unprocessable(self, ask, body, faults):
        with pytest.raises(errors.Unprocessable) as caught:
            self._book(ask, body)
        found = caught.value.members["errors"]
        assert [fault["pointer"] for fault in found] == [pointer for pointer, _ in faults]
        assert all(fault["detail"].startswith(text) for fault, (_, text) in zip(found, faults, strict=True))
        assert b"invented" not in problem_body(caught.value, "r")

    @pytest.mark.parametrize(
        "raw", [b"", b"{", b'{"unit": 1, "unit": 2}', b"\xff"], ids=["none", "torn", "twice", "bytes"]
    )
    def test_not_json(self, ask, raw):
        with pytest.raises(errors.BadJson):
            self._book(ask, raw)

    def test_whole_body(self, ask, owner):
        owner("CREATE FUNCTION portal.t_whole(doc jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT doc $$")
        route = _route("portal.t_whole", {"doc": "body"})
        assert _json(ask(route, ANNA, body=b'{"a": 1, "big": 12345678901234567890.5}')) == {
            "a": 1, "big": 12345678901234567890.5,
        }  # fmt: skip
        with pytest.raises(errors.Unprocessable):
            ask(route, ANNA, body=b'{"a": "\\u0000"}')

    def test_nested_and_escaped_pointers(self, ask, owner):
        owner(
            "CREATE FUNCTION portal.t_deep(a text, b integer[] DEFAULT NULL) RETURNS json LANGUAGE sql AS "
            "$$ SELECT json_build_object('a', a, 'b', b) $$"
        )
        route = _route("portal.t_deep", {"a": "body:/p~1q/x~0y", "b": "body:/list?"})
        assert _json(ask(route, ANNA, body={"p/q": {"x~y": "v"}, "list": [3, None, 4]})) == {
            "a": "v",
            "b": [3, None, 4],
        }
        with pytest.raises(errors.Unprocessable) as caught:
            ask(route, ANNA, body={"p/q": {"x~y": "v", "z": 1}})
        assert caught.value.members["errors"][0]["pointer"] == "/p~1q"

    @pytest.mark.parametrize(
        ("env", "limit", "result"),
        [
            ({"caregate.content_length": 5}, 5, b"12345"),
            ({"caregate.content_length": 0}, 5, b""),
            ({"caregate.content_length": None}, 9, b"12345678"),
            ({"CONTENT_LENGTH": "3"}, 5, b"123"),
            ({}, 5, b""),
            ({"caregate.content_length": 6}, 5, errors.BodyTooLarge),
            ({"caregate.content_length": None}, 5, errors.BodyTooLarge),
        ],
        ids=["exact", "none", "chunked", "wsgi", "wsgi-none", "long", "chunked-long"],
    )
    def test_reading(self, env, limit, result):
        env["wsgi.input"] = io.BytesIO(b"12345678")
        if isinstance(result, bytes):
            assert read_body(env, limit) == result
            return
        with pytest.raises(result):
            read_body(env, limit)

    def test_reading_waits_until_the_deadline(self):
        class Input(io.BytesIO):
            until = Mock()

        assert read_body({"wsgi.input": Input(b"1"), "CONTENT_LENGTH": "1"}, 5, 77) == b"1"
        Input.until.assert_called_once_with(77)


class TestRefused:
    @pytest.mark.parametrize(
        ("route", "params", "query", "error"),
        [
            (UNIT_DAY, {"unit": "linden-clinic"}, "", errors.QueryRefused),
            (UNIT_DAY, {"unit": "linden-clinic"}, "day=tomorrow", errors.QueryRefused),
            (UNIT_DAY, {"unit": "linden-clinic"}, "day=2031-01-01&day=2031-01-02", errors.QueryRefused),
            (UNIT_DAY, {"unit": "linden-clinic"}, "day=2031-01-01&d%61y=2031-01-01", errors.QueryRefused),
            (UNIT_DAY, {"unit": "linden-clinic"}, "day=%ff", errors.QueryRefused),
            (UNIT_DAY, {"unit": "a\0"}, "day=2031-01-01", errors.NotFound),
        ],
        ids=["missing", "not-a-date", "twice", "twice-encoded", "not-utf8", "nul-in-path"],
    )
    def test_values(self, ask, route, params, query, error):
        with pytest.raises(error):
            ask(route, WEBER, params, query=query)

    def test_path_of_another_type(self, ask, owner):
        owner("CREATE FUNCTION portal.t_number(n integer) RETURNS json LANGUAGE sql AS $$ SELECT to_json(n) $$")
        route = _route("portal.t_number", {"n": "path:patient"})
        assert ask(route, ANNA, {"patient": "7"}).data == b"7"
        with pytest.raises(errors.NotFound):
            ask(route, ANNA, {"patient": "seven"})

    @pytest.mark.parametrize("claims", [{}, {"patient": 5}, {"patient": ["pat-0001"]}, {"patient": "a\0"}], ids=str)
    def test_a_token_without_the_claim_it_needs(self, ask, claims):
        with pytest.raises(errors.BindingRefused):
            ask(MINE, _principal("patient", "patient-app", **claims))

    @pytest.mark.parametrize(
        ("sqlstate", "error"),
        [("P0002", errors.NotFound), ("42501", errors.BindingRefused), ("22023", errors.BadRequest),
         ("P0001", errors.InternalError), ("PT409", errors.Conflict)],
    )  # fmt: skip
    def test_what_a_function_raises(self, ask, owner, sqlstate, error):
        owner(
            "CREATE FUNCTION portal.t_raise() RETURNS json LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION 'secret of pat-0001' USING ERRCODE = '{sqlstate}'; END $$"
        )
        with pytest.raises(error) as caught:
            ask(_route("portal.t_raise"), ANNA)
        assert b"secret" not in problem_body(caught.value, "r")

    def test_deadline(self, ask, owner):
        owner("CREATE FUNCTION portal.t_slow() RETURNS json LANGUAGE sql AS $$ SELECT to_json(pg_sleep(9)::text) $$")
        ask(MINE, ANNA)
        began = time.monotonic()
        with pytest.raises(errors.DatabaseTimeout):
            ask(_route("portal.t_slow"), ANNA, deadline_ms=300)
        assert time.monotonic() - began < 3

    def test_a_function_that_must_not_be_called_is_not(self, ask, owner):
        """A configuration taken over while the database was away is checked at the first call."""
        owner("CREATE FUNCTION portal.t_def() RETURNS json LANGUAGE sql SECURITY DEFINER AS $$ SELECT '1'::json $$")
        with pytest.raises(errors.InternalError):
            ask(_route("portal.t_def"), ANNA)

    def test_database_away_then_back(self, ask, portal):
        ask(MINE, ANNA)
        portal.stop()
        with pytest.raises(errors.DatabaseUnavailable):
            ask(MINE, ANNA)
        portal.start()
        end = time.monotonic() + 3
        while True:
            try:
                assert ask(MINE, ANNA).status == 200
                break
            except errors.DatabaseUnavailable:
                assert time.monotonic() < end
                gevent.sleep(0.01)


class TestSecondLock:
    """ARCHITECTURE, decision 14: everything here has passed the gateway's own checks by assumption."""

    @pytest.mark.parametrize("route", [PROFILE, APPOINTMENTS], ids=["profile", "appointments"])
    def test_a_forged_patient_id_shows_nothing(self, ask, route):
        with pytest.raises(errors.NotFound):
            ask(route, ANNA, {"patient": "pat-0002"})

    def test_a_forged_patient_id_books_nothing(self, ask, portal):
        body = {"unit": "linden-clinic", "starts_at": "2034-01-01T09:00:00Z"}
        with pytest.raises(errors.NotFound):
            ask(BOOK, ANNA, {"patient": "pat-0002"}, body=body)
        with psycopg.connect(portal.admin_dsn) as admin:
            count = "SELECT count(*) FROM portal.appointments WHERE patient = 'pat-0002' AND starts_at > '2033-12-31'"
            assert admin.execute(count).fetchone() == (0,)

    def test_without_a_hidden_binding_it_is_forbidden(self, ask):
        with pytest.raises(errors.BindingRefused):
            ask(SHARE, WEBER, {"unit": "st-marien-hospital"}, body={"patient": "pat-0001", "title": "t", "content": ""})

    def test_a_forged_unit_shows_nothing(self, ask):
        route = _route("portal.unit_patients", {"p_unit": "path:unit"})
        assert len(_json(ask(route, WEBER, {"unit": "linden-clinic"}))["patients"]) == 30
        assert _json(ask(route, WEBER, {"unit": "st-marien-hospital"}))["patients"] == []

    def test_a_summary_for_a_patient_of_another_unit_is_refused(self, ask):
        body = {"patient": "pat-0004", "title": "t", "content": "c"}
        with pytest.raises(errors.BindingRefused):
            ask(SHARE, WEBER, {"unit": "linden-clinic"}, body=body)
        assert _json(ask(SHARE, WEBER, {"unit": "linden-clinic"}, body={**body, "patient": "pat-0001"}))["unit"]

    @pytest.mark.parametrize(
        "claims",
        [
            b"",
            b"{}",
            b'{"role":"patient"}',
            b'{"patient":"pat-0001"}',
            b'{"role":"partner","patient":"pat-0001"}',
            b"null",
        ],
        ids=["empty", "none", "no-patient", "no-role", "other-role", "null"],
    )
    def test_claims_that_say_too_little_show_nothing(self, database, claims):
        statement = Statement(b"t_profile", b"SELECT portal.patient_profile($1)")
        assert database.call(statement, (b"pat-0001",), claims) is None

    @pytest.mark.parametrize("claims", [b"x", b'{"role": '], ids=["word", "torn"])
    def test_claims_that_are_not_json_are_an_error(self, database, claims):
        with pytest.raises(StatementFailed, match="22P02"):
            database.call(Statement(b"t_profile", b"SELECT portal.patient_profile($1)"), (b"pat-0001",), claims)

    @pytest.mark.parametrize("language", ["sql", "plpgsql"])
    @pytest.mark.parametrize("volatility", ["VOLATILE", "STABLE", "IMMUTABLE"])
    def test_a_function_sees_its_own_callers_claims(self, ask, owner, language, volatility):
        """On the same few connections, in turns, past the point where the server keeps a generic plan."""
        name = f"portal.t_who_{language}_{volatility.lower()}"
        query = "SELECT to_json(array_agg(id)) FROM portal.patients"
        text = query if language == "sql" else f"BEGIN RETURN ({query}); END"
        owner(f"CREATE FUNCTION {name}() RETURNS json LANGUAGE {language} {volatility} AS $$ {text} $$")
        route = _route(name)
        for _ in range(12):
            for principal, own in ((ANNA, "pat-0001"), (BERT, "pat-0002")):
                try:
                    assert _json(ask(route, principal)) == [own]
                except errors.NotFound:
                    assert volatility == "IMMUTABLE", "only what lies about itself may see nothing"

    def test_callers_who_share_a_connection_each_see_their_own(self, ask, monkeypatch):
        """Thirty patients at once, each of whom asks for himself and for another."""
        lengths = []
        depart = Convoy.depart

        def counted(convoy, calls, now_ns):
            lengths.append(len(calls))
            depart(convoy, calls, now_ns)

        monkeypatch.setattr(Convoy, "depart", counted)

        def read(number):
            own, other = f"pat-{number:04}", f"pat-{number % 30 + 1:04}"
            principal = _principal("patient", "patient-app", patient=own)
            for _ in range(6):
                assert _json(ask(PROFILE, principal, {"patient": own}))["id"] == own
                assert _json(ask(APPOINTMENTS, principal, {"patient": own}))["patient"] == own
                with pytest.raises(errors.NotFound):
                    ask(PROFILE, principal, {"patient": other})

        read(1)
        gevent.joinall([gevent.spawn(read, number) for number in range(1, 31)], raise_error=True)
        assert max(lengths) > 1, "callers shared a round trip"

    def test_role_and_audience_are_the_keys_not_the_claims(self):
        forged = _principal("patient", "patient-app", role="practitioner", aud="staff-portal", units=["linden-clinic"])
        claims = json.loads(claims_of(forged))
        assert (claims["role"], claims["aud"], claims["units"]) == ("patient", "patient-app", ["linden-clinic"])

    @pytest.mark.parametrize(
        "sql",
        [
            b"SET ROLE caregate_owner",
            b"ALTER TABLE portal.patients DISABLE ROW LEVEL SECURITY",
            b"ALTER TABLE portal.patients NO FORCE ROW LEVEL SECURITY",
            b"CREATE POLICY t_all ON portal.patients USING (true)",
            b"CREATE TABLE portal.t_mine (n integer)",
            b"CREATE TEMPORARY TABLE patients (n integer)",
            b"DELETE FROM portal.patients",
            b"SELECT pg_read_file('/etc/passwd')",
            b"COPY portal.patients TO PROGRAM 'cat'",
        ],
        ids=lambda sql: sql.decode()[:40],
    )
    def test_the_gateways_role_cannot_go_around(self, database, sql):
        with pytest.raises(StatementFailed) as caught:
            database.call(Statement(b"t_" + sql[:40], sql), (), claims_of(ANNA))
        assert caught.value.sqlstate == "42501"

    def test_even_the_tables_owner_sees_nothing(self, portal):
        with psycopg.connect(portal.admin_dsn) as admin:
            admin.execute("SET LOCAL ROLE caregate_owner")
            assert admin.execute("SELECT count(*) FROM portal.patients").fetchone() == (0,)
