"""A platform whose staff may also come from identity providers: one from the npm registry, one of our own."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import yaml
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.demo.platform import ROOT, Platform

PACKAGE = "oauth2-mock-server@7.2.1"
"""The last that runs on the Node of Debian 12."""
CACHE = ROOT / ".caregate" / "npm" / PACKAGE
WORKERS = 4
HOSPITAL = "st-marien-hospital"


def install() -> Path:
    """The package, installed once a checkout."""
    if not (CACHE / "done").exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        (CACHE / "package.json").write_text('{"private": true}')
        command = ["npm", "install", "--prefix", str(CACHE), "--no-audit", "--no-fund", "--ignore-scripts", PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        (CACHE / "done").touch()
    return CACHE


class RealProvider:
    """oauth2-mock-server in a process of its own."""

    def __init__(self, port: int) -> None:
        self.port = port
        script = str(Path(__file__).with_name("provider.cjs"))
        self._process = subprocess.Popen(
            ["node", script, str(install()), str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.issuer: str = self._answer()["issuer"]

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def _ask(self, **what: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def generate(self, alg: str, kid: str) -> None:
        self._ask(generate=alg, kid=kid)

    def token(self, kid: str = "rsa-1", **claims: Any) -> str:
        token: str = self._ask(kid=kid, claims={"sub": "idp-user", "aud": "caregate-api", **claims})["token"]
        return token

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class OwnProvider:
    """One key, and an answer that the tests may change."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        members = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key()))
        self.body = json.dumps({"keys": [{**members, "kid": "own-1", "alg": "ES256", "use": "sig"}]}).encode()
        self.fetches = 0
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.fetches += 1
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(provider.body)))
                self.end_headers()
                self.wfile.write(provider.body)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.issuer = f"http://127.0.0.1:{self._server.server_address[1]}"

    def token(self, kid: str = "own-1", **claims: Any) -> str:
        now = int(time.time())
        payload = {"iss": self.issuer, "sub": "own-user", "aud": "own-api", "iat": now, "exp": now + 300, **claims}
        return jwt.encode(payload, self.key, "ES256", {"kid": kid})

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class ProviderPlatform(Platform):
    """The demo's gateway and database without its units, and three providers: `gone` never answers."""

    def __init__(self, directory: Path, port: int) -> None:
        super().__init__(directory, port, WORKERS, tell=lambda text: None)
        self._env.update(CAREGATE_DRAIN_GRACE_S="5")
        self.real = RealProvider(port + 20)
        self.own = OwnProvider()
        self.gone = f"http://127.0.0.1:{port + 21}"

    def start(self) -> None:
        self._check_ports()
        self.start_gateway()

    def stop(self) -> None:
        super().stop()
        self.real.stop()
        self.own.stop()

    def write_documents(self) -> Path:
        path = super().write_documents()
        document = yaml.safe_load(path.read_text())
        local = {"audience": "staff-portal", "allow_http": True, "allowed_networks": ["127.0.0.0/8"]}
        document["identity_providers"] = {
            "clinic": {
                **local,
                "issuer": self.real.issuer,
                "aud": "caregate-api",
                "algorithms": ["RS256", "ES256"],
                "roles": [
                    {"claim": "/realm_access/roles", "value": "doctor", "role": "practitioner"},
                    {"claim": "groups", "value": "clerks", "role": "hcu_clerk"},
                ],
                "claims": {"units": "hospital_units"},
            },
            "own": {
                **local,
                "issuer": self.own.issuer,
                "jwks_url": f"{self.own.issuer}/jwks",
                "aud": "own-api",
                "algorithms": ["ES256"],
                "roles": [{"role": "hcu_clerk"}],
                "claims": {"units": "units"},
            },
            "gone": {**local, "issuer": self.gone, "roles": [{"role": "hcu_clerk"}]},
        }
        # NOTE: by way of JSON, so that nothing is written once and referred to.
        path.write_text(yaml.dump(json.loads(json.dumps(document)), sort_keys=False))
        return path

    def document(self) -> Any:
        return yaml.safe_load(self._config.read_text())
