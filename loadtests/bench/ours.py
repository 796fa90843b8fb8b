"""Caregate under the bench's policy: its configuration, and its process with one worker or more."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from loadtests.bench.policy import (
    AUDIENCE,
    ISSUER,
    KID_HMAC,
    KID_OTHER,
    KID_RSA,
    OTHER_ROLE,
    PORTAL_FUNCTION,
    ROLES,
    UNIT,
    Keys,
    Portal,
)
from loadtests.bench.servers import LOAD_CPU, ROOT, SERVER_CPU, Missing, Server, free_port, start

MIB = 1_048_576


@dataclass(frozen=True, slots=True)
class Caregate:
    """Starts gateways with the run's keys and upstream."""

    keys: Keys
    run: Path
    upstream_port: int
    portal: Portal

    def start(
        self,
        name: str,
        *,
        workers: int = 1,
        routes: int = 0,
        cpu: str = SERVER_CPU,
        bare: bool = False,
        cache: int = 65_536,
        phi: bool = False,
        environment: Mapping[str, str] | None = None,
        root: Path = ROOT,
    ) -> Server:
        """A gateway on a port of its own. `routes` more controllers; `bare` without access log, metrics and audit but
        that of `phi` routes; `phi`: the policy's route and the relay's are; `environment` has more settings; `root`
        is where its code is.
        """
        directory = self.run / name
        directory.mkdir()
        port = free_port()
        config = directory / "caregate.yaml"
        config.write_text(json.dumps(self._document(directory, routes, phi), indent=1))  # JSON is YAML
        env = {
            "CAREGATE_CONFIG_PATH": str(config),
            "CAREGATE_DSN": self.portal.gateway_dsn,
            "CAREGATE_DATA_DIR": str(directory),
            "CAREGATE_RUN_DIR": str(directory / "run"),
            "CAREGATE_BIND": f"127.0.0.1:{port}",
            "CAREGATE_OPS_BIND": f"unix:{directory}/ops",
            "CAREGATE_WORKERS": str(workers),
            "CAREGATE_TOKEN_CACHE_SIZE": str(cache),
            "CAREGATE_TEST_BARE": "1" if bare else "0",
            "CAREGATE_LOG_LEVEL": "warning",
            "PYTHONPATH": str(root),
            **(environment or {}),
        }
        argv = [sys.executable, "-m", "gunicorn", "-c", str(root / "gunicorn.conf.py")]
        server = start(name, argv, self.run, port, env=env, cpu=cpu, root=root)
        server.database = self.portal.pid
        return server

    def _document(self, directory: Path, routes: int, phi: bool) -> dict[str, object]:
        _private(directory / "hmac.secret", self.keys.secret)
        _private(directory / "rsa.pub", self.keys.public_pem.encode())
        _unit_key(directory)
        _private(directory / "other.secret", self.keys.other_secret)
        patient, guest = ROLES["RS256"], ROLES["HS256"]
        common = {"audiences": [AUDIENCE], "limits": ["principal"]}
        controllers: dict[str, dict[str, object]] = {
            "policy": {
                "path": "/policy", "methods": ["GET"], "roles": [patient, guest], "resource": "ping", **common,
                "phi": phi,
            },
            "upstream": {
                "path": "/up/{rest:path}", "methods": ["GET"], "roles": [patient], **common,
                "upstream": {"name": "files"},
            },
            "relay": {
                "path": "/units/{unit}/{rest:path}", "methods": ["GET"], "roles": [patient], **common,
                "unbound_roles": [patient], "phi": phi,
                "unit": {"unit": "path:unit", "target": "/{rest}"},
            },
            "upload": {
                "path": "/upload/{unit}/{rest:path}", "methods": ["POST"], "roles": [patient], **common,
                "unbound_roles": [patient], "body_max_bytes": 16 * MIB,
                "unit": {"unit": "path:unit", "target": "/{rest}"},
            },
            "portal": {
                "path": "/portal/{patient}", "methods": ["GET"], "roles": [patient], **common,
                "bind": [{"param": "patient", "claim": "patient"}],
                "function": {"name": PORTAL_FUNCTION, "arguments": {"p_patient": "path:patient"}},
            },
        }  # fmt: skip
        for number in range(routes):
            controllers[f"r{number}"] = {
                "path": f"/r{number}/{{a}}/x{number}/{{b}}", "methods": ["GET"], "roles": [patient],
                "resource": "ping",
                **common,
            }  # fmt: skip
        return {
            "version": 1,
            "audiences": {AUDIENCE: {"issuer": ISSUER}},
            "roles": {
                patient: _role({"kid": KID_RSA, "alg": "RS256", "public_key": "file:rsa.pub"}),
                guest: _role({"kid": KID_HMAC, "alg": "HS256", "secret": "file:hmac.secret"}),
                OTHER_ROLE: _role({"kid": KID_OTHER, "alg": "HS256", "secret": "file:other.secret"}),
            },
            "limits": {"principal": {"per": "principal", "rate": 1_000_000, "burst": 1_000_000}},
            "upstreams": {"files": {"endpoints": [f"http://127.0.0.1:{self.upstream_port}"]}},
            "units": {
                UNIT: {"name": "Bench", "keys": [{"kid": "unit-1", "alg": "EdDSA", "public_key": "file:unit.pub"}]}
            },
            "controllers": controllers,
        }  # fmt: skip

    def agent(self, gateway: Server, service_port: int = 0) -> None:
        """A real unit agent in front of the plain HTTP service, or of another, on the load's core."""
        directory = self.run / gateway.name
        argv = [sys.executable, "-m", "gateway.cli.main", "agent", "--gateway", f"http://127.0.0.1:{gateway.port}",
                "--unit", UNIT, "--kid", "unit-1", "--key", str(directory / "unit.key"),
                "--target", f"http://127.0.0.1:{service_port or self.upstream_port}", "--connections", "1"]  # fmt: skip
        try:
            gateway.helpers.append(start("agent", argv, self.run, self.upstream_port, cpu=LOAD_CPU).process)
        except Missing:
            gateway.stop()
            raise


def _role(key: dict[str, str]) -> dict[str, object]:
    return {"audience": AUDIENCE, "max_lifetime_s": 10_000, "access_lifetime_s": 7_200, "keys": [key]}


def _private(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)


def _unit_key(directory: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    _private(directory / "unit.key", private)
    _private(directory / "unit.pub", public)
