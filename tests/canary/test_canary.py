"""Planted texts are found in every spelling and in every sink, and only where they must not be."""

from __future__ import annotations

import base64
import json
import random

import pytest

from gateway.canary.marks import KINDS, Marks, make_marks
from gateway.canary.probes import probes
from gateway.canary.sinks import PERSONAL_FIELDS, Leak, look_in_files, look_in_rows, look_in_spool


@pytest.fixture
def marks() -> Marks:
    return make_marks(lambda size: random.Random(7).randbytes(size).hex())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "spell",
    [
        pytest.param(lambda text: text.encode(), id="as it is"),
        pytest.param(lambda text: text.upper().encode(), id="capitals"),
        pytest.param(lambda text: text.encode().hex().upper().encode(), id="hexadecimal"),
        *(
            pytest.param(lambda text, n=n: base64.b64encode(b"x" * n + text.encode() + b"tail"), id=f"base64 after {n}")
            for n in range(7)
        ),
        pytest.param(lambda text: base64.urlsafe_b64encode(b'{"sub":"' + text.encode() + b'"}'), id="claims"),
    ],
)
def test_found_in_every_spelling(marks, kind, spell):
    assert marks.find(b"\x00before " + spell(marks[kind]) + b"\xff after") == {kind}


def test_nothing_is_found_where_nothing_is(marks):
    assert marks.find(b"cgname cgtoken " + marks["name"][:-1].encode()) == set()
    assert marks.find(b"") == set()


@pytest.mark.parametrize("text", ["short", "with spaces in it 123", "zwölfhundertzwölf"])
def test_marks_that_could_be_missed_are_refused(text):
    with pytest.raises(ValueError, match="mark of name"):
        Marks({"name": text})


def event(**members: str) -> bytes:
    return json.dumps({"v": 1, "kind": "access", **members}, separators=(",", ":")).encode()


@pytest.mark.parametrize("member", sorted(PERSONAL_FIELDS))
def test_the_trail_may_say_who_and_whose(tmp_path, marks, member):
    (tmp_path / "1.spool").write_bytes(b"\x00head" + event(**{member: marks["identifier"]}) + b"\x00" * 9)
    assert list(look_in_spool(tmp_path, marks)) == []
    rows = [{member: marks["identifier"], "canonical": event(**{member: marks["identifier"]}).decode(), "status": 200}]
    assert list(look_in_rows("trail", rows, marks)) == []


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda m: event(rule=m), id="another member"),
        pytest.param(lambda m: event(patient="p") + m.encode(), id="behind an event"),
        pytest.param(lambda m: m.encode() + event(patient="p"), id="before an event"),
        pytest.param(lambda m: event(detail=m)[:-1], id="a torn event"),
    ],
)
def test_the_trail_may_say_nothing_else(tmp_path, marks, data):
    path = tmp_path / "chain" / "1.spool"
    path.parent.mkdir()
    path.write_bytes(data(marks["name"]))
    assert list(look_in_spool(tmp_path, marks)) == [Leak(str(path), frozenset({"name"}))]
    rows = [{"patient": "p", "canonical": data(marks["name"]).decode()}]
    assert list(look_in_rows("trail", rows, marks)) == [Leak("trail", frozenset({"name"}))]


@pytest.mark.parametrize("column", ["rule", "route", "detail", "unit"])
def test_columns_are_looked_at(marks, column):
    assert list(look_in_rows("trail", [{column: marks["body"]}], marks)) == [Leak("trail", frozenset({"body"}))]


def test_files_are_looked_at_wherever_they_are(tmp_path, marks):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "log").write_bytes(b"x" + marks["token"].encode())
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert [leak.kinds for leak in look_in_files([tmp_path], marks)] == [{"token"}]


def test_probes_carry_every_mark(marks):
    sent = list(probes(marks, ["/a/{mark}"]))
    everything = b"".join(f"{one.target} {json.dumps(one.fields)} ".encode() + (one.body or b"") for one in sent)
    assert marks.find(everything) == set(KINDS)
    assert any(marks["identifier"] in one.target and one.target.startswith("/a/") for one in sent)
