import json
import math

import pytest

from gateway.portal.values import BodyRefused, ValueRefused, json_array, json_value, kind_of, parse_json, text_value

_INT4 = 2**31


@pytest.mark.parametrize(
    ("type_name", "text"),
    [
        ("text", ""),
        ("text", "Zoë 'x' \U0001f600"),
        ("int4", "0"),
        ("int4", str(_INT4 - 1)),
        ("int4", str(-_INT4)),
        ("int8", str(2**63 - 1)),
        ("numeric", "-12.50"),
        ("numeric", "1e10"),
        ("bool", "true"),
        ("uuid", "6B1d0f0e-0000-4000-8000-00000000000f"),
        ("date", "2028-02-29"),
        ("timestamptz", "2031-01-31T09:30:00Z"),
        ("timestamptz", "2031-01-31t09:30:00.123456+05:30"),
        ("timestamp", "2031-01-31T09:30:00"),
        ("interval", "anything the database may judge"),
    ],
)
def test_text_passes_unchanged(type_name, text):
    assert text_value(kind_of(type_name), text) == text.encode()


@pytest.mark.parametrize(
    ("type_name", "text"),
    [
        ("text", "a\0b"),
        ("text", "\ud800"),
        ("int4", ""),
        ("int4", str(_INT4)),
        ("int4", "1.0"),
        ("int4", "1_000"),
        ("int4", " 1"),
        ("int4", "1\n"),
        ("int4", "+1"),
        ("int4", "\u0661"),
        ("int4", "9" * 40),
        ("int8", str(2**63)),
        ("numeric", "NaN"),
        ("numeric", "1e"),
        ("numeric", "0x10"),
        ("float8", "Infinity"),
        ("bool", "1"),
        ("bool", "TRUE"),
        ("uuid", "6b1d0f0e00004000800000000000000f"),
        ("uuid", "{6b1d0f0e-0000-4000-8000-00000000000f}"),
        ("date", "2027-02-29"),
        ("date", "20270228"),
        ("date", "today"),
        ("date", "infinity"),
        ("timestamptz", "2031-01-31T09:30:00"),
        ("timestamptz", "2031-01-31T25:30:00Z"),
        ("timestamptz", "2031-W05-5T09:30:00Z"),
        ("timestamptz", "now"),
        ("timestamp", "2031-01-31T09:30:00Z"),
    ],
)
def test_text_refused_without_being_repeated(type_name, text):
    with pytest.raises(ValueRefused) as caught:
        text_value(kind_of(type_name), text)
    ours = {f"must be {kind_of(type_name).expects}", "must not contain U+0000", "must not contain unpaired surrogates"}
    assert str(caught.value) in ours


@pytest.mark.parametrize(
    ("type_name", "value", "expected"),
    [
        ("text", "x", b"x"),
        ("int4", 7, b"7"),
        ("numeric", 12.5, b"12.5"),
        ("numeric", 10**30, b"1" + b"0" * 30),
        ("float8", 1e300, b"1e+300"),
        ("bool", True, b"true"),
        ("date", "2031-01-31", b"2031-01-31"),
        ("jsonb", {"a": [1, None, "é"]}, '{"a":[1,null,"é"]}'.encode()),
        ("jsonb", "x", b'"x"'),
        ("jsonb", 2**70, str(2**70).encode()),
        ("jsonb", "\\u0000", b'"\\\\u0000"'),
    ],
)
def test_json_value(type_name, value, expected):
    assert json_value(kind_of(type_name), value) == expected


@pytest.mark.parametrize(
    ("type_name", "value"),
    [
        ("text", 1),
        ("text", ["x"]),
        ("text", "a\0"),
        ("int4", "7"),
        ("int4", True),
        ("int4", 7.0),
        ("int4", _INT4),
        ("numeric", True),
        ("numeric", "1"),
        ("numeric", math.inf),
        ("bool", 1),
        ("bool", "true"),
        ("date", 20310131),
        ("uuid", {}),
        ("jsonb", "a\0b"),
        ("jsonb", ["\ud800"]),
        ("jsonb", math.nan),
    ],
)
def test_json_value_refused(type_name, value):
    with pytest.raises(ValueRefused):
        json_value(kind_of(type_name), value)


@pytest.mark.parametrize(
    ("type_name", "value", "expected"),
    [
        ("text", [], b"{}"),
        ("text", ["a", 'b"c', "d\\e", "", "NULL", "{,}", None], rb'{"a","b\"c","d\\e","","NULL","{,}",NULL}'),
        ("int4", [1, 2], b'{"1","2"}'),
        ("jsonb", [{"a": 1}], rb'{"{\"a\":1}"}'),
    ],
)
def test_json_array(type_name, value, expected):
    assert json_array(kind_of(type_name), value) == expected


@pytest.mark.parametrize("value", ["a", {"0": "a"}, ["a", 1], [["a"]]], ids=str)
def test_json_array_refused(value):
    with pytest.raises(ValueRefused):
        json_array(kind_of("text"), value)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"{",
        b"{'a': 1}",
        b'{"a": 1,}',
        b'{"a": 1} x',
        b'{"a": 1, "a": 2}',
        b'{"x": {"a": 1, "\\u0061": 2}}',
        b"NaN",
        b"-Infinity",
        b"01",
        b'{"a": "\x00"}',
        b'{"a": "\xff"}',
        b'\xef\xbb\xbf{"a": 1}',
        '{"a": 1}'.encode("utf-16"),
        b"[" * 100_000,
        b"1" * 5000,
    ],
    ids=lambda raw: repr(raw[:20]),
)
def test_body_refused(raw):
    with pytest.raises(BodyRefused) as caught:
        parse_json(raw)
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize("raw", [b"{}", b'{"a": [1, 2.5, null, true, "\\u00e9"]}', b" 1 ", b'"x"'])
def test_body_taken(raw):
    assert parse_json(raw) == json.loads(raw)
