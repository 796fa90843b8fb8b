"""The compiled WebSocket codec and relay prefixes against plain models, `websockets`, and a table of refusals."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.frames import Close, Frame
from websockets.streams import StreamReader

from fastpath.frames import (
    OP_BINARY,
    OP_CLOSE,
    OP_PING,
    OP_PONG,
    OP_TEXT,
    Decoder,
    FrameError,
    RelayFrameError,
    apply_mask,
    decode_close,
    encode_close,
    encode_frame,
    encode_head,
    pack_aux,
    pack_frame,
    unpack_frame,
)

KEY = b"\x01\xfe\x80\x7f"


def feed_all(decoder, data):
    events = decoder.feed(data)
    return events, decoder.error


def whole(data, masked=True, limit=1000):
    return feed_all(Decoder(masked=masked, max_bytes=limit), data)


def byte_by_byte(data, masked=True, limit=1000):
    decoder = Decoder(masked=masked, max_bytes=limit)
    events = []
    for index in range(len(data)):
        if decoder.error is not None:
            break
        events += decoder.feed(data[index : index + 1])
    return events, decoder.error


def masked(opcode, payload, fin=True):
    return encode_frame(opcode, payload, KEY, fin)


GOOD = [
    ("empty-binary", masked(2, b""), [(2, b"")]),
    ("binary-125", masked(2, bytes(125)), [(2, bytes(125))]),
    ("binary-126", masked(2, bytes(126)), [(2, bytes(126))]),
    ("binary-at-limit", masked(2, b"z" * 1000), [(2, b"z" * 1000)]),
    ("text", masked(1, "žluť €".encode()), [(1, "žluť €")]),
    ("fragments", masked(2, b"ab", False) + masked(0, b"", False) + masked(0, b"cd"), [(2, b"abcd")]),
    ("text-split-inside-a-character", masked(1, b"\xe2\x82", False) + masked(0, b"\xac"), [(1, "€")]),
    ("ping-inside", masked(2, b"a", False) + masked(9, b"p") + masked(0, b"b"), [(9, b"p"), (2, b"ab")]),
    ("ping-125", masked(9, bytes(125)), [(9, bytes(125))]),
    ("pong", masked(10, b""), [(10, b"")]),
    ("close-empty", masked(8, b""), [(8, b"")]),
    ("close-and-what-follows", masked(8, b"\x03\xe8") + b"\xff\xff junk", [(8, b"\x03\xe8")]),
    ("two", masked(2, b"1") + masked(2, b"2"), [(2, b"1"), (2, b"2")]),
]

BAD = [
    ("rsv1", b"\xc2\x80" + KEY, 1002),
    ("rsv2", b"\xa2\x80" + KEY, 1002),
    ("rsv3", b"\x92\x80" + KEY, 1002),
    *[(f"opcode-{op}", bytes((0x80 | op, 0x80)) + KEY, 1002) for op in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)],
    ("unmasked", encode_frame(2, b"a"), 1002),
    ("ping-126", b"\x89\xfe\x00\x7e" + KEY, 1002),
    ("ping-fragmented", b"\x09\x80" + KEY, 1002),
    ("close-one-byte", masked(8, b"\x03"), 1002),
    *[
        (f"close-{code}", masked(8, struct.pack("!H", code)), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    ],
    ("close-reason", masked(8, b"\x03\xe8\xff"), 1007),
    ("text-invalid", masked(1, b"\xff"), 1007),
    ("text-surrogate", masked(1, b"\xed\xa0\x80"), 1007),
    ("text-overlong", masked(1, b"\xc0\xaf"), 1007),
    ("text-cut", masked(1, b"\xe2\x82"), 1007),
    ("text-cut-in-fragments", masked(1, b"\xe2", False) + masked(0, b"\x82"), 1007),
    ("text-bad-first-fragment", masked(1, b"\xff", False), 1007),
    ("continuation-of-nothing", masked(0, b"a"), 1002),
    ("continuation-after-the-end", masked(2, b"a", False) + masked(0, b"b") + masked(0, b"c"), 1002),
    ("message-inside", masked(2, b"a", False) + masked(2, b"b"), 1002),
    ("not-minimal-16", b"\x82\xfe\x00\x7d" + KEY + bytes(125), 1002),
    ("not-minimal-64", b"\x82\xff" + struct.pack("!Q", 65535) + KEY, 1002),
    ("length-64-bits", b"\x82\xff" + struct.pack("!Q", 1 << 63) + KEY, 1002),
    ("length-63-bits", b"\x82\xff" + struct.pack("!Q", (1 << 63) - 1) + KEY, 1009),
    ("over-the-limit-by-its-head-alone", b"\x82\xfe" + struct.pack("!H", 1001) + KEY, 1009),
    ("fragments-over-the-limit", masked(2, bytes(600), False) + b"\x80\xfe" + struct.pack("!H", 401) + KEY, 1009),
]


@pytest.mark.parametrize("feeding", [whole, byte_by_byte])
@pytest.mark.parametrize(("data", "events"), [g[1:] for g in GOOD], ids=[g[0] for g in GOOD])
def test_good_frames(feeding, data, events):
    assert feeding(data) == (events, None)


@pytest.mark.parametrize("feeding", [whole, byte_by_byte])
@pytest.mark.parametrize(("data", "code"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_frames_after_a_good_one(feeding, data, code):
    good = masked(9, b"before")
    events, error = feeding(good + data)
    assert events[0] == (9, b"before")
    assert error is not None
    assert error.code == code


def test_nothing_is_decoded_after_a_fault():
    decoder = Decoder(masked=True, max_bytes=100)
    decoder.feed(b"\x82\x01a")
    with pytest.raises(FrameError):
        decoder.feed(masked(2, b"a"))
    assert decoder.pending_bytes == 0


def test_an_announced_length_takes_no_memory():
    decoder = Decoder(masked=True, max_bytes=1 << 30)
    assert decoder.feed(b"\x82\xff" + struct.pack("!Q", 1 << 29) + KEY) == []
    assert decoder.pending_bytes == 14


def test_a_million_fragments_stay_within_the_limit():
    decoder = Decoder(masked=True, max_bytes=100_000)
    decoder.feed(masked(2, b"a", False))
    for _ in range(99):
        assert decoder.feed(masked(0, b"x", False) * 1000) == []
    assert decoder.pending_bytes == 99_001
    assert decoder.feed(masked(0, b"", True)) == [(2, b"a" + b"x" * 99_000)]
    assert decoder.pending_bytes == 0


@pytest.mark.parametrize(
    ("data", "between"),
    [
        (b"", True),
        (masked(2, b"a"), True),
        (masked(2, b"a") + masked(9, b""), True),
        (masked(2, b"a")[:1], False),
        (masked(2, b"a") + masked(2, b"b")[:-1], False),
        (masked(2, b"", False), False),
        (masked(1, b"", False), False),
        (masked(2, b"", False) + masked(9, b""), False),
        (masked(2, b"", False) + masked(0, b""), True),
        (masked(8, b""), False),
        (b"\x82\x01a", False),
    ],
)
def test_it_knows_when_it_holds_nothing_of_a_message(data, between):
    decoder = Decoder(masked=True, max_bytes=100)
    decoder.feed(data)
    assert decoder.between_messages is between


def test_the_clients_side_refuses_masked_frames():
    assert whole(masked(2, b"a"), masked=False)[1].code == 1002
    assert whole(encode_frame(2, b"a"), masked=False) == ([(2, b"a")], None)


# --- models and oracles


def model_mask(data, key):
    return bytes(byte ^ key[index % 4] for index, byte in enumerate(data))


@given(st.binary(max_size=200), st.binary(min_size=4, max_size=4))
def test_mask_is_the_model(data, key):
    assert apply_mask(data, key) == model_mask(data, key)
    assert apply_mask(memoryview(data)[1:], key) == model_mask(data[1:], key)


def by_websockets(data, masked_side, limit):
    """(frames, close code of the fault) as the `websockets` library reads the same bytes."""
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    frames = []
    code = None
    while True:
        parser = Frame.parse(reader.read_exact, mask=masked_side, max_size=limit)
        try:
            next(parser)
        except StopIteration as stop:
            frames.append((int(stop.value.opcode), bytes(stop.value.data), stop.value.fin))
            continue
        except EOFError:
            pass
        except Exception as error:
            code = {"PayloadTooBig": 1009}.get(type(error).__name__, 1002)
        return frames, code


def reassemble(frames):
    """(events, code) that whole frames make: the plain model of everything above a single frame."""
    events, kind, parts = [], 0, b""
    for opcode, data, fin in frames:
        if opcode >= 8:
            if opcode == 8:
                try:
                    Close.parse(data[:2]).check() if data else None
                    data[2:].decode()
                except UnicodeDecodeError:
                    return events, 1007
                except Exception:
                    return events, 1002
                events.append((8, data))
                return events, "closed"
            events.append((opcode, data))
            continue
        if (opcode == 0) != (kind != 0):
            return events, 1002
        kind, parts = (opcode or kind), parts + data
        if kind == 1:
            try:
                parts.decode() if fin else __import__("codecs").getincrementaldecoder("utf-8")().decode(parts)
            except UnicodeDecodeError:
                return events, 1007
        if fin:
            events.append((kind, parts.decode() if kind == 1 else parts))
            kind, parts = 0, b""
    return events, None


frame = st.tuples(
    st.sampled_from([0, 0, 1, 2, 8, 9, 10]),
    st.one_of(st.binary(max_size=20), st.text(max_size=8).map(str.encode), st.binary(min_size=124, max_size=128)),
    st.booleans(),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(frame, max_size=6), st.binary(min_size=4, max_size=4), st.lists(st.integers(1, 60), min_size=1))
def test_whole_streams_against_websockets(frames, key, cuts):
    data = b""
    for opcode, payload, fin in frames:
        if opcode >= 8:
            payload, fin = payload[:125], True
        data += encode_frame(opcode, payload, key, fin)
    read, code = by_websockets(data, True, 1000)
    assert code is None
    expected, fault = reassemble(read)
    decoder = Decoder(masked=True, max_bytes=1000)
    events, at, turn = [], 0, 0
    while at < len(data) and decoder.error is None:
        step = cuts[turn % len(cuts)]
        events += decoder.feed(data[at : at + step])
        at, turn = at + step, turn + 1
    assert events == expected
    assert (decoder.error.code if decoder.error else None) == (None if fault == "closed" else fault)


@settings(max_examples=600, deadline=None)
@given(st.binary(max_size=40))
@example(b"\x82\x7e\x00\x01a")
def test_first_frame_of_noise_against_websockets(data):
    """The library takes what we refuse only where a length is not minimal; we need not wait for a whole frame."""
    events, error = whole(data)
    if error is not None and "minimal" in str(error):
        return
    if error is not None:
        frames, code = by_websockets(data + bytes(2000), True, 1000)
        assert code is not None or reassemble(frames)[1] in (1002, 1007)
    else:
        frames, code = by_websockets(data, True, 1000)
        expected, fault = reassemble(frames)
        assert events == expected
        assert fault in (None, "closed")
        assert code is None or fault == "closed"


@given(st.sampled_from([1, 2, 9, 10]), st.binary(max_size=125), st.one_of(st.none(), st.binary(min_size=4, max_size=4)))
def test_encoded_frames_read_by_websockets(opcode, payload, key):
    frames, code = by_websockets(encode_frame(opcode, payload, key), key is not None, 1000)
    assert (frames, code) == ([(opcode, payload, True)], None)


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536, 200_000])
@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "masked"])
def test_encoded_lengths(size, key):
    payload = bytes(size)
    data = encode_frame(2, payload, key)
    assert data.startswith(encode_head(2, size, key))
    frames, code = by_websockets(data, key is not None, 1 << 20)
    assert frames == [(2, payload, True)]


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1011, 1012, 1013, 1014, 3000, 4999])
def test_close_codes_that_may_be_sent(code):
    events, error = whole(encode_close(code, "why", KEY))
    assert error is None
    assert decode_close(events[0][1]) == (code, "why")


def test_a_code_of_clients_alone():
    assert whole(encode_close(1010, "", KEY))[1] is None
    with pytest.raises(ValueError, match="close code"):
        encode_close(1010)


def test_close_reason_is_cut_at_a_character():
    events, _ = whole(encode_close(1000, "€" * 100, KEY))
    assert decode_close(events[0][1]) == (1000, "€" * 41)
    assert decode_close(b"") == (1005, "")


@pytest.mark.parametrize(
    "call",
    [
        lambda: encode_frame(3, b""),
        lambda: encode_frame(OP_PING, bytes(126)),
        lambda: encode_frame(OP_PONG, b"", None, False),
        lambda: encode_frame(OP_BINARY, b"", b"abc"),
        lambda: encode_close(1006),
        lambda: encode_head(OP_TEXT, -1),
        lambda: apply_mask(b"", b""),
        lambda: Decoder(masked=True, max_bytes=0),
        lambda: pack_frame(256, 0, 1),
    ],
    ids=[
        "opcode",
        "long-ping",
        "fragmented-pong",
        "short-mask",
        "close-1006",
        "negative",
        "no-mask",
        "no-limit",
        "type",
    ],
)
def test_what_may_not_be_made(call):
    with pytest.raises(ValueError, match=r".+"):
        call()


def test_close_opcode():
    assert encode_close(1000)[0] == 0x80 | OP_CLOSE


# --- relay prefixes


@given(
    st.integers(0, 255).filter(lambda kind: kind not in (0x14, 0x15)),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFFFFFF),
    st.binary(max_size=40),
    st.binary(max_size=40),
)
def test_relay_frames_against_struct(kind, flags, stream, header, body):
    message = pack_frame(kind, flags, stream, header, body)
    flags = flags & ~2 | (2 if header else 0)
    assert message == struct.pack("!BBHII", 1, kind, flags, stream, len(header)) + header + body
    assert unpack_frame(message, 1000) == (kind, flags, stream, len(header), header, body)


@given(st.sampled_from([0x14, 0x15]), st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF), st.binary(max_size=9))
def test_relay_frames_with_a_number(kind, stream, aux, rest):
    message = pack_aux(kind, 0xFFFF, stream, aux, rest)
    assert unpack_frame(message, 1000) == (kind, 0xFFFD, stream, aux, b"", rest)


RELAY_BAD = [
    ("empty", b"", "length"),
    ("short", bytes(11), "length"),
    ("version-0", bytes(12), "version"),
    ("version-2", b"\x02\x20" + bytes(10), "version"),
    ("flag-without-header", struct.pack("!BBHII", 1, 0x10, 2, 1, 0), "flags"),
    ("header-without-flag", struct.pack("!BBHII", 1, 0x10, 0, 1, 1) + b"{", "flags"),
    ("header-past-the-end", struct.pack("!BBHII", 1, 0x10, 2, 1, 3) + b"{}", "length"),
    ("header-of-4-gib", struct.pack("!BBHII", 1, 0x10, 2, 1, 0xFFFFFFFF) + b"{}", "length"),
    ("window-with-header", struct.pack("!BBHII", 1, 0x14, 2, 1, 1), "flags"),
    ("too-large", struct.pack("!BBHII", 1, 0x13, 0, 1, 0) + bytes(989), "oversize"),
]


@pytest.mark.parametrize(("message", "code"), [r[1:] for r in RELAY_BAD], ids=[r[0] for r in RELAY_BAD])
def test_relay_prefix_refused(message, code):
    with pytest.raises(RelayFrameError) as caught:
        unpack_frame(message, 1000)
    assert caught.value.code == code


@given(st.binary(max_size=60))
def test_relay_noise_never_reads_outside(data):
    try:
        kind, flags, stream, aux, header, body = unpack_frame(data, 1000)
    except RelayFrameError:
        return
    assert len(header) + len(body) + 12 == len(data)
