"""The short way for the headers of REQ and RES against the long one: the same bytes and frames, or None."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastpath.frames import END_BODY, encode_frame, encode_messages, pack_frame
from fastpath.heads import FieldNames, decode_answer, decode_request, encode_request_head
from gateway.relay import frames as fr
from gateway.relay.decoding import decode_any, decode_ordinary, field_fault
from gateway.relay.frames import ProtocolViolation
from gateway.relay.request import _REMOVED, build_fields
from gateway.routing.onward import LEFT_OUT_BEGINNINGS

NAMES = FieldNames(_REMOVED, LEFT_OUT_BEGINNINGS)
ID = "0b8f6f5e-0000-4000-8000-000000000001"
LIMIT = 131_072

names = st.from_regex(r"[!#$%&'*+.^_`|~0-9a-z-]{1,12}", fullmatch=True) | st.text(max_size=4)
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20) | st.text(max_size=6)
pairs = st.lists(st.tuples(names, values), max_size=6)
keys = st.from_regex(r"HTTP_[A-Z0-9_!]{1,14}", fullmatch=True) | st.sampled_from(
    ["HTTP_COOKIE", "HTTP_HOST", "HTTP_X_CAREGATE_CONTEXT", "REQUEST_METHOD", "HTTP_", "HTTP_X_\u00e4"]
)
environs = st.dictionaries(keys, values, max_size=8)


def long_way(environ, length, traceparent, idempotency, context):
    """What `gateway.relay.request` and `frames` make of it; None where a field cannot travel."""
    fields = [*build_fields(environ, False), ("x-request-id", ID)]
    if context is not None:
        fields.append(("x-caregate-context", context))
    if field_fault(fields) is not None:
        return None
    request = fr.Request(ID, "GET", "/a", fields, length, 1234, traceparent, idempotency)
    return fr.encode_request_header(request)


@settings(max_examples=400, deadline=None)
@given(environs, values, st.none() | st.integers(0, 2**53), st.none() | values, st.none() | values)
@example({"HTTP_ACCEPT": "*/*", "HTTP_X_A": "b"}, "text/plain", 11, "00-aa-bb-01", "key")
@example({"HTTP_ACCEPT": 'a"b'}, "", None, None, None)
@example({"HTTP_ACCEPT": "tab\t"}, "", None, None, None)
def test_a_request_head_is_what_orjson_writes(environ, content_type, length, traceparent, context):
    environ = {**environ, "CONTENT_TYPE": content_type, "wsgi.input": None}
    found = encode_request_head(NAMES, environ, ID, "GET", "/a", length, traceparent, None, context)
    if found is not None:
        before, after = found
        assert before + b"1234" + after + b"}" == long_way(environ, length, traceparent, None, context)


@pytest.mark.parametrize(
    ("environ", "travels"),
    [
        pytest.param({"HTTP_ACCEPT": "*/*"}, [["accept", "*/*"]], id="a field"),
        pytest.param({"HTTP_X_ONE_TWO": "1"}, [["x-one-two", "1"]], id="underscores are hyphens"),
        pytest.param({"HTTP_COOKIE": "a=b", "HTTP_AUTHORIZATION": "Bearer x"}, [], id="removed"),
        pytest.param({"HTTP_X_CAREGATE_CONTEXT": "forged"}, [], id="ours"),
        pytest.param({"HTTP_ACCEPT": ""}, [["accept", ""]], id="empty"),
        pytest.param({"HTTP_IF_MATCH": '"a\\"'}, [["if-match", '"a\\"']], id="quotes and a backslash"),
        pytest.param({"CONTENT_TYPE": "a/b"}, [["content-type", "a/b"]], id="content type"),
        pytest.param({"REQUEST_METHOD": "GET", "HTTP": "x", "wsgi.input": None}, [], id="not fields"),
    ],
)
def test_what_travels(environ, travels):
    before, after = encode_request_head(NAMES, environ, ID, "GET", "/a", None, None, None, None)
    assert orjson.loads(before + b"5" + after + b"}") == {
        "id": ID, "m": "GET", "t": "/a", "h": [*travels, ["x-request-id", ID]], "len": None, "dl": 5, "tp": None,
        "idem": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param({"HTTP_X": "\x00"}, id="NUL"),
        pytest.param({"HTTP_X": "\x7f"}, id="DEL"),
        pytest.param({"HTTP_X": "caf\u00e9"}, id="past ASCII"),
        pytest.param({"HTTP_": "1"}, id="no name"),
        pytest.param({"HTTP_\u00c4": "1"}, id="a name past ASCII"),
        pytest.param({"HTTP_X Y": "1"}, id="a name with a space"),
        pytest.param({"HTTP_" + "X" * 257: "1"}, id="a long name"),
        pytest.param({"HTTP_X": "y" * 8192}, id="over the room"),
        pytest.param({f"HTTP_X{n}": "y" for n in range(100)}, id="over 100 fields"),
        pytest.param({"HTTP_X": 1}, id="not a string"),
    ],
)
def test_what_is_left_to_the_long_way(environ):
    assert encode_request_head(NAMES, environ, ID, "GET", "/a", None, None, None, None) is None


def test_99_fields_and_the_id_are_100():
    environ = {f"HTTP_X{n}": "y" for n in range(99)}
    assert encode_request_head(NAMES, environ, ID, "GET", "/a", None, None, None, None) is not None


ORDINARY = [
    pytest.param(fr.Ack(7), id="ack"),
    pytest.param(fr.ResponseFrame(1, fr.Response(200, [], None, 0)), id="bare"),
    pytest.param(
        fr.ResponseFrame(1, fr.Response(599, [("a", ""), ("b", "x y")], 2**53, 2**31), b"body", True), id="full"
    ),
    pytest.param(fr.ResponseFrame(1, fr.Response(200, [("etag", '"a\\b"'), ("x", '"')], 1)), id="quotes"),
    pytest.param(fr.ResponseFrame(2**32 - 1, fr.Response(200, [("a", "b")] * 100, 0, 1)), id="100 fields"),
    pytest.param(fr.RequestFrame(1, fr.Request(ID, "GET", "/", [])), id="request"),
    pytest.param(
        fr.RequestFrame(
            3, fr.Request("i", "POST", "/a?b=%20", [("x", "y")], 5, 300_000, "tp", "key", True, "unit"), b"12345", True
        ),
        id="request with everything",
    ),
]


@pytest.mark.parametrize("frame", ORDINARY)
def test_ordinary_frames_are_read(frame):
    message = fr.encode(frame)
    assert decode_ordinary(message, LIMIT) == frame == decode_any(message, LIMIT)
    assert decode_ordinary(message, len(message)) == frame
    assert decode_ordinary(message, len(message) - 1) is None


@pytest.mark.parametrize("frame", ORDINARY)
def test_a_frame_cut_or_altered_anywhere_is_none_or_what_the_long_way_says(frame):
    message = fr.encode(frame)[:400]
    for at in range(len(message)):
        for altered in (message[:at], *(message[:at] + bytes([c]) + message[at + 1 :] for c in b'\x00\x01"\\ 0,]\xff')):
            found = decode_ordinary(altered, LIMIT)
            assert found is None or found == decode_any(altered, LIMIT)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b'{"s":200,"s":200,"h":[],"len":null,"up":0}', id="twice"),
        pytest.param(b'{"h":[],"s":200,"len":null,"up":0}', id="another order"),
        pytest.param(b'{"s":0200,"h":[],"len":null,"up":0}', id="leading zero"),
        pytest.param(b'{"s":199,"h":[],"len":null,"up":0}', id="interim"),
        pytest.param(b'{"s":600,"h":[],"len":null,"up":0}', id="over 599"),
        pytest.param(b'{"s":200,"h":[["A","b"]],"len":null,"up":0}', id="upper case"),
        pytest.param(b'{"s":200,"h":[["","b"]],"len":null,"up":0}', id="no name"),
        pytest.param(b'{"s":200,"h":[["a","b"],],"len":null,"up":0}', id="comma"),
        pytest.param(b'{"s":200,"h":[["a","b"]' + b',["a","b"]' * 100 + b'],"len":null,"up":0}', id="101 fields"),
        pytest.param(b'{"s":200,"h":[["a","\\u0062"]],"len":null,"up":0}', id="an escape"),
        pytest.param(b'{"s":200,"h":[["a","\\', id="an escape that is cut"),
        pytest.param(b'{"s":200,"h":[],"len":-1,"up":0}', id="negative"),
        pytest.param(b'{"s":200,"h":[],"len":9007199254740993,"up":0}', id="over 2^53"),
        pytest.param(b'{"s":200,"h":[],"len":null,"up":2147483649}', id="over 2^31"),
        pytest.param(b'{"s":200,"h":[],"len":null,"up":0} ', id="a space after"),
        pytest.param(b'{"s":200,"h":[],"len":null,"up":0,"x":1}', id="one more"),
    ],
)
def test_answers_left_to_the_long_way(header):
    assert decode_answer(pack_frame(fr.FrameType.RES, END_BODY, 1, header), LIMIT) is None


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 999), pairs, st.none() | st.integers(-5, 2**54), st.integers(-1, 2**32), st.binary(max_size=9))
def test_answers_are_read_as_the_long_way_reads_them(status, fields, length, upstream_ms, body):
    try:
        message = fr.encode(fr.ResponseFrame(1, fr.Response(status, fields, length, upstream_ms), body, True))
    except (TypeError, UnicodeEncodeError):
        return
    found = decode_ordinary(message, LIMIT)
    if found is not None:
        assert found == decode_any(message, LIMIT)
    elif all(n.isascii() and not set(n) & set('"\\') and v.isascii() and v.isprintable() for n, v in fields):
        with pytest.raises(ProtocolViolation):
            decode_any(message, LIMIT)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["GET", "get", "PURGE", ""]), values, pairs, st.none() | values, st.none() | values)
def test_requests_are_read_as_the_long_way_reads_them(method, target, fields, traceparent, idempotency):
    try:
        request = fr.Request(ID, method, "/" + target, fields, None, 30_000, traceparent, idempotency)
        message = fr.encode(fr.RequestFrame(1, request, b"", True))
    except (TypeError, UnicodeEncodeError):
        return
    found = decode_ordinary(message, LIMIT)
    assert found is None or found == decode_any(message, LIMIT)


@pytest.mark.parametrize("flags", [0x10, 0x100, fr.HOLD])
def test_strange_flags_are_left_to_the_long_way(flags):
    message = pack_frame(fr.FrameType.RES, flags, 1, b'{"s":200,"h":[],"len":null,"up":0}')
    assert decode_answer(message, LIMIT) is None
    assert decode_answer(pack_frame(fr.FrameType.ACK, flags, 1), LIMIT) is None
    assert decode_request(message, LIMIT) is None


@given(st.lists(st.binary(max_size=200) | st.sampled_from([b"", bytes(125), bytes(126), bytes(70_000)]), max_size=5))
def test_messages_are_joined_as_single_frames(messages):
    masks = bytes(range(1, 4 * len(messages) + 1))
    assert encode_messages(messages) == b"".join(encode_frame(2, message) for message in messages)
    single = (encode_frame(2, message, masks[4 * n : 4 * n + 4]) for n, message in enumerate(messages))
    assert encode_messages(messages, masks) == b"".join(single)


@pytest.mark.parametrize("masks", [b"", b"abc", b"abcdefgh"])
def test_a_mask_for_each_message(masks):
    with pytest.raises(ValueError, match="mask"):
        encode_messages([b"one"], masks)
