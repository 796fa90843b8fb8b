"""Proof of possession at the token endpoint (RFC 9449): a JWT signed for one request by a key that the client keeps."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from fastpath.strict import decode_base64url, decode_object
from gateway.auth.jwk import parse_jwk, thumbprint
from gateway.auth.keys import SignatureCheck
from gateway.errors import TokenRequestRefused

ALGORITHMS: Final = ("ES256", "ES384", "EdDSA", "PS256", "RS256")
TYPE: Final = "dpop+jwt"
MAX_CHARS: Final = 4_096
MAX_AGE_S: Final = 60
"""How far `iat` may be from now, before and after."""
MAX_JTI_CHARS: Final = 256

_EC_BYTES = {"ES256": 32, "ES384": 48}
_THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{43}\Z")


@dataclass(frozen=True, slots=True)
class Proof:
    """A proof that holds; it is for one use. Shapes: `thumbprint` of its key (RFC 7638); `digest` tells it from others.

    Units: `until_s` seconds since 1970, when it is too old anyway.
    """

    thumbprint: str
    digest: bytes
    until_s: float


class _Bad(ValueError):
    """What is wrong with a proof."""


def is_thumbprint(text: str) -> bool:
    return _THUMBPRINT.match(text) is not None


def read_proof(text: str, method: str, url: str, now_s: float) -> Proof:
    """The proof in a DPoP field, for a request of this method to this URL.

    Raises: TokenRequestRefused (invalid_dpop_proof). Source: RFC 9449, 4.3.
    """
    try:
        return _read(text, method, url, now_s)
    except _Bad as error:
        raise TokenRequestRefused("invalid_dpop_proof", f"The DPoP proof {error}") from None


def _read(text: str, method: str, url: str, now_s: float) -> Proof:
    parts = text.split(".")
    if len(text) > MAX_CHARS or len(parts) != 3:
        raise _Bad("is not one JWT")
    header, claims, signature = _object(parts[0]), _object(parts[1]), _bytes(parts[2])
    if header.get("typ") != TYPE or "crit" in header:
        raise _Bad(f"is not of typ {TYPE}")
    alg = header.get("alg")
    if not isinstance(alg, str) or alg not in ALGORITHMS:
        raise _Bad(f"must be signed with one of {', '.join(ALGORITHMS)}")
    key = _key(header, alg)
    if not SignatureCheck(alg, key).verifies(_der(alg, signature), f"{parts[0]}.{parts[1]}".encode("ascii")):
        raise _Bad("is not signed by its key")
    if claims.get("htm") != method or not _same_url(claims.get("htu"), url):
        raise _Bad("is for another request")
    issued_s = claims.get("iat")
    if not isinstance(issued_s, int) or isinstance(issued_s, bool) or abs(now_s - issued_s) > MAX_AGE_S:
        raise _Bad("is not of now")
    jti = claims.get("jti")
    if not isinstance(jti, str) or not 0 < len(jti) <= MAX_JTI_CHARS:
        raise _Bad("has no jti, or too long a one")
    mark = thumbprint(key)
    # SEC: of the key too, or one could use up another's proofs by guessing their ids.
    digest = hashlib.sha256(f"dpop\n{mark}\n{jti}".encode("utf-8", "surrogatepass")).digest()
    return Proof(mark, digest, issued_s + 2 * MAX_AGE_S)


def _bytes(part: str) -> bytes:
    try:
        return decode_base64url(part)
    except ValueError:
        raise _Bad("is not one JWT") from None


def _object(part: str) -> dict[str, Any]:
    try:
        return decode_object(_bytes(part))
    except ValueError:
        raise _Bad("is not one JWT") from None


def _key(header: dict[str, Any], alg: str) -> Any:
    try:
        key = parse_jwk(header.get("jwk"), alg=alg).key
    except ValueError:
        key = b""
    if isinstance(key, bytes):
        raise _Bad("must have the public key of its signature as jwk")
    return key


def _der(alg: str, signature: bytes) -> bytes:
    """An ECDSA signature as the two numbers of JOSE -> as the DER sequence that a verifier takes; others stay.

    Source: RFC 7518, 3.4.
    """
    size = _EC_BYTES.get(alg)
    if size is None:
        return signature
    if len(signature) != 2 * size:
        raise _Bad("is not signed by its key")
    return encode_dss_signature(int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big"))


def _same_url(claimed: object, url: str) -> bool:
    """Source: RFC 9449, 4.3: without query and fragment; RFC 3986, 6.2.2 and 6.2.3 for host and port."""
    return isinstance(claimed, str) and len(claimed) <= MAX_CHARS and _normal(claimed) == _normal(url) is not None


def _normal(url: str) -> tuple[str, str, int | None, str] | None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.hostname is None or "@" in parts.netloc:
        return None
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return (parts.scheme, parts.hostname, port or default, parts.path)
