"""Relay frames against the vectors that third parties use, and there and back over generated frames."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.relay import frames as fr
from gateway.relay.decoding import decode, field_fault
from gateway.relay.frames import ProtocolViolation

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "relay-frames.json").read_text())


def plain(frame):
    """A frame as the vectors spell it."""
    if frame is None:
        return None
    meaning = {"type": type(frame).__name__}
    for field in dataclasses.fields(frame):
        value = getattr(frame, field.name)
        if field.name not in ("request", "response"):
            meaning[field.name] = value.hex() if isinstance(value, bytes) else value
    return meaning


def header_of(frame):
    """The JSON of a REQ or RES, as the protocol names its members."""
    if isinstance(frame, fr.RequestFrame):
        r = frame.request
        names = {
            "id": r.id,
            "m": r.method,
            "t": r.target,
            "dl": r.deadline_ms,
            "tp": r.traceparent,
            "idem": r.idempotency,
        }
    else:
        r = frame.response
        names = {"s": r.status, "up": r.upstream_ms}
    return {**names, "len": r.length, "h": [list(pair) for pair in r.fields]}


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=lambda v: v["name"])
def test_valid(vector):
    frame = decode(bytes.fromhex(vector["hex"]))
    assert plain(frame) == vector["meaning"]
    if "header" in vector:
        assert header_of(frame) == vector["header"]
    if frame is not None:
        assert decode(fr.encode(frame)) == frame


@pytest.mark.parametrize("vector", VECTORS["invalid"], ids=lambda v: v["name"])
def test_invalid(vector):
    with pytest.raises(ProtocolViolation) as caught:
        decode(bytes.fromhex(vector["hex"]))
    assert (caught.value.code, caught.value.stream) == (vector["code"], vector.get("stream", 0))


def test_every_type_and_code_has_a_vector():
    types = {bytes.fromhex(v["hex"])[1] for v in VECTORS["valid"]}
    assert set(fr.FrameType) <= types
    assert {v["code"] for v in VECTORS["invalid"]} == {
        "length", "version", "type", "flags", "stream", "header", "credit", "fields",
    }  # fmt: skip


def test_fields_of_a_request_survive_in_order():
    frame = decode(bytes.fromhex(next(v["hex"] for v in VECTORS["valid"] if v["name"] == "req-whole")))
    assert frame.request == fr.Request("r1", "GET", "/a?b=c", [("a", "1"), ("a", "2")], None, 30000)


def test_over_the_maximum():
    message = fr.encode(fr.Data(1, bytes(200)))
    assert decode(message, 212) is not None
    with pytest.raises(ProtocolViolation, match="maximum"):
        decode(message, 211)


@pytest.mark.parametrize(
    "request_", [fr.Request("i", "GET", "/", [("a", "x" * 33_000)]), fr.Request("i", "GET", "/", [("a", "b")] * 101)]
)
def test_what_is_too_large_is_not_sent(request_):
    with pytest.raises(fr.Oversize):
        fr.encode(fr.RequestFrame(1, request_))


text = st.text(max_size=20)
prose = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20)
streams = st.integers(0, (1 << 31) - 1).map(lambda n: n * 2 + 1)
names = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_categories=["Cc"]), max_size=20)
fields = st.lists(st.tuples(names, values), max_size=5)
requests = st.builds(
    fr.Request,
    id=text,
    method=st.sampled_from(["GET", "POST"]),
    target=st.sampled_from(["/", "/a?b"]),
    fields=fields,
    length=st.one_of(st.none(), st.integers(0, 2**40)),
    deadline_ms=st.integers(0, 300_000),
    traceparent=st.one_of(st.none(), text),
    idempotency=st.one_of(st.none(), text),
    hold=st.booleans(),
)
responses = st.builds(
    fr.Response, status=st.integers(200, 599), fields=fields, length=st.none(), upstream_ms=st.integers(0, 9)
)
frames = st.one_of(
    st.builds(fr.RequestFrame, streams, requests, st.binary(max_size=30), st.booleans()),
    st.builds(fr.ResponseFrame, streams, responses, st.binary(max_size=30), st.booleans()),
    st.builds(fr.Data, streams, st.binary(max_size=30), st.booleans()),
    st.builds(fr.Window, st.one_of(st.just(0), streams), st.integers(1, fr.MAX_CREDIT)),
    st.builds(fr.Reset, streams, st.integers(1, 11), prose, st.sampled_from([True, False, None])),
    st.builds(fr.Sync, st.lists(streams, max_size=9)),
    st.builds(fr.GoAway, st.integers(0, 6), st.integers(0, 9), st.integers(0, 9), prose),
)


@given(frames)
def test_there_and_back(frame):
    assert decode(fr.encode(frame)) == frame


@given(st.binary(max_size=80))
def test_noise_is_refused_or_a_frame(data):
    try:
        decode(b"\x01" + data)
    except ProtocolViolation:
        return


def test_what_a_peer_writes_for_people_is_harmless_on_a_terminal():
    hello = fr.Hello("\x1b[2Jagent/1\r\n", "i", 0)
    assert decode(fr.encode(hello)).agent == "?[2Jagent/1??"
    assert decode(fr.encode(fr.GoAway(0, 0, 0, "nächtlich\x07"))).why == "n?chtlich?"
    assert decode(fr.encode(fr.Reset(1, 3, "a\nb", None))).reason == "a?b"


def test_field_fault():
    assert field_fault([("a", "b\tc \xff")]) is None
    assert field_fault([("a", "b\x7f")]) is not None
