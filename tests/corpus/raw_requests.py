"""Raw requests, each with its one right outcome: what the gateway answers and whether the connection lives on.

Loaded by tests/worker/conftest.py (`case` fixture) and by the harness that puts other proxies in front. The limits are
those of tests/worker/echo.py's environment: 8192 bytes of target, 32768 of head, 100 fields.
"""

# ruff: noqa: E501
from __future__ import annotations

from dataclasses import dataclass
from itertools import count

OPEN = "open"
CLOSED = "closed"
WAITS = "waits"
"""The request is incomplete: no answer yet."""


@dataclass(frozen=True)
class Case:
    """`statuses` in order; `after` says what then becomes of the connection; `body` is what the echo saw last."""

    id: str
    raw: bytes
    statuses: tuple[int, ...]
    after: str
    body: bytes | None = None


HOST = b"Host: gw.example\r\n"
CASES: list[Case] = []
_numbers = count(1)


def add(name: str, raw: bytes, *statuses: int, after: str | None = None, body: bytes | None = None) -> None:
    last = statuses[-1] if statuses else 0
    state = after or (OPEN if last < 400 and statuses else CLOSED)
    CASES.append(Case(f"{next(_numbers):03d}-{name}", raw, statuses, state, body))


def get(target: bytes = b"/", fields: bytes = b"", version: bytes = b"HTTP/1.1", host: bytes = HOST) -> bytes:
    return b"GET " + target + b" " + version + b"\r\n" + host + fields + b"\r\n"


def post(fields: bytes, body: bytes = b"", host: bytes = HOST, version: bytes = b"HTTP/1.1") -> bytes:
    return b"POST /echo " + version + b"\r\n" + host + fields + b"\r\n" + body


def chunked(body: bytes, fields: bytes = b"") -> bytes:
    return post(b"Transfer-Encoding: chunked\r\n" + fields, body)


def label(raw: bytes) -> str:
    return "".join(chr(c) if 33 <= c < 127 and c not in b"[]:/\\" else f"x{c:02x}" for c in raw[:24]) or "empty"


def methods() -> None:
    for method in (b"GET", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"PROPFIND", b"M-SEARCH", b"X_Y", b"QUERY2"):
        add(f"method-{label(method)}", method + b" / HTTP/1.1\r\n" + HOST + b"\r\n", 200)
    add("method-head", b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n", 200, body=b"")
    for method in (b"CONNECT", b"TRACE"):
        add(f"method-{label(method)}", method + b" / HTTP/1.1\r\n" + HOST + b"\r\n", 501)
    for method in (b"get", b"Get", b"G\x00T", b"GE(T", b"", b"G\x80T", b"A" * 40, b"GET:", b"@GET"):
        add(f"method-refused-{label(method)}", method + b" / HTTP/1.1\r\n" + HOST + b"\r\n", 400)


def request_lines() -> None:
    rest = HOST + b"\r\n"
    for name, line in {
        "two-spaces": b"GET  / HTTP/1.1",
        "two-spaces-before-version": b"GET /  HTTP/1.1",
        "leading-space": b" GET / HTTP/1.1",
        "trailing-space": b"GET / HTTP/1.1 ",
        "tab-first": b"GET\t/ HTTP/1.1",
        "tab-second": b"GET /\tHTTP/1.1",
        "no-version": b"GET /",
        "no-target": b"GET HTTP/1.1",
        "empty-target": b"GET  HTTP/1.1",
        "space-in-target": b"GET /a b HTTP/1.1",
        "lower-case-http": b"GET / http/1.1",
        "no-dot": b"GET / HTTP/11",
        "long-version": b"GET / HTTP/1.10",
        "zero-padded-version": b"GET / HTTP/01.1",
        "other-protocol": b"GET / ICY/1.1",
        "version-letter": b"GET / HTTP/1.x",
        "minus-version": b"GET / HTTP/-1.1",
        "vertical-tab": b"GET\x0b/ HTTP/1.1",
        "form-feed": b"GET /\x0cHTTP/1.1",
        "only-method": b"GET",
        "text": b"hello",
        "ssh": b"SSH-2.0-OpenSSH_9.2",
    }.items():
        add(f"line-{name}", line + b"\r\n" + rest, 400)
    for version in (b"HTTP/2.0", b"HTTP/0.9", b"HTTP/3.0", b"HTTP/1.2", b"HTTP/1.9"):
        add(f"version-{label(version)}", get(version=version), 505)
    add("http2-preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505)
    add("tls-hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400)
    add("line-empty-line-before", b"\r\n" + get(), 200)
    add("line-two-empty-lines-before", b"\r\n\r\n" + get(), 400)
    add("line-bare-lf-before", b"\n" + get(), 400)
    add("line-bare-lf", b"GET / HTTP/1.1\n" + rest, 400)
    add("line-bare-lf-everywhere", b"GET / HTTP/1.1\nHost: gw.example\n\n", 400)
    add("line-bare-cr", b"GET / HTTP/1.1\r" + rest, 400)
    add("line-cr-cr-lf", b"GET / HTTP/1.1\r\r\n" + rest, 400)
    add("line-lf-cr", b"GET / HTTP/1.1\n\r" + rest, 400)
    add("incomplete-line", b"GET / HT", after=WAITS)
    add("incomplete-head", b"GET / HTTP/1.1\r\nHost: gw.example\r\n", after=WAITS)
    add("incomplete-last-line", b"GET / HTTP/1.1\r\nHost: gw.example\r\n\r", after=WAITS)


def targets() -> None:
    for target in (
        b"/", b"/a", b"/a/b/c", b"/a/", b"/a%20b", b"/%e4%bd%a0", b"/a?b=c", b"/a?", b"/?q=a/b?c", b"/a;v=1", b"/a:b@c",
        b"/%7Euser", b"/~user", b"/a,b", b"/$x", b"/a=b", b"/a&b", b"/(a)", b"/a'b", b"/*", b"/a%25b", b"/a?x=%2F%2e%2e",
        b"/a.b", b"/...", b"/.well-known/x", b"/a..b", b"/a?q=../..",
    ):  # fmt: skip
        add(f"target-{label(target)}", get(target), 200)
    for target in (
        b"/.", b"/..", b"/a/.", b"/a/..", b"/a/../b", b"/a/./b", b"/%2e", b"/%2E%2e/a", b"/.%2e/a", b"//", b"//a", b"/a//b",
        b"/a%2fb", b"/a%2Fb", b"/a%5cb", b"/a\\b", b"/a%00b", b"/a%0d%0ab", b"/a%0ab", b"/a%09b", b"/a%1fb", b"/a%7fb",
        b"/a%", b"/a%2", b"/a%zz", b"/a%2g", b"/%c0%af", b"/%ff", b"/%ed%a0%80", b"/a#b", b"/a%c3", b"/<a>", b'/a"b',
        b"/a|b", b"/a^b", b"/a`b", b"/{a}", b"/..;/a", b"/a?b=%", b"/a?b=%zz", b"*", b"a", b"gw.example:80", b"?a=b",
        b"/a?b=%00", b"/a?b#c",
    ):  # fmt: skip
        add(f"target-refused-{label(target)}", get(target), 400)
    for code in (*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F):
        add(f"target-control-{code:02x}", get(b"/a" + bytes([code]) + b"b"), 400)
    for code in (0x80, 0xC3, 0xFF):
        add(f"target-raw-{code:02x}", get(b"/a" + bytes([code])), 400)
    for target in (b"http://gw.example/", b"http://gw.example", b"HTTP://GW.EXAMPLE/a", b"https://gw.example/a?b", b"http://gw.example?x"):  # fmt: skip
        add(f"absolute-{label(target)}", get(target), 200)
    for target in (
        b"http://other.example/", b"http://gw.example:80/", b"http://user@gw.example/", b"http:///a", b"ftp://gw.example/",
        b"http:/gw.example/", b"http:gw.example", b"http://gw.example/../a", b"http://", b"javascript:alert",
    ):  # fmt: skip
        add(f"absolute-refused-{label(target)}", get(target), 400)
    add("absolute-without-host", get(b"http://gw.example/", host=b""), 400)
    add("target-at-limit", get(b"/" + b"a" * 8191), 200)
    add("target-over-limit", get(b"/" + b"a" * 8192), 414)
    add("target-far-over-limit", get(b"/" + b"a" * 20000), 414)
    add("target-never-ends", b"GET /" + b"a" * 9000, 414)


def hosts() -> None:
    for host in (b"gw", b"gw.example", b"gw.example:8080", b"127.0.0.1", b"[::1]", b"[::1]:80", b"a-b.c_d".replace(b"_", b"-"), b"GW.example", b"gw.example:0", b"xn--a"):  # fmt: skip
        add(f"host-{label(host)}", get(host=b"Host: " + host + b"\r\n"), 200)
    for host in (
        b"", b" ", b"a b", b"a,b", b"a/b", b"a@b", b"a:b", b"a:", b"a:99999", b"a:123456", b"a:-1", b"a:80:80", b"[::1", b"::1",
        b"[]", b"[g::1]", b"[::1]x", b"a?b", b"a#b", b"a\\b", b"a\x80", b"http://a", b"a;b", b"a\tb", b"a%20b", b":80",
        b"a" * 256, b"[::1]:", b"a'b", b"a|b", b'a"b', b"<a>",
    ):  # fmt: skip
        add(f"host-refused-{label(host)}", get(host=b"Host: " + host + b"\r\n"), 400)
    add("host-missing", get(host=b""), 400)
    add("host-twice", get(host=HOST * 2), 400)
    add("host-twice-differs", get(host=HOST + b"Host: other\r\n"), 400)
    add("host-twice-case", get(host=HOST + b"hOST: gw.example\r\n"), 400)
    add("host-http10-missing", get(version=b"HTTP/1.0", host=b""), 200, after=CLOSED)
    add("host-http10-twice", get(version=b"HTTP/1.0", host=HOST * 2), 400)


def fields() -> None:
    for name, line in {
        "plain": b"X-A: b\r\n",
        "no-space": b"X-A:b\r\n",
        "tabs": b"X-A:\tb\t\r\n",
        "empty-value": b"X-A:\r\n",
        "blank-value": b"X-A:   \r\n",
        "inner-blanks": b"X-A: b  \t c\r\n",
        "obs-text": b"X-A: \xe4\xff\r\n",
        "odd-token": b"!#$%&'*+-.^`|~1a: b\r\n",
        "colons": b"X-A: b:c::d\r\n",
        "twice": b"X-A: b\r\nX-A: c\r\n",
        "authorization-twice": b"Authorization: a\r\nAuthorization: b\r\n",
        "cookie-twice": b"Cookie: a=1\r\nCookie: b=2\r\n",
        "long-value": b"X-A: " + b"b" * 20000 + b"\r\n",
        "long-name": b"X-" + b"a" * 300 + b": b\r\n",
        "digit-name": b"1: b\r\n",
    }.items():
        add(f"field-{name}", get(fields=line), 200)
    for name, line in {
        "space-before-colon": b"X-A : b\r\n",
        "tab-before-colon": b"X-A\t: b\r\n",
        "host-space-before-colon": b"Host : gw.example\r\n",
        "no-colon": b"X-A\r\n",
        "no-name": b": b\r\n",
        "leading-space": b" X-A: b\r\n",
        "fold-space": b"X-A: b\r\n c\r\n",
        "fold-tab": b"X-A: b\r\n\tc\r\n",
        "fold-blank-line": b"X-A: b\r\n \r\n",
        "space-in-name": b"X A: b\r\n",
        "underscore": b"X_A: b\r\n",
        "underscore-identity": b"X_Auth_User: root\r\n",
        "underscore-length": b"Content_Length: 5\r\n",
        "bare-lf": b"X-A: b\nX-B: c\r\n",
        "bare-cr": b"X-A: b\rX-B: c\r\n",
        "cr-cr-lf": b"X-A: b\r\r\n",
        "lf-cr": b"X-A: b\n\r\r\n",
        "name-obs-text": b"X-\xe4: b\r\n",
        "name-brace": b"X-{a}: b\r\n",
        "name-quote": b'"X-A": b\r\n',
        "name-comma": b"X,A: b\r\n",
        "name-at": b"X@A: b\r\n",
        "name-slash": b"X/A: b\r\n",
        "name-bracket": b"X[A]: b\r\n",
        "content-type-twice": b"Content-Type: a/b\r\nContent-Type: a/b\r\n",
    }.items():
        add(f"field-refused-{name}", get(fields=line), 400)
    add("field-first-is-folded", get(host=b" Host: gw.example\r\n"), 400)
    for code in (*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F):
        add(f"value-control-{code:02x}", get(fields=b"X-A: b" + bytes([code]) + b"c\r\n"), 400)
        add(f"name-control-{code:02x}", get(fields=b"X-" + bytes([code]) + b"A: c\r\n"), 400)
    add("fields-at-limit", get(fields=b"".join(b"X-%d: a\r\n" % i for i in range(99))), 200)
    add("fields-over-limit", get(fields=b"".join(b"X-%d: a\r\n" % i for i in range(100))), 431)
    add("fields-far-over-limit", get(fields=b"".join(b"X-%d: a\r\n" % i for i in range(400))), 431)
    add("head-over-limit", get(fields=b"X-A: " + b"b" * 33000 + b"\r\n"), 431)
    add("head-never-ends", get()[:-2] + b"X-A: " + b"b" * 33000, 431)


def lengths() -> None:
    add("length-zero", post(b"Content-Length: 0\r\n"), 200, body=b"")
    add("length-five", post(b"Content-Length: 5\r\n", b"hello"), 200, body=b"hello")
    add("length-zero-padded", post(b"Content-Length: 0005\r\n", b"hello"), 200, body=b"hello")
    add("length-crlf-body", post(b"Content-Length: 4\r\n", b"\r\n\r\n"), 200, body=b"\r\n\r\n")
    add("length-binary", post(b"Content-Length: 3\r\n", b"\x00\xff\n"), 200, body=b"\x00\xff\n")
    add("length-on-get", get(b"/echo", b"Content-Length: 2\r\n") + b"ab", 200, body=b"ab")
    add("length-none", post(b""), 200, body=b"")
    add("length-large", post(b"Content-Length: 100000\r\n", b"a" * 100000), 200, body=b"a" * 100000)
    for value in (
        b"", b" ", b"-1", b"+5", b"5.0", b"0x5", b"5,5", b"5, 5", b"5 5", b"five", b"5;", b"1e1", b"\xb2", b"9" * 19, b"5\t5", b"'5'",
        b'"5"', b"0b1", b"_5", b"5_0", b"NaN", b"5L", b"18446744073709551616",
    ):  # fmt: skip
        add(f"length-refused-{label(value)}", post(b"Content-Length: " + value + b"\r\n", b"hello"), 400)
    add("length-twice-same", post(b"Content-Length: 5\r\n" * 2, b"hello"), 400)
    add("length-twice-differs", post(b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello!"), 400)
    add("length-twice-case", post(b"Content-Length: 5\r\ncontent-length: 5\r\n", b"hello"), 400)
    add("length-truncated", post(b"Content-Length: 10\r\n", b"hello"), after=WAITS)


def codings() -> None:
    whole = b"5\r\nhello\r\n0\r\n\r\n"
    add("coding-chunked", chunked(whole), 200, body=b"hello")
    add("coding-case", post(b"Transfer-Encoding: ChunKed\r\n", whole), 200, body=b"hello")
    add("coding-name-case", post(b"tRANSFER-ENCODING: chunked\r\n", whole), 200, body=b"hello")
    add("coding-tab", post(b"Transfer-Encoding:\tchunked \r\n", whole), 200, body=b"hello")
    add("coding-and-length", chunked(whole, b"Content-Length: 5\r\n"), 400)
    add("coding-and-length-before", post(b"Content-Length: 15\r\nTransfer-Encoding: chunked\r\n", whole), 400)
    add("coding-unknown-and-length", post(b"Content-Length: 15\r\nTransfer-Encoding: x\r\n", whole), 400)
    add("coding-http10", post(b"Transfer-Encoding: chunked\r\n", whole, version=b"HTTP/1.0"), 400)
    add("coding-twice", post(b"Transfer-Encoding: chunked\r\n" * 2, whole), 400)
    add("coding-twice-other", post(b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", whole), 400)
    for value in (
        b"", b",", b"chunked,", b",chunked", b"chunked, chunked", b"chunked, gzip", b"chunked, identity", b"chunked;q=1",
        b'"chunked"', b"chunk ed", b"chunked x", b"chunked\x0b", b"\x0cchunked", b"chunked\x00", b"=chunked", b"chunked,,gzip",
        b"chunked; a", b"(chunked)", b"\xa0chunked", b"chunked\x85", b"'chunked", b"[chunked]", b"chunked\xff", b"chunked/1",
        b"chunked:", b"gzip; q=1, chunked",
    ):  # fmt: skip
        expected = 501 if value in (b"'chunked",) else 400
        add(f"coding-refused-{label(value)}", post(b"Transfer-Encoding: " + value + b"\r\n", whole), expected)
    for value in (b"gzip", b"gzip, chunked", b"identity", b"identity, chunked", b"x", b"xchunked", b"chunkedx", b"chunked1", b"deflate, gzip, chunked", b"chunke", b"c", b"cow"):  # fmt: skip
        add(f"coding-unknown-{label(value)}", post(b"Transfer-Encoding: " + value + b"\r\n", whole), 501)
    for name in (b"Transfer-Encoding ", b"Transfer_Encoding", b" Transfer-Encoding", b"Transfer-Encoding\x00", b"Transfer\x0bEncoding", b"Transfer-Encoding\t"):  # fmt: skip
        add(f"coding-name-refused-{label(name)}", post(name + b": chunked\r\n", whole), 400)
    add("coding-folded", post(b"Transfer-Encoding:\r\n chunked\r\n", whole), 400)


def chunks() -> None:
    end = b"0\r\n\r\n"
    for name, body, seen in (
        ("empty", end, b""),
        ("two", b"2\r\nhe\r\n3\r\nllo\r\n" + end, b"hello"),
        ("hex", b"A\r\n0123456789\r\n" + end, b"0123456789"),
        ("hex-lower", b"a\r\n0123456789\r\n" + end, b"0123456789"),
        ("padded", b"00005\r\nhello\r\n" + end, b"hello"),
        ("many-zeros-end", b"5\r\nhello\r\n000\r\n\r\n", b"hello"),
        ("extension", b"5;a\r\nhello\r\n" + end, b"hello"),
        ("extension-value", b"5;a=b\r\nhello\r\n" + end, b"hello"),
        ("extension-quoted", b'5;a="b;\\"c"\r\nhello\r\n' + end, b"hello"),
        ("extension-blanks", b"5 ; a = b ;c\r\nhello\r\n" + end, b"hello"),
        ("extension-last", b"5\r\nhello\r\n0;x=y\r\n\r\n", b"hello"),
        ("trailer", b"5\r\nhello\r\n0\r\nX-T: v\r\n\r\n", b"hello"),
        ("trailer-dropped-length", b"5\r\nhello\r\n0\r\nContent-Length: 3\r\n\r\n", b"hello"),
        ("trailers", b"5\r\nhello\r\n0\r\nA:\r\nB: c d\r\n\r\n", b"hello"),
        ("looks-like-chunk", b"5\r\n0\r\n\r\n\r\n" + end, b"0\r\n\r\n"),
        ("large", b"186a0\r\n" + b"a" * 100000 + b"\r\n" + end, b"a" * 100000),
        ("many", b"1\r\na\r\n" * 200 + end, b"a" * 200),
    ):
        add(f"chunk-{name}", chunked(body), 200, body=seen)
    for name, body in {
        "no-size": b"\r\nhello\r\n" + end,
        "negative": b"-5\r\nhello\r\n" + end,
        "plus": b"+5\r\nhello\r\n" + end,
        "prefix": b"0x5\r\nhello\r\n" + end,
        "not-hex": b"g\r\nhello\r\n" + end,
        "blank-before": b" 5\r\nhello\r\n" + end,
        "blank-after": b"5 \r\nhello\r\n" + end,
        "tab-after": b"5\t\r\nhello\r\n" + end,
        "underscore": b"1_0\r\n" + b"a" * 16 + b"\r\n" + end,
        "too-many-digits": b"0" * 16 + b"5\r\nhello\r\n" + end,
        "overflow": b"10000000000000005\r\nhello\r\n" + end,
        "huge": b"fffffffffffffffff\r\nhello\r\n" + end,
        "bare-lf-size": b"5\nhello\r\n" + end,
        "bare-lf-data": b"5\r\nhello\n" + end,
        "bare-cr-size": b"5\rhello\r\n" + end,
        "data-too-long": b"5\r\nhello!\r\n" + end,
        "data-too-short": b"6\r\nhello\r\n" + end,
        "no-crlf-after-data": b"5\r\nhello0\r\n\r\n",
        "extension-empty": b"5;\r\nhello\r\n" + end,
        "extension-no-value": b"5;a=\r\nhello\r\n" + end,
        "extension-bare-lf": b"5;a\nb\r\nhello\r\n" + end,
        "extension-bare-cr": b"5;a\rb\r\nhello\r\n" + end,
        "extension-nul": b"5;a\x00\r\nhello\r\n" + end,
        "extension-unclosed": b'5;a="b\r\nhello\r\n' + end,
        "extension-too-long": b"5;" + b"a" * 2000 + b"\r\nhello\r\n" + end,
        "extension-blank-after-token": b"5;a=b \r\nhello\r\n" + end,
        "extension-blank-after-quoted": b'5;a="b" \r\nhello\r\n' + end,
        "extension-two-names": b"5;a b\r\nhello\r\n" + end,
        "extension-without-semicolon": b"5 a\r\nhello\r\n" + end,
        "extensions-add-up": b"1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\na\r\n" * 50 + end,
        "size-comma": b"5,5\r\nhello\r\n" + end,
        "trailer-folded": b"0\r\nA: b\r\n c\r\n\r\n",
        "trailer-no-colon": b"0\r\nA\r\n\r\n",
        "trailer-blank-before-colon": b"0\r\nA : b\r\n\r\n",
        "trailer-control": b"0\r\nA: \x01\r\n\r\n",
        "trailer-bare-lf": b"0\r\nA: b\n\r\n",
        "trailer-too-long": b"0\r\nA: " + b"b" * 9000 + b"\r\n\r\n",
        "end-bare-lf": b"0\r\n\n",
        "end-bare-lf-first": b"0\n\r\n",
        "nul": b"\x005\r\nhello\r\n" + end,
        "quoted-size": b'"5"\r\nhello\r\n' + end,
        "high-bit": b"\xb5\r\nhello\r\n" + end,
    }.items():
        add(f"chunk-refused-{name}", chunked(body), 400)
    for name, body in {
        "nothing": b"",
        "size": b"5",
        "size-line": b"5\r\n",
        "data": b"5\r\nhel",
        "no-end": b"5\r\nhello\r\n",
        "half-end": b"5\r\nhello\r\n0\r\n",
        "trailer": b"0\r\nA: b\r\n",
    }.items():
        add(f"chunk-truncated-{name}", chunked(body), after=WAITS)


def connections() -> None:
    add("connection-close", get(fields=b"Connection: close\r\n"), 200, after=CLOSED)
    add("connection-close-case", get(fields=b"connection: Close\r\n"), 200, after=CLOSED)
    add("connection-close-in-list", get(fields=b"Connection: te, close\r\n"), 200, after=CLOSED)
    add("connection-close-second-field", get(fields=b"Connection: te\r\nConnection: close\r\n"), 200, after=CLOSED)
    add("connection-keep-alive", get(fields=b"Connection: keep-alive\r\n"), 200)
    add("connection-both", get(fields=b"Connection: keep-alive, close\r\n"), 200, after=CLOSED)
    add("connection-other", get(fields=b"Connection: closed\r\n"), 200)
    add("http10", get(version=b"HTTP/1.0"), 200, after=CLOSED)
    add("http10-keep-alive", get(version=b"HTTP/1.0", fields=b"Connection: keep-alive\r\n"), 200)
    add("http10-body", post(b"Content-Length: 5\r\n", b"hello", version=b"HTTP/1.0"), 200, after=CLOSED, body=b"hello")
    add("expect-http10", post(b"Content-Length: 5\r\nExpect: 100-continue\r\n", b"hello", version=b"HTTP/1.0"), 200, after=CLOSED, body=b"hello")  # fmt: skip
    add("expect-other", get(fields=b"Expect: 200-ok\r\n"), 417)
    add("expect-twice", get(fields=b"Expect: 100-continue\r\n" * 2), 400)
    add("expect-without-body", get(fields=b"Expect: 100-continue\r\n"), 200)
    add("upgrade-ignored", get(fields=b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"), 200)  # fmt: skip
    add("te-field", get(fields=b"TE: trailers\r\n"), 200)


def pipelines() -> None:
    add("pipeline-two", get() + get(b"/a"), 200, 200)
    add("pipeline-body", post(b"Content-Length: 5\r\n", b"hello") + get(), 200, 200)
    add("pipeline-chunked", chunked(b"5\r\nhello\r\n0\r\n\r\n") + get(b"/a"), 200, 200)
    add("pipeline-trailer", chunked(b"0\r\nA: b\r\n\r\n") + get(b"/a"), 200, 200)
    add(
        "pipeline-unread-body",
        b"POST /ignore HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello" + get(),
        200,
        200,
    )
    add("pipeline-unread-chunks", b"POST /ignore HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + get(), 200, after="any")  # fmt: skip
    add("pipeline-then-refused", get() + get(b"/a//b"), 200, 400)
    add("pipeline-refused-then-good", get(b"/a//b") + get(), 400)
    add("pipeline-after-close", get(fields=b"Connection: close\r\n") + get(), 200, after=CLOSED)
    add("pipeline-smuggled-in-length", post(b"Content-Length: 48\r\n", get(b"/hidden") + b"xxxxxx"), 200, body=get(b"/hidden") + b"xxxxxx")  # fmt: skip
    add("pipeline-smuggled-after-chunks", chunked(b"0\r\n\r\n" + get(b"/hidden")), 200, 200)
    add("pipeline-smuggled-cl-te", post(b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n" + get(b"/hidden")), 400)  # fmt: skip
    add("pipeline-ten", get() * 10, *([200] * 10))
    add("pipeline-empty-line-between", get() + b"\r\n" + get(), 200, 200)
    add("pipeline-garbage-after", get() + b"garbage\r\n\r\n", 200, 400)
    add("pipeline-half", get() + get()[:10], 200, after=WAITS)


for build in (methods, request_lines, targets, hosts, fields, lengths, codings, chunks, connections, pipelines):
    build()
