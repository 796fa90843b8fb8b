"""An identity provider of our own that can misbehave, over HTTP and TLS on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from gevent import ssl
from gevent.server import StreamServer

Script = Callable[[Any], None]


class ScriptedProvider:
    """Answers each path by a script: bytes of a JSON body, or a function of the socket."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, bytes | Script] = {}
        self.asked: list[str] = []
        self.keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        options = {"ssl_context": tls} if tls is not None else {}
        self._server = StreamServer(("127.0.0.1", 0), self._serve, **options)
        self._server.start()
        self.port: int = self._server.server_port
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    def _serve(self, sock: Any, address: object) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = sock.recv(65_536)
            if not piece:
                return
            head += piece
        path = head.split(b" ")[1].decode()
        self.asked.append(path)
        answer = self.answers.get(path)
        try:
            if callable(answer):
                answer(sock)
            elif answer is None:
                sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            else:
                sock.sendall(ok(answer))
        except OSError:
            pass
        finally:
            sock.close()

    def add_key(self, kid: str) -> None:
        self.keys[kid] = ec.generate_private_key(ec.SECP256R1())
        self.publish()

    def publish(self) -> None:
        """The key set, and the document that leads to it."""
        self.answers["/jwks"] = json.dumps({"keys": [self.jwk(kid) for kid in self.keys]}).encode()
        self.answers["/.well-known/openid-configuration"] = json.dumps(
            {"issuer": self.url, "jwks_uri": f"{self.url}/jwks"}
        ).encode()

    def jwk(self, kid: str, **more: Any) -> dict[str, Any]:
        members = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.keys[kid].public_key()))
        return {**members, "kid": kid, "use": "sig", "alg": "ES256", **more}

    def token(self, kid: str, **claims: Any) -> str:
        return jwt.encode({"iss": self.url, **claims}, self.keys[kid], "ES256", {"kid": kid})

    def fetches(self, path: str = "/jwks") -> int:
        return self.asked.count(path)

    def stop(self) -> None:
        self._server.stop(timeout=0)


def ok(body: bytes, media_type: str = "application/json", **fields: str) -> bytes:
    head = {"Content-Type": media_type, "Content-Length": str(len(body)), **fields}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in head.items())
    return f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode() + body
