"""Rows of canonical bytes: the kernel gives what the plain way gives, or leaves it to that."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.audit import columns
from gateway.audit.chain import link
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
        detail=st.dictionaries(text, text, max_size=3),
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
        pytest.param(EVENT + b',"detail":{}}', id="a default object"),
        pytest.param(EVENT + b',"detail":{"a":7}}', id="another type in an object"),
        pytest.param(EVENT + b',"detail":{"a"}}', id="half a pair"),
        pytest.param(EVENT + b',"detail":{"a":"b","c"}}', id="half a second pair"),
        pytest.param(EVENT + b',"detail":{"a","b"}}', id="no pairs"),
        pytest.param(EVENT + b',"detail":{"a":"b",}}', id="comma in an object"),
        pytest.param(EVENT + b',"detail":{"a":"b":"c"}}', id="two values"),
        pytest.param(EVENT + b',"detail":{"a":"b"}', id="one brace"),
        pytest.param(EVENT + b',"detail":{"a":"b"}}}', id="three braces"),
        pytest.param(EVENT + b',"detail":{"a":"b"},"unit":"u"}', id="object out of order"),
        pytest.param(EVENT + b',"detail":{"a":"b}}', id="open in an object"),
        pytest.param(EVENT + b',"detail":{"a":"\\n"}}', id="escape in an object"),
        pytest.param(EVENT + b',"detail":"a"}', id="no object for one"),
        pytest.param(EVENT + b',"detail":{"a":{"b":"c"}}}', id="an object in an object"),
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
    canonical = bytearray(EVENT + b',"unit":"north","phi":true,"config_version":12,"detail":{"a":"b","c":"d"}}')
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


# --- lines that follow from one another


def chained(texts):
    """Lines as the table has them, and the hash behind each; the first is that of before them."""
    lines, heads = [], [DIGEST]
    for sequence, canonical in enumerate(texts, 8):
        heads.append(link(heads[-1], sequence, canonical))
        lines.append(columns.row(CHAIN, sequence, heads[-1], canonical))
    return lines, heads


def follow(lines, at=0, sequence=7, digest=DIGEST, most=1000):
    return columns.follow(CHAIN, lines, at, sequence, digest, most=most)


PLAIN = [EVENT + b',"unit":"u-%d"}' % n for n in range(6)]


def test_lines_follow_as_far_as_they_are_asked_for():
    lines, heads = chained(PLAIN)
    assert follow(lines) == (6, heads[6])
    assert follow(lines, most=4) == (4, heads[4])
    assert follow(lines, at=2, sequence=9, digest=heads[2]) == (4, heads[6])
    assert follow(lines, most=0) == follow([]) == follow(lines, at=6) == (0, DIGEST)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 5), st.data())
def test_no_line_that_was_changed_follows(index, data):
    lines, heads = chained(PLAIN)
    line = bytearray(lines[index])
    at = data.draw(st.integers(0, len(line) - 1))
    deed = data.draw(st.sampled_from(["change", "cut", "add", "drop", "twice", "swap"]))
    if deed == "change":
        line[at] ^= data.draw(st.integers(1, 255))
    elif deed == "cut":
        del line[at:]
    elif deed == "add":
        line.insert(at, data.draw(st.integers(0, 255)))
    lines[index] = bytes(line)
    if deed == "drop":
        del lines[index]
    elif deed == "twice":
        lines.insert(index, lines[index])
        index += 1
    elif deed == "swap":
        index = min(index, 4)
        lines[index], lines[index + 1] = lines[index + 1], lines[index]
    count, digest = follow(lines)
    assert (count, digest) == (index, heads[index])


@settings(max_examples=100, deadline=None)
@given(st.lists(events(TEXT).map(encode), min_size=1, max_size=4))
def test_what_is_not_plain_is_left_to_the_plain_way(texts):
    lines, heads = chained(texts)
    count, digest = follow(lines)
    assert digest == heads[count]
    if count < len(texts):
        canonical = texts[count]
        assert columns._rows.row(CHAIN.encode(), 8 + count, heads[count + 1], canonical) is None


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"\t", b"\t\n", b"no tab", b"a\tb", b"\t" * 40], ids=repr,
)  # fmt: skip
def test_what_is_no_line_does_not_follow(line):
    assert follow([line]) == (0, DIGEST)


@pytest.mark.parametrize(
    ("lines", "changes", "error"),
    [([b""], {"digest": b"short"}, ValueError), ([b""], {"at": -1}, ValueError), ([None], {}, TypeError),
     (["text"], {}, TypeError)],
)  # fmt: skip
def test_no_lines_at_all(lines, changes, error):
    with pytest.raises(error):
        follow(lines, **changes)
