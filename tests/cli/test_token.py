"""`caregate token`: verify streams and never crashes, issue signs what the gateway accepts."""

from __future__ import annotations

import base64
import io
import json
import os
import select
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.auth.jwk import parse_jwk
from gateway.cli import token as command
from gateway.cli.main import main

NOW = 1_700_000_000
SECRET = base64.urlsafe_b64encode(bytes(range(64))).rstrip(b"=").decode()
EC_KEY = ec.derive_private_key(0x1234567, ec.SECP256R1())
EC_JWK = {**jwt.algorithms.ECAlgorithm.to_jwk(EC_KEY.public_key(), as_dict=True), "kid": "e"}
KEYS: dict[str, dict[str, Any]] = {
    "h": {"kty": "oct", "kid": "h", "alg": "HS256", "k": SECRET},
    "h5": {"kty": "oct", "kid": "h5", "alg": "HS512", "k": SECRET},
    "e": EC_JWK,
    "enc": {"kty": "oct", "kid": "enc", "alg": "HS256", "use": "enc", "k": SECRET},
}
CLAIMS = {"iss": "i", "aud": "a", "exp": NOW + 60}


def make(kid: str | None = "h", alg: str = "HS256", **claims: Any) -> str:
    body = {k: v for k, v in {**CLAIMS, **claims}.items() if v is not ...}
    key: Any = EC_KEY if alg == "ES256" else bytes(range(64))
    return jwt.encode(body, key, alg, headers={} if kid is None else {"kid": kid})


@pytest.fixture
def verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any):
    """`verify(lines, keys, *options)` -> (exit status, answers, standard error)."""

    def run(lines: bytes, keys: Any = ("h",), *options: str) -> tuple[int, list[dict[str, Any]], str]:
        path = tmp_path / "keys.json"
        content = keys if isinstance(keys, bytes) else json.dumps({"keys": [KEYS[name] for name in keys]}).encode()
        path.write_bytes(content)
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(lines))))
        arguments = ["token", "verify", "--jwks", str(path), "--issuer", "i", "--audience", "a"]
        status = main([*arguments, "--now", str(NOW), *options])
        out, err = capfdbinary.readouterr()
        return status, [json.loads(line) for line in out.splitlines()], err.decode()

    return run


def outcome(answer: dict[str, Any]) -> str:
    assert set(answer) == ({"ok", "claims"} if answer["ok"] else {"ok", "error"})
    return "ok" if answer["ok"] else answer["error"].partition(":")[0]


VERDICTS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "good": (make(), ("h",), "ok"),
    "good among others": (make(), ("h5", "h", "e"), "ok"),
    "asymmetric": (make("e", "ES256"), ("h", "e"), "ok"),
    "expired": (make(exp=NOW), ("h",), "expired"),
    "no kid, one key of the algorithm": (make(None), ("h", "h5", "e"), "ok"),
    "no kid, no key of the algorithm": (make(None), ("h5", "e"), "unknown-key"),
    "no kid, key of another algorithm with the same secret": (make(None, "HS384"), ("h", "h5"), "unknown-key"),
    "another kid": (make("z"), ("h",), "unknown-key"),
    "kid of a key of another algorithm": (make("h5"), ("h", "h5"), "algorithm"),
    "another issuer": (make(iss="j"), ("h",), "issuer"),
    "another audience": (make(aud="b"), ("h",), "audience"),
    "audience among others": (make(aud=["b", "a"]), ("h",), "ok"),
    "no lifetime cap": (make(exp=NOW + 10**9, iat=0), ("h",), "ok"),
    "no sub is needed": (make(sub=...), ("h",), "ok"),
    "empty sub": (make(sub=""), ("h",), "subject"),
    "key for encryption": (make("enc"), ("h", "enc"), "unknown-key"),
}


@pytest.mark.parametrize(("token", "keys", "expected"), VERDICTS.values(), ids=VERDICTS)
def test_verdict(verify: Any, token: str, keys: tuple[str, ...], expected: str) -> None:
    status, answers, _ = verify(token.encode(), keys)
    assert ([outcome(answer) for answer in answers], status) == ([expected], 0)


def test_claims_are_printed(verify: Any) -> None:
    token = make(name="Zoë", numbers=[1, 2.5, None])
    assert verify(token.encode() + b"\n")[1] == [
        {"ok": True, "claims": {**CLAIMS, "name": "Zoë", "numbers": [1, 2.5, None]}}
    ]


def test_max_lifetime(verify: Any) -> None:
    lines = f"{make(iat=NOW)}\n{make(iat=NOW - 1)}\n".encode()
    assert [outcome(answer) for answer in verify(lines, ("h",), "--max-lifetime", "60")[1]] == ["ok", "lifetime"]


def test_one_answer_a_line_whatever_the_line(verify: Any) -> None:
    lines = [
        make().encode(),
        b"",
        b" ",
        b"\xff\xfe\x00\x80",
        b"\x00" * 10,
        make().encode() + b"\r",
        make().encode() + b" ",
        b"a" * 8193,
        b"a" * 8193 + b"\r",
        b"b." * 200_000,
        "é".encode() * 10,
        b"..",
        make().encode(),
    ]
    status, answers, _ = verify(b"\n".join(lines))
    expected = ["ok", *["malformed"] * 4, "ok", "malformed", *["too-large"] * 3, "malformed", "malformed", "ok"]
    assert [outcome(answer) for answer in answers] == expected
    assert status == 0


@pytest.mark.parametrize("size", [1, 2, 7, 8192, 100_000])
def test_lines_cut_anywhere_give_the_same_answers(size: int) -> None:
    key = command.Key("h", "HS256", bytes(range(64)), issuer="i", audiences={"a"})
    verifier = command.Verifier([key], require_sub=False)
    text = f"{make()}\n\n{'x' * 20_000}\r\n{make(exp=1)}\n{make()}".encode()
    whole = b"".join(command.judge([text], verifier, NOW))
    assert whole.count(b"\n") == 5
    assert b"".join(command.judge((text[i : i + size] for i in range(0, len(text), size)), verifier, NOW)) == whole


def test_line_without_end_takes_bounded_memory() -> None:
    verifier = command.Verifier([], require_kid=False)
    kept = []

    def endless() -> Any:
        for _ in range(200):
            yield b"x" * 65_536
            kept.append(sys.getsizeof(answers.gi_frame.f_locals["rest"]))
        yield b"\n"

    answers = command.judge(endless(), verifier, NOW)
    assert b"too-large" in b"".join(answers)
    assert max(kept) < 10_000


BAD_FILES = {
    "no json": (b"{", "not JSON"),
    "not utf-8": (b"\xff", "not JSON"),
    "not a set": (b"[]", "not a JWK set"),
    "duplicate members": (b'{"keys":[],"keys":[]}', "duplicate member"),
    "no keys": (b'{"keys":[]}', "no usable key"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file(verify: Any, content: bytes, message: str) -> None:
    status, _, error = verify(b"", content)
    assert status == 2
    assert message in error
    assert "Traceback" not in error


def test_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["token", "verify", "--issuer", "i", "--audience", "a", "--jwks"]
    assert main([*arguments, str(tmp_path / "none")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path)]) == 2
    assert "is a directory" in capsys.readouterr().err


def test_unusable_key_is_named_and_its_tokens_are_refused(verify: Any) -> None:
    status, answers, error = verify(make("enc").encode(), ("enc",))
    assert status == 2, "there is no other key"
    assert answers == [{"ok": False, "error": "unknown-key: keys[0]: use is not sig (it is the key of that kid)"}]
    assert "keys[0]: use is not sig" in error
    assert SECRET not in error


def test_keys_of_one_kid_verify_nothing(verify: Any) -> None:
    keys = json.dumps({"keys": [KEYS["h"], {**EC_JWK, "kid": "h"}, KEYS["h5"]]}).encode()
    _, answers, error = verify(make().encode(), keys)
    assert [outcome(answer) for answer in answers] == ["unknown-key"]
    assert "kid of a secret and of a public key" in error


@pytest.mark.parametrize(
    "option",
    [["--now", "x"], ["--now", "-1"], ["--now", "nan"], ["--now", "1e300"], ["--max-lifetime", "0"], ["--what"]],
    ids=" ".join,
)
def test_bad_arguments(verify: Any, option: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        verify(b"", ("h",), *option)
    assert ended.value.code == 2


def test_answers_before_the_next_line_is_given(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"keys": [KEYS["h"]]}))
    arguments = ["token", "verify", "--jwks", str(keys), "--issuer", "i", "--audience", "a", "--now", str(NOW)]
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli.main", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for token, ok in ((make(), True), ("x", False)):
            process.stdin.write(token.encode() + b"\n")
            process.stdin.flush()
            assert select.select([process.stdout], [], [], 20)[0], "no answer"
            assert json.loads(process.stdout.readline())["ok"] is ok
        process.stdin.close()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# --- issue

DOCUMENT = """
version: 1
audiences:
  patient-app: {issuer: "https://id.example"}
roles:
  patient:
    audience: patient-app
    keys:
      - {kid: p1, alg: ES256, public_key: "file:p.pub"}
      - {kid: p2, alg: HS256, secret: "env:CAREGATE_TEST_SECRET"}
      - {kid: p3, alg: ES256, public_key: "file:q.pub", private_key: "file:q.key"}
    access_lifetime_s: 300
    max_lifetime_s: 600
  silent:
    audience: patient-app
    keys:
      - {kid: s1, alg: ES256, public_key: "file:s.pub"}
"""
STRONG = "kJ8s-dfQ2m_zXw7vB4tYp0aLc9RhN3eUgVi6ToMx5Ek"


def write_pair(directory: Path, name: str, number: int) -> None:
    key = ec.derive_private_key(number, ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for suffix, content in ((".key", private), (".pub", public)):
        path = directory / f"{name}{suffix}"
        path.write_bytes(content)
        path.chmod(0o600)


@pytest.fixture
def issue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any):
    """`issue(*options)` -> (exit status, standard output, standard error)."""
    for number, name in enumerate("pqs", 1_000_003):
        write_pair(tmp_path, name, number)
    document = tmp_path / "caregate.yaml"
    document.write_text(DOCUMENT)
    monkeypatch.setenv("CAREGATE_TEST_SECRET", STRONG)
    monkeypatch.setenv("CAREGATE_CONFIG_PATH", str(document))

    def run(*options: str) -> tuple[int, str, str]:
        status = main(["token", "issue", *options])
        out, err = capfdbinary.readouterr()
        return status, out.decode().strip(), err.decode()

    return run


def read(token: str) -> dict[str, Any]:
    return jwt.decode(token, STRONG, ["HS256"], audience="patient-app", issuer="https://id.example")


def test_issue(issue: Any) -> None:
    status, token, error = issue("--role", "patient")
    claims = read(token)
    assert (status, error) == (0, "")
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "kid": "p2", "typ": "JWT"}
    assert (claims["role"], claims["sub"], claims["aud"]) == ("patient", "debug:patient", "patient-app")
    assert claims["exp"] - claims["iat"] == 300
    assert abs(claims["iat"] - time.time()) < 30
    assert claims["jti"] != read(issue("--role", "patient")[1])["jti"]


def test_issue_with_claims(issue: Any) -> None:
    given = ["sub=pat-0001", "patient=0001", 'units=["a"]', "note=a=b", "n=1.5", "flag=true", "text=NaN", "empty="]
    _, token, error = issue("--role", "patient", "--ttl", "600", *[f"--claim={text}" for text in given])
    claims = read(token)
    expected = {
        "sub": "pat-0001", "patient": "0001", "units": ["a"], "note": "a=b", "n": 1.5, "flag": True, "text": "NaN",
        "empty": "",
    }  # fmt: skip
    assert {name: claims[name] for name in expected} == expected
    assert claims["exp"] - claims["iat"] == 600
    assert error == ""


def test_issue_with_another_key(issue: Any) -> None:
    assert jwt.get_unverified_header(issue("--role", "patient", "--kid", "p3")[1])["alg"] == "ES256"


def test_issue_says_what_the_gateway_would_refuse(issue: Any) -> None:
    status, token, error = issue("--role", "patient", "--claim", "patient=7")
    assert (status, read(token)["patient"]) == (0, 7)
    assert "the gateway refuses this token: claims: patient is not a name" in error


ISSUE_REFUSALS: dict[str, tuple[list[str], str]] = {
    "over the maximum": (["--role", "patient", "--ttl", "601"], "over max_lifetime_s of the role, 600 s"),
    "unknown role": (["--role", "nobody"], "no role 'nobody'; there are patient, silent"),
    "claim of the role": (["--role", "patient", "--claim", "aud=x"], "--claim aud: set by the role"),
    "claim twice": (["--role", "patient", "--claim", "a=1", "--claim", "a=2"], "given twice"),
    "no signing key": (["--role", "silent"], "role 'silent' has no key with a secret or private_key"),
    "unknown kid": (["--role", "patient", "--kid", "p9"], "has no key 'p9'"),
    "key cannot sign": (["--role", "patient", "--kid", "p1"], "has no key 'p1'"),
    "no document": (["--role", "patient", "--config", "/none.yaml"], "no such file"),
}


@pytest.mark.parametrize(("options", "message"), ISSUE_REFUSALS.values(), ids=ISSUE_REFUSALS)
def test_issue_refuses(issue: Any, options: list[str], message: str) -> None:
    status, out, error = issue(*options)
    assert (status, out) == (2, "")
    assert message in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("max_lifetime_s: 600", "max_lifetime: 600"), "max_lifetime"),
        (("env:CAREGATE_TEST_SECRET", "env:CAREGATE_TEST_NONE"), "CAREGATE_TEST_NONE"),
        (('issuer: "https://id.example"', 'issuer: ""'), "issuer"),
        (("version: 1", "version: [1"), ""),
    ],
    ids=["unknown field", "secret unavailable", "bad issuer", "not yaml"],
)
def test_issue_refuses_a_faulty_document(issue: Any, change: tuple[str, str], message: str) -> None:
    Path(os.environ["CAREGATE_CONFIG_PATH"]).write_text(DOCUMENT.replace(*change))
    status, out, error = issue("--role", "patient")
    assert (status, out) == (2, "")
    assert message in error


@pytest.mark.parametrize("option", [["--ttl", "0"], ["--ttl", "x"], ["--claim", "a"], ["--claim", "=1"]], ids=" ".join)
def test_issue_bad_arguments(issue: Any, option: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        issue("--role", "patient", *option)
    assert ended.value.code == 2


def test_issue_to_verify(issue: Any, verify: Any) -> None:
    token = issue("--role", "patient")[1]
    keys = {"keys": [{"kty": "oct", "kid": "p2", "alg": "HS256"}]}
    keys["keys"][0]["k"] = base64.urlsafe_b64encode(STRONG.encode()).rstrip(b"=").decode()
    assert parse_jwk(keys["keys"][0]).alg == "HS256"
    options = ["--issuer", "https://id.example", "--audience", "patient-app", "--now", str(int(time.time()))]
    _, answers, _ = verify(token.encode(), json.dumps(keys).encode(), *options)
    assert [outcome(answer) for answer in answers] == ["ok"]
