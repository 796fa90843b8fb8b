"""What is refused when a configuration loads, against a real catalog."""

import psycopg
import pytest
from msgspec import convert

from gateway.config.model import Document
from gateway.errors import DatabaseUnavailable, InternalError
from gateway.portal.catalog import check_functions, load_signature
from gateway.store.pool import Database

_ROLE = {"audience": "a", "keys": [{"kid": "k", "alg": "HS256", "secret": "env:X"}]}


def _document(name, arguments=None, controller="c"):
    function = {"name": name, "arguments": arguments or {}}
    route = {"path": "/x/{id}", "methods": ["GET"], "audiences": ["a"], "roles": ["r"], "function": function}
    whole = {
        "version": 1,
        "audiences": {"a": {"issuer": "i"}},
        "roles": {"r": _ROLE},
        "controllers": {controller: route},
    }
    return convert(whole, Document)


def _faults(database, name, arguments=None):
    return [str(fault) for fault in check_functions(_document(name, arguments), database)[1]]


def _create(owner, signature, *, returns="json", body="SELECT '{}'::json", options="STABLE", grant=True):
    owner(f"CREATE FUNCTION {signature} RETURNS {returns} LANGUAGE sql {options} AS $$ {body} $$")
    owner(f"ALTER FUNCTION {signature.partition('(')[0]} OWNER TO caregate_owner")
    owner(f"REVOKE EXECUTE ON FUNCTION {signature.partition('(')[0]} FROM PUBLIC")
    if grant:
        owner(f"GRANT EXECUTE ON FUNCTION {signature.partition('(')[0]} TO caregate_gateway")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("portal.patient_appointments", {"p_patient": "path:id", "p_limit": "query:limit?"}),
        ("portal.patient_appointments", {"p_patient": "claim:patient"}),
        ("portal.list_units", {}),
        (
            "portal.book_appointment",
            {"p_patient": "path:id", "p_unit": "body:/unit", "p_starts_at": "body:/at", "p_reason": "body:/why?"},
        ),
    ],
    ids=["query", "default", "none", "body"],
)
def test_accepted(database, name, arguments):
    catalog, faults = check_functions(_document(name, arguments), database)
    assert faults == []
    assert set(arguments) <= set(catalog.signatures[name].parameters)


def test_the_demo_configuration_is_accepted(database):
    from pathlib import Path

    import yaml

    text = Path("gateway/demo/caregate.yaml").read_text()
    document = convert(yaml.safe_load(text), Document, strict=False)
    assert check_functions(document, database)[1] == []


@pytest.mark.parametrize(
    ("name", "arguments", "fault"),
    [
        ("portal.nothing", {}, "controllers.c.function.name: the database has no such function"),
        (
            "portal.patient_profile",
            {"p_patient": "path:id", "p_other": "query:o"},
            "controllers.c.function.arguments.p_other: the function has no such argument",
        ),
        (
            "portal.patient_profile",
            {},
            "controllers.c.function.arguments: the function's argument p_patient has no default and is not given",
        ),
        (
            "portal.patient_profile",
            {"p_patient": "query:p?"},
            "controllers.c.function.arguments.p_patient: it is optional here, but the function has no default for it",
        ),
        (
            "portal.patient_profile",
            {"p_patient": "body"},
            "controllers.c.function.arguments.p_patient: the whole body goes into json or jsonb, not text",
        ),
    ],
    ids=["missing", "unknown-argument", "required", "optional", "whole-body"],
)
def test_refused(database, name, arguments, fault):
    assert _faults(database, name, arguments) == [fault]


@pytest.mark.parametrize(("options", "changes_nothing"), [("VOLATILE", False), ("STABLE", True), ("IMMUTABLE", True)])
def test_what_a_function_says_of_itself(database, owner, options, changes_nothing):
    _create(owner, "portal.t_says()", options=options)
    assert load_signature("portal.t_says", database).changes_nothing is changes_nothing


@pytest.mark.parametrize(
    ("signature", "changes", "reason"),
    [
        ("portal.t_definer()", {"options": "SECURITY DEFINER"}, "SECURITY DEFINER"),
        ("portal.t_text()", {"returns": "text", "body": "SELECT ''"}, "must return one json or jsonb"),
        ("portal.t_set()", {"returns": "SETOF json"}, "must return one json or jsonb"),
        ("portal.t_unnamed(text)", {}, "must have named IN arguments only"),
        ("portal.t_variadic(VARIADIC v text[])", {}, "must have named IN arguments only"),
        ("portal.t_closed()", {"grant": False}, "may not execute"),
    ],
    ids=["definer", "text", "set", "unnamed", "variadic", "not-granted"],
)
def test_refused_function(database, owner, signature, changes, reason):
    _create(owner, signature, **changes)
    faults = _faults(database, signature.partition("(")[0])
    assert len(faults) == 1
    assert faults[0].startswith("controllers.c.function.name: ")
    assert reason in faults[0]
    with pytest.raises(InternalError):
        load_signature(signature.partition("(")[0], database)


def test_refused_overload(database, owner):
    _create(owner, "portal.t_twice(a text)")
    owner("CREATE FUNCTION portal.t_twice(a integer) RETURNS json LANGUAGE sql AS $$ SELECT '{}'::json $$")
    assert "overloaded" in _faults(database, "portal.t_twice")[0]


def test_refused_procedure(database, owner):
    owner("CREATE PROCEDURE portal.t_procedure() LANGUAGE sql AS $$ SELECT 1 $$")
    assert any("not an ordinary function" in fault for fault in _faults(database, "portal.t_procedure"))


def test_types_are_resolved(database, owner):
    owner("DROP DOMAIN IF EXISTS portal.t_small CASCADE; CREATE DOMAIN portal.t_small AS integer CHECK (VALUE < 10)")
    _create(owner, "portal.t_types(a portal.t_small, b text[], c timestamptz, d uuid[] DEFAULT NULL)")
    signature = load_signature("portal.t_types", database)
    found = [(p.name, p.type_name, p.array, p.has_default, p.kind.expects) for p in signature.parameters.values()]
    owner("DROP DOMAIN portal.t_small CASCADE")
    assert found == [
        ("a", "t_small", False, False, "a whole number from -2147483648 to 2147483647"),
        ("b", "text[]", True, False, "text"),
        ("c", "timestamp with time zone", False, False, "a time with its offset such as 2031-01-31T09:30:00Z"),
        ("d", "uuid[]", True, True, "a UUID"),
    ]


def test_an_array_cannot_come_from_the_path(database, owner):
    _create(owner, "portal.t_array(a text[])")
    assert "an array (text[]) cannot come from the path" in _faults(database, "portal.t_array", {"a": "path:id"})[0]
    assert _faults(database, "portal.t_array", {"a": "claim:units"}) == []


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("CREATE TABLE portal.t_open (n integer)", "portal.t_open: the table needs ENABLE and FORCE"),
        (
            "CREATE TABLE portal.t_half (n integer); ALTER TABLE portal.t_half ENABLE ROW LEVEL SECURITY",
            "portal.t_half: the table needs ENABLE and FORCE",
        ),
        (
            "CREATE TABLE public.t_elsewhere (n integer); GRANT SELECT ON public.t_elsewhere TO caregate_gateway",
            "public.t_elsewhere: the table needs ENABLE and FORCE",
        ),
        (
            "CREATE VIEW portal.t_view AS SELECT * FROM portal.patients",
            "portal.t_view: the view needs security_invoker",
        ),
        (
            "CREATE MATERIALIZED VIEW portal.t_copy AS SELECT * FROM portal.patients",
            "portal.t_copy: row-level security",
        ),
        (
            "CREATE TABLE public.t_own (n integer); ALTER TABLE public.t_own OWNER TO caregate_gateway; "
            "ALTER TABLE public.t_own ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
            "public.t_own: the gateway's role owns it",
        ),
    ],
    ids=["no-rls", "no-force", "other-schema", "view", "materialized", "owned"],
)
def test_refused_relations(database, owner, sql, reason):
    assert _faults(database, "portal.list_units") == []
    owner(sql)
    faults = _faults(database, "portal.list_units")
    assert len(faults) == 1
    assert faults[0].startswith("document: the database's ")
    assert reason in faults[0]


def test_a_view_that_asks_with_the_callers_rights_is_fine(database, owner):
    owner("CREATE VIEW portal.t_view WITH (security_invoker = true) AS SELECT * FROM portal.patients")
    assert _faults(database, "portal.list_units") == []


def test_an_administrators_login_is_refused(portal):
    database = Database(portal.admin_dsn)
    database.open()
    assert any("postgres can go around row-level security" in fault for fault in _faults(database, "portal.list_units"))
    database.close()


def test_membership_in_the_owner_is_refused(database, portal):
    with psycopg.connect(portal.admin_dsn, autocommit=True) as admin:
        admin.execute("GRANT caregate_owner TO caregate_gateway")
        faults = _faults(database, "portal.list_units")
        admin.execute("REVOKE caregate_owner FROM caregate_gateway")
    assert any("can become its owner" in fault for fault in faults)


def test_database_away(tmp_path):
    database = Database(f"postgresql://x@/y?host={tmp_path}")
    database.open()
    with pytest.raises(DatabaseUnavailable):
        check_functions(_document("portal.list_units"), database)
    database.close()


def test_nothing_to_check_asks_nobody(tmp_path):
    database = Database(f"postgresql://x@/y?host={tmp_path}")
    whole = {"version": 1, "audiences": {"a": {"issuer": "i"}}, "roles": {"r": _ROLE}}
    assert check_functions(convert(whole, Document), database)[1] == []
