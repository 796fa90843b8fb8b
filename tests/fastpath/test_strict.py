"""The strict readers against plain Python models over generated input."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastpath.strict import decode_base64url, decode_object

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


# --- base64url


def model_base64url(text: str) -> bytes | None:
    """The one spelling is what the encoder writes."""
    if set(text) - set(ALPHABET) or len(text) % 4 == 1:
        return None
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    return raw if base64.urlsafe_b64encode(raw).rstrip(b"=").decode() == text else None


def decoded(text: str | bytes) -> bytes | None:
    try:
        return decode_base64url(text)
    except ValueError:
        return None


@given(st.binary(max_size=200))
def test_what_is_encoded_decodes(raw: bytes) -> None:
    text = base64.urlsafe_b64encode(raw).rstrip(b"=")
    assert decode_base64url(text) == decode_base64url(text.decode()) == raw


@settings(max_examples=1000)
@given(st.text(alphabet=ALPHABET + "+/=\n é", max_size=12) | st.text(alphabet=ALPHABET, max_size=9))
@example("A=")
@example("AB")
@example("AAB")
def test_base64url_is_the_model(text: str) -> None:
    assert decoded(text) == model_base64url(text)


@pytest.mark.parametrize("length", range(1, 5))
def test_every_byte_at_every_place(length: int) -> None:
    for place in range(length):
        for byte in range(256):
            text = bytearray(b"AAAA"[:length])
            text[place] = byte
            model = model_base64url(text.decode("latin-1"))
            assert decoded(bytes(text)) == model, bytes(text)


# --- JSON


class Refused(Exception):
    pass


def model_object(text: bytes) -> Any:
    """json.loads, and then by hand what the kernel refuses beyond it. Raises: Refused."""
    try:
        value = json.loads(
            text.decode("utf-8", "strict"), object_pairs_hook=unique, parse_int=small, parse_constant=refuse
        )
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate has no UTF-8
        too_deep = depth(value) > 64
    except (ValueError, RecursionError):
        raise Refused from None
    if not isinstance(value, dict) or too_deep or has_nul(value) or has_infinity(value):
        raise Refused
    return value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise Refused
    return dict(pairs)


def small(digits: str) -> int:
    if len(digits.removeprefix("-")) > (18 if digits.startswith("-") else 19):
        raise Refused
    return int(digits)


def refuse(name: str) -> None:
    raise Refused


def children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list) else []


def depth(value: Any) -> int:
    below = max(map(depth, children(value)), default=0)
    return below + isinstance(value, dict | list)


def has_nul(value: Any) -> bool:
    return "\0" in value if isinstance(value, str) else any(map(has_nul, children(value)))


def has_infinity(value: Any) -> bool:
    return (
        value in (float("inf"), float("-inf")) if isinstance(value, float) else any(map(has_infinity, children(value)))
    )


def outcome(read: Any, text: bytes) -> Any:
    try:
        return read(text)
    except (ValueError, Refused):
        return Refused


NAMES = st.sampled_from(["a", "b", "ab", "", "é", "\U0001f600", '"', "\\", "/", "\n", "aa", "A", "\x7f", "u0061"])
ESCAPES = {"\n": "\\n", '"': '\\"', "\\": "\\\\", "/": "\\/"}


@st.composite
def spelled(draw: st.DrawFn, text: str) -> str:
    """One of the spellings of a JSON string."""
    out = []
    for character in text:
        units = character.encode("utf-16-be").hex()
        escaped = "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))
        plain = ESCAPES.get(character, character)
        out.append(draw(st.sampled_from([plain, escaped, escaped.upper().replace("U", "u")])))
    return f'"{"".join(out)}"'


SPACE = st.sampled_from(["", "", " ", "\t\r\n"])
INTEGERS = ["123456789012345678", "9999999999999999999", "10000000000000000000"]
NEGATIVE = ["-999999999999999999", "-9999999999999999999", "12345678901234567890.5"]
PLAIN = ["0", "-0", "1.5", "1e3", "1E-400", "true", "null", '"a"', '"a\\u003a"', '"\\"a\\":"']
SCALARS = st.sampled_from([*PLAIN, *INTEGERS, *NEGATIVE])


@st.composite
def arrays(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    members = draw(st.lists(values, max_size=4))
    return "[" + ",".join(f"{draw(SPACE)}{member}{draw(SPACE)}" for member in members) + "]"


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    """An object, as text: a name may come twice, and be spelled in two ways."""
    members = draw(st.lists(st.tuples(NAMES, values), max_size=5))
    return (
        "{"
        + ",".join(
            f"{draw(SPACE)}{draw(spelled(name))}{draw(SPACE)}:{draw(SPACE)}{value}{draw(SPACE)}"
            for name, value in members
        )
        + "}"
    )


DOCUMENTS = objects(st.recursive(SCALARS, lambda values: objects(values) | arrays(values), max_leaves=12))


@settings(max_examples=250, deadline=None)
@given(DOCUMENTS)
def test_documents_are_read_as_by_the_model(text: str) -> None:
    raw = text.encode()
    assert outcome(decode_object, raw) == outcome(model_object, raw)


@settings(max_examples=250, deadline=None)
@given(DOCUMENTS, st.data())
def test_damaged_documents_are_read_as_by_the_model(text: str, data: st.DataObject) -> None:
    raw = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(raw) - 1))
        change = data.draw(st.sampled_from(["drop", "swap", "insert"]))
        byte = data.draw(st.sampled_from(b'{}[]:,"\\u0019aAeE-+. \t\n\r/\x00\x1f\x7f\x80\xc3\xa9\xed\xff'))
        raw[place : place + (change != "insert")] = b"" if change == "drop" else bytes([byte])
        if not raw:
            return
    assert outcome(decode_object, bytes(raw)) == outcome(model_object, bytes(raw))


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_as_by_the_model(raw: bytes) -> None:
    assert outcome(decode_object, raw) == outcome(model_object, raw)


MANY = 600
EDGES = {
    "one name, escaped beyond 16 bits": ('{"\\ud83d\\ude00":1,"\U0001f600":1}', False),
    "one name, escaped in three bytes": ('{"\\u20AC":1,"\u20ac":1}', False),
    "one name, escaped in two bytes": ('{"\\u00e9":1,"\u00e9":1}', False),
    "one name, escaped in letters": ('{"\\b\\f\\n\\r\\t\\/":1,"\\u0008\\u000C\\u000a\\u000d\\u0009/":1}', False),
    "two names, one with a backslash": ('{"\\\\n":1,"\\n":1}', True),
    "many members": ("{" + ",".join(f'"{n}":0' for n in range(MANY)) + "}", True),
    "many members and the last is the first": ("{" + ",".join(f'"{n}":0' for n in [*range(MANY), 0]) + "}", False),
    "many containers": ('{"a":[' + ",".join(['{"":0}'] * MANY) + "]}", True),
    "many names of one length": ("{" + ",".join(f'"{n:04}":0' for n in range(600)) + "}", True),
    "64 deep": ('{"a":' + "[" * 63 + "]" * 63 + "}", True),
    "65 deep": ('{"a":' + "[" * 64 + "]" * 64 + "}", False),
    "thousands deep": ('{"a":' + "[" * 3000 + "]" * 3000 + "}", False),
    "6144 bytes": ('{"a":"' + "x" * (6144 - 8) + '"}', True),
    "6145 bytes": ('{"a":"' + "x" * (6145 - 8) + '"}', False),
    "closed once too often": ("{}}", False),
    "string without end": ('{"a', False),
    "string ends in a backslash": ('{"a\\', False),
    "colon after an element": ('{"a":["a":1]}', False),
    "half an escape": ('{"\\u00":1}', False),
    "nul in a name": ('{"\\u0000":1}', False),
    "backslash and the text u0000": ('{"a":"\\\\u0000"}', True),
    "digits in a string": ('{"a":"' + "1" * 30 + '"}', True),
    "a name that looks like a member": ('{"a":"\\"a\\":1","b":"a"}', True),
}


@pytest.mark.parametrize(("text", "good"), EDGES.values(), ids=EDGES)
def test_edges(text: str, good: bool) -> None:
    raw = text.encode()
    assert (outcome(decode_object, raw) is not Refused) == good
    if len(raw) <= 6144:
        assert outcome(decode_object, raw) == outcome(model_object, raw)


def test_says_what_is_wrong_and_echoes_nothing() -> None:
    faults = {
        b'{"secret":1,"secret":1}': "has a duplicate member",
        b"[1]": "is not a JSON object",
        b"secret": "is not JSON in UTF-8",
        b'{"secret":"\\u0000"}': "has an escaped NUL",
        b'{"secret":12345678901234567890}': "has an integer beyond 64 bits",
    }
    for text, message in faults.items():
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            decode_object(text)
        assert str(caught.value) == message


def test_only_bytes() -> None:
    with pytest.raises(TypeError):
        decode_object("{}")  # type: ignore[arg-type]
