"""What a search's parameters mean."""

import calendar
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from gateway.audit.endpoint import SearchResource
from gateway.audit.search import Place, SearchRefused, parse
from gateway.audit.timestamp import civil, instant

RANGE = "date=ge2026-05-01&date=lt2026-06-01"


def ms(*parts):
    return calendar.timegm((*parts, 0, 0, 0)[:6]) * 1000


def search(query, **options):
    return parse(query, count=50, most=200, **options)


DATES = {
    "a month": ("date=2026-05", ms(2026, 5, 1), ms(2026, 6, 1)),
    "a year": ("date=2024", ms(2024, 1, 1), ms(2025, 1, 1)),
    "a day": ("date=eq2026-05-03", ms(2026, 5, 3), ms(2026, 5, 4)),
    "from, to": (RANGE, ms(2026, 5, 1), ms(2026, 6, 1)),
    "le takes the whole day": ("date=ge2026-05-01&date=le2026-05-02", ms(2026, 5, 1), ms(2026, 5, 3)),
    "gt begins behind the day": ("date=gt2026-05-01&date=lt2026-05-09", ms(2026, 5, 2), ms(2026, 5, 9)),
    "sa, eb": ("date=sa2026-05-01&date=eb2026-05-09", ms(2026, 5, 2), ms(2026, 5, 9)),
    "a zone": (
        "date=ge2026-05-01T01:30:00%2B02:00&date=lt2026-05-01T00:00:00-01:30",
        ms(2026, 4, 30, 23, 30), ms(2026, 5, 1, 1, 30),
    ),
    "milliseconds": (
        "date=gt2026-05-01T00:00:00.25Z&date=le2026-05-01T00:00:01.5Z",
        ms(2026, 5, 1) + 251, ms(2026, 5, 1) + 1501,
    ),
    "a minute": ("date=2026-05-01T00:07Z", ms(2026, 5, 1, 0, 7), ms(2026, 5, 1, 0, 8)),
    "the narrowest counts": (RANGE + "&date=ge2026-05-20&date=le2026-05-20", ms(2026, 5, 20), ms(2026, 5, 21)),
}  # fmt: skip


@pytest.mark.parametrize(("query", "from_ms", "to_ms"), DATES.values(), ids=DATES)
def test_dates(query, from_ms, to_ms):
    found = search(query)
    assert (found.from_ms, found.to_ms) == (from_ms, to_ms)


WHERE = {
    "none": ("", {}),
    "patient": ("patient=p-1", {"patient": ("p-1",)}),
    "patient as a reference": ("patient=Patient/p-1", {"patient": ("p-1",)}),
    "a patient's comma": ("patient=p,1", {"patient": ("p,1",)}),
    "FHIR's outcome": ("outcome=4,8", {"outcome": ("refused", "failed", "cut")}),
    "an outcome that FHIR has": ("outcome=12", {"outcome": ("12",)}),
    "an outcome twice": ("outcome=0,allowed", {"outcome": ("allowed", "complete")}),
    "how a transfer ended": ("outcome=cut", {"outcome": ("cut",), "phase": ("completion",)}),
    "the same with its phase": ("phase=completion&outcome=cut", {"outcome": ("cut",), "phase": ("completion",)}),
    "entities of one type": (
        "entity=Patient/a,Patient/b", {"resource_type": ("Patient",), "resource_id": ("a", "b")},
    ),
    "our outcome": ("outcome=refused", {"outcome": ("refused",)}),
    "entity as a reference": (
        "entity=Observation/o-1", {"resource_type": ("Observation",), "resource_id": ("o-1",)},
    ),
    "several": (
        "user=a,b&unit=u&role=r&client=c&action=C,U&purpose=TREAT&request=q&address=::1&route=x",
        {
            "subject": ("a", "b"), "unit": ("u",), "role": ("r",), "client": ("c",), "action": ("C", "U"),
            "purpose": ("TREAT",), "request_id": ("q",), "client_address": ("::1",), "route": ("x",),
        },
    ),
    "escapes": ("user=a%2Bb+c%C3%BC", {"subject": ("a+b cü",)}),
}  # fmt: skip


@pytest.mark.parametrize(("query", "where"), WHERE.values(), ids=WHERE)
def test_conditions(query, where):
    assert search(f"{RANGE}&{query}" if query else RANGE).where == where


REFUSED = {
    "no date": ("patient=p", "date: a range is required"),
    "no end": ("date=ge2026-05-01", "date: a range is required"),
    "no begin": ("date=lt2026-05-01", "date: a range is required"),
    "empty range": ("date=ge2026-05-02&date=lt2026-05-01", "range is empty"),
    "no such day": ("date=2026-02-29", "no such day"),
    "no such time": ("date=2026-02-28T24:00:00Z", "no such time"),
    "no date at all": ("date=yesterday", "date: takes"),
    "unknown": (RANGE + "&family=x", "not known"),
    "twice": (RANGE + "&user=a&user=b", "user comes twice"),
    "two names of one": (RANGE + "&user=a&agent=b", "agent comes twice"),
    "empty": (RANGE + "&user=", "user: 1 to 20"),
    "too many": (RANGE + "&user=" + ",".join(map(str, range(21))), "user: 1 to 20"),
    "too long": (RANGE + "&user=" + "x" * 257, "user: 1 to 20"),
    "NUL": (RANGE + "&user=%00", "NUL"),
    "no action": (RANGE + "&action=X", "action: takes C, D, E, R, U"),
    "no outcome": (RANGE + "&outcome=5", "outcome: takes"),
    "outcomes of two phases": (RANGE + "&outcome=cut,allowed", "outcome: complete and cut"),
    "entities of two types": (RANGE + "&entity=Patient/a,Observation/b", "entity: takes"),
    "entities half with a type": (RANGE + "&entity=Patient/a,b", "entity: takes"),
    "a type without an entity": (RANGE + "&entity=Patient/", "entity: takes"),
    "an entity without its type": (RANGE + "&entity=/a", "entity: takes"),
    "a type named twice": (RANGE + "&entity-type=Patient&entity=Patient/a", "entity: takes"),
    "no zone": ("date=ge2026-05-01T00:00:00%2B99:99&date=lt2026-06-01", "no such zone"),
    "no minutes of a zone": ("date=ge2026-05-01T00:00:00%2B01:60&date=lt2026-06-01", "no such zone"),
    "count 0": (RANGE + "&_count=0", "_count"),
    "count ²": (RANGE + "&_count=²", "_count"),
    "count twice": (RANGE + "&_count=1&_count=2", "_count comes twice"),
    "a cursor of somebody": (RANGE + "&_cursor=x%00", "_cursor"),
    "a cursor with SQL": (RANGE + "&_cursor=MS4nOy0tLjE", "_cursor"),
    "another order": (RANGE + "&_sort=date", "_sort"),
    "XML": (RANGE + "&_format=xml", "_format"),
    "no UTF-8": (RANGE + "&user=%ff%fe", ""),
    "no pairs": (RANGE + "&user", "name=value"),
}


@pytest.mark.parametrize(("query", "reason"), [v for k, v in REFUSED.items() if k != "no UTF-8"])
def test_refused(query, reason):
    with pytest.raises(SearchRefused, match=reason):
        search(query)


def test_what_was_sent_is_not_echoed():
    for query in (RANGE + "&geheim=1", RANGE + "&action=geheim", RANGE + "&_cursor=geheim", "date=geheim"):
        with pytest.raises(SearchRefused) as refused:
            search(query)
        assert "geheim" not in str(refused.value)


def test_pages():
    found = search(RANGE + "&_count=7&user=a")
    assert (found.count, search(RANGE).count, search(RANGE + "&_count=9999").count) == (7, 50, 200)
    place = Place(ms(2026, 5, 2), "a" * 16, 17)
    link = found.link("/x", place)
    again = search(link.partition("?")[2])
    assert (again.after, again.where, again.count) == (place, found.where, 7)
    assert again.link("/x") == found.link("/x"), "a page's own link has no cursor of an earlier one"


def test_the_trail_is_not_told_the_patients_name_twice():
    assert "p-1" not in search(RANGE + "&patient=Patient/p-1&user=u").described
    for entity in ("p-1", "Patient/p-1", "Patient/x,Patient/p-1", "Patient/p-1,Patient/x", "p-1,x"):
        assert "p-1" not in search(f"{RANGE}&entity={entity}").described
    assert "o-1" in search(RANGE + "&entity=Observation/o-1").described
    assert "user=u" in search(RANGE + "&patient=p-1&user=u").described


def test_patients_are_found_under_their_names_also_as_entities():
    resource = SearchResource.__new__(SearchResource)
    resource._patients = SimpleNamespace(names_of=lambda patient: (patient, f"p.{patient}"))
    for query, found in (("entity=Patient/a,Patient/b", ("a", "p.a", "b", "p.b")), ("entity=a", ("a", "p.a")),
                         ("entity=Observation/a", ("a",))):  # fmt: skip
        assert resource._named(search(f"{RANGE}&{query}")).where["resource_id"] == found


@pytest.mark.parametrize("at_ms", [0, 951_782_399_999, 951_782_400_000, 1_709_164_800_001, 4_107_542_399_000])
def test_instants_as_the_standard_library_writes_them(at_ms):
    text = datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert instant(at_ms) == text


def test_days():
    for days in range(-200, 60_000, 13):
        found = datetime.fromtimestamp(days * 86_400, UTC)
        assert civil(days) == (found.year, found.month, found.day)
