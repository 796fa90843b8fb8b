"""Rows of canonical bytes: the kernel gives what the plain way gives, or leaves it to that."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.audit import columns
from gateway.audit.event import AuditEvent, decode, encode
from gateway.audit.spool import RECORD

CHAIN, DIGEST = "0123456789abcdef", bytes(range(32))
REQUIRED = (
    b'"v":1,"kind":"access","phase":"outcome","at_ms":1700000000120,"duration_us":5,"request_id":"r","outcome":"o"'
)
EVENT = b"{" + REQUIRED + b',"rule":"","status":200'
TEXT = st.text(max_size=12)
SAFE = st.text("abc-:/@é€ ~\x7f", max_size=12)


def plainly(canonical):
    """The model: values, escaped as COPY wants them."""
    texts = columns.values(CHAIN, 7, DIGEST, canonical)
    return ("\t".join(text.translate(columns._ESCAPES) for text in texts) + "\n").encode()


def of_kernel(canonical):
    return columns._rows.row(CHAIN.encode(), 7, DIGEST, canonical)


def events(text):
    kinds = {str: text, int: st.integers(0, 2**40), bool: st.booleans()}
    return st.builds(
        AuditEvent,
        **{field.name: kinds[field.type] for field in msgspec.structs.fields(AuditEvent) if field.type in kinds},
    )


@settings(max_examples=200, deadline=None)
@given(events(SAFE))
def test_plain_events_are_the_kernels(event):
    canonical = encode(event)
    assert of_kernel(canonical) == plainly(canonical) == columns.row(CHAIN, 7, DIGEST, canonical)


@settings(max_examples=200, deadline=None)
@given(events(TEXT))
def test_all_events(event):
    canonical = encode(event)
    assert of_kernel(canonical) in (None, plainly(canonical))
    assert columns.row(CHAIN, 7, DIGEST, canonical) == plainly(canonical)


@pytest.mark.parametrize(
    "canonical",
    [
        pytest.param(EVENT + b',"unit":"u\\n"}', id="escape"),
        pytest.param(EVENT + b',"unit":"u\x01"}', id="control character"),
        pytest.param(EVENT + b',"detail":{"a":"b"}}', id="no column"),
        pytest.param(EVENT + b',"unit":"u","unit":"v"}', id="twice"),
        pytest.param(EVENT + b',"agent":"a","unit":"v"}', id="out of order"),
        pytest.param(EVENT + b',"else":"a"}', id="unknown"),
        pytest.param(EVENT + b',"config_version":007}', id="zeros"),
        pytest.param(EVENT + b',"config_version":-7}', id="negative"),
        pytest.param(EVENT + b',"config_version":1.0}', id="no integer"),
        pytest.param(EVENT + b',"config_version":9999999999999999999}', id="large"),
        pytest.param(EVENT + b',"phi":false}', id="a default"),
        pytest.param(EVENT + b',"unit":7}', id="another type"),
        pytest.param(EVENT + b', "unit":"u"}', id="space"),
        pytest.param(EVENT + b',"unit":"u"}}', id="more"),
        pytest.param(EVENT + b',"unit":"u",}', id="comma"),
        pytest.param(EVENT + b',"unit":"u}', id="open"),
        pytest.param(EVENT + b',"unit":}', id="no value"),
        pytest.param(EVENT + b',"unit"', id="no colon"),
        pytest.param(EVENT, id="no end"),
        pytest.param(b"{" + REQUIRED + b"}", id="a required one is missing"),
        pytest.param(b"{}", id="nothing"),
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="no object"),
    ],
)
def test_anything_unusual_is_left_to_the_plain_way(canonical):
    assert of_kernel(canonical) is None


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damaged_bytes(data):
    canonical = bytearray(EVENT + b',"unit":"north","phi":true,"config_version":12}')
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(canonical) - 1))
        canonical[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    found = of_kernel(bytes(canonical))
    if found is not None:
        try:
            decode(bytes(canonical))
        except ValueError:
            # Not UTF-8: the database refuses it, and then the plain way does.
            with pytest.raises(UnicodeDecodeError):
                canonical.decode()
        else:
            assert found == plainly(bytes(canonical))


def test_hash_of_another_size():
    with pytest.raises(ValueError, match="size"):
        columns._rows.row(b"c", 1, b"short", EVENT + b"}")


# --- stretches of a spool


def record(sequence, canonical):
    return RECORD.pack(len(canonical), sequence, DIGEST) + canonical


def line(sequence, canonical):
    return columns.row(CHAIN, sequence, DIGEST, canonical)


def cut(records, at=0, end=None, after=0, until=1 << 40, most=1000, most_bytes=1 << 20):
    end = len(records) if end is None else end
    return columns.rows(CHAIN, records, at, end, after, until, most=most, most_bytes=most_bytes)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(events(TEXT).map(encode), max_size=8),
    st.integers(0, 9), st.integers(0, 9), st.integers(1, 9), st.integers(0, 3000),
)  # fmt: skip
def test_a_stretch_is_the_rows_of_its_records(texts, after, until, most, most_bytes):
    records = [record(n, text) for n, text in enumerate(texts, 1)]
    wanted, used = [], 0
    for n, text in enumerate(texts, 1):
        if n > until or len(wanted) == most or sum(map(len, wanted)) >= most_bytes:
            break
        if n > after:
            wanted.append(line(n, text))
        used = n
    got = cut(b"".join(records) + bytes(64), 0, None, after, until, most, most_bytes)
    assert got == (b"".join(wanted), len(wanted), after + len(wanted), sum(map(len, records[:used])))


@pytest.mark.parametrize("spared", range(1, 60))
def test_a_stretch_ends_before_a_record_that_is_not_whole(spared):
    one, two = record(1, EVENT + b"}"), record(2, EVENT + b"}")
    assert cut(one + two[:-spared]) == (line(1, EVENT + b"}"), 1, 1, len(one))
    assert cut(one + two, end=len(one + two) - spared)[1] == 1


def test_a_stretch_ends_where_nothing_was_written():
    one = record(1, EVENT + b"}")
    assert cut(one + bytes(1000) + one) == (line(1, EVENT + b"}"), 1, 1, len(one))


def test_a_stretch_with_what_is_no_event_has_no_rows():
    with pytest.raises(ValueError, match="JSON"):
        cut(record(1, EVENT + b"}") + record(2, b"no event"))


@pytest.mark.parametrize(("at", "end"), [(-1, 1), (2, 1), (0, 45)])
def test_positions_outside_are_refused(at, end):
    with pytest.raises(ValueError, match="positions"):
        cut(bytes(44), at, end)
