"""The public application of one worker as the composition root builds it, without socket or database."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import falcon.testing
import jwt
import pytest
import yaml

from fastpath.target import canonical_path
from gateway import shared
from gateway.app import Gateway
from gateway.settings import Settings

SECRETS = {
    "member": "a-secret-of-members-7d1c0e8f42b95a63",
    "nurse": "a-secret-of-nurses-51b7e3a90c4f8d26",
    "ward_admin": "a-secret-of-admins-e2f6480b9d137ca5",
    "partner": "a-secret-of-partners-90c3d5f7a1e26b48",
}
AUDIENCE = {"member": "app", "nurse": "staff", "ward_admin": "staff", "partner": "partners"}
ISSUER = "https://id.test/{}"


def document() -> dict[str, Any]:
    def role(name: str, permissions: list[str], **more: Any) -> dict[str, Any]:
        keys = [{"kid": f"{name}-1", "alg": "HS256", "secret": f"file:{name}.secret"}]
        return {"audience": AUDIENCE[name], "keys": keys, "permissions": permissions, **more}

    def ping(path: str, audiences: list[str], roles: list[str], **more: Any) -> dict[str, Any]:
        return {"path": path, "methods": ["GET"], "audiences": audiences, "roles": roles, "resource": "ping", **more}

    return {
        "version": 1,
        "gateway": {"realm": "test", "limits": ["address"]},
        "audiences": {
            "app": {"issuer": ISSUER.format("app"), "cors": {"origins": ["https://app.test"]}},
            "staff": {
                "issuer": ISSUER.format("staff"), "cors": {"origins": ["https://staff.test"], "credentials": True},
            },
            "partners": {"issuer": ISSUER.format("partners")},
        },
        "roles": {
            "member": role("member", ["own.read"]),
            "nurse": role("nurse", ["ward.read"]),
            "ward_admin": role("ward_admin", ["ward.read", "ward.write"]),
            "partner": role("partner", ["list.read"], limits=["partner"]),
        },
        "limits": {
            "address": {"per": "address", "rate": 1, "burst": 50},
            "partner": {"per": "principal", "rate": 1, "period_s": 60, "burst": 3},
        },
        "controllers": {
            "who": ping("/v1/who", ["app", "staff", "partners"], list(AUDIENCE), resource="whoami", query=["verbose"]),
            "own": ping("/v1/members/{member}/notes", ["app"], ["member"], permission="own.read",
                        bind=[{"param": "member", "claim": "member", "refuse": "hidden"}]),
            "ward": ping("/v1/wards/{ward}/beds", ["staff"], ["nurse", "ward_admin"], permission="ward.read",
                         methods=["GET", "PUT"], bind=[{"param": "ward", "claim": "wards"}]),
            "ward-write": ping("/v1/wards/{ward}/name", ["staff"], ["nurse", "ward_admin"], permission="ward.write",
                               bind=[{"param": "ward", "claim": "wards"}]),
            "secret": ping("/v1/secret", ["staff"], ["nurse"], hidden=True),
            "list": ping("/v1/list", ["partners"], ["partner"], permission="list.read"),
            "record": ping("/v1/record", ["staff"], ["nurse"], phi=True),
        },
    }  # fmt: skip


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    made = _gateway(tmp_path, document())
    yield made
    made.database.close()


@pytest.fixture
def gateway_of(tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], Gateway]]:
    """Gateways of other documents."""
    made: list[Gateway] = []

    def make(configuration: dict[str, Any]) -> Gateway:
        directory = tmp_path / f"of-{len(made)}"
        directory.mkdir()
        made.append(_gateway(directory, configuration))
        return made[-1]

    yield make
    for one in made:
        one.database.close()


@pytest.fixture
def base() -> dict[str, Any]:
    """The document of `gateway`, to be changed."""
    return document()


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[tuple[falcon.testing.TestClient, falcon.testing.TestClient]]:
    """Clients of two gateways that know nothing of each other: the middleware alone, and with the lane before it."""
    generous = document()
    generous["limits"]["address"] = {"per": "address", "rate": 1, "period_s": 3600, "burst": 5_000}
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    one, other = (_gateway(tmp_path / name, generous) for name in ("one", "other"))
    yield falcon.testing.TestClient(one.public), falcon.testing.TestClient(as_the_worker(other.public))
    one.database.close()
    other.database.close()


def _gateway(tmp_path: Path, configuration: dict[str, Any]) -> Gateway:
    for name, secret in SECRETS.items():
        path = tmp_path / f"{name}.secret"
        path.touch(mode=0o600)
        path.write_text(secret)
    config = tmp_path / "caregate.yaml"
    config.write_text(yaml.safe_dump(configuration))
    (tmp_path / "run").mkdir(mode=0o700)
    settings = replace(
        Settings(),
        config_path=config,
        data_dir=tmp_path,
        run_dir=tmp_path / "run",
        dsn="host=/nowhere connect_timeout=1",
        access_log=False,
        bucket_capacity=1024,
    )
    return Gateway(settings, shared.create(settings), 0)


def as_the_worker(application: Callable[..., Any]) -> Callable[..., Any]:
    """An application that finds in its environ what the worker puts there for a target it let pass."""

    def call(env: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        with contextlib.suppress(ValueError):
            query = env["QUERY_STRING"]
            path = canonical_path(env["RAW_URI"].partition("?")[0] + (f"?{query}" if query else ""))[0]
            env |= {
                "caregate.path": path,
                "caregate.request_id": str(uuid.uuid4()),
                "caregate.started_ns": time.monotonic_ns(),
                "caregate.peer": env.get("REMOTE_ADDR", "127.0.0.1"),
                "caregate.duplicate": frozenset(),
            }
        return application(env, start_response)

    return call


@pytest.fixture(params=["middleware", "lane"])
def client(gateway: Gateway, request: pytest.FixtureRequest) -> falcon.testing.TestClient:
    """Every test of the policy runs over the middleware alone, and with the compiled lane before it."""
    return falcon.testing.TestClient(gateway.public if request.param == "middleware" else as_the_worker(gateway.public))


@pytest.fixture
def both(gateway: Gateway) -> dict[str, falcon.testing.TestClient]:
    """One gateway, asked by way of the middleware alone (m) and with the lane before it (l)."""
    return _ways(gateway)


@pytest.fixture
def ways() -> Callable[[Gateway], dict[str, falcon.testing.TestClient]]:
    """The same of another gateway."""
    return _ways


def _ways(gateway: Gateway) -> dict[str, falcon.testing.TestClient]:
    return {
        "m": falcon.testing.TestClient(gateway.public),
        "l": falcon.testing.TestClient(as_the_worker(gateway.public)),
    }


def _token(of: str, /, *, secret: str | None = None, kid: str | None = None, **claims: Any) -> str:
    now = int(time.time())
    payload = {
        "iss": ISSUER.format(AUDIENCE[of]), "aud": AUDIENCE[of], "sub": f"a-{of}", "role": of,
        "iat": now, "exp": now + 600, "jti": str(uuid.uuid4()), **claims,
    }  # fmt: skip
    payload = {name: value for name, value in payload.items() if value is not None}
    return jwt.encode(payload, secret or SECRETS[of], "HS256", {"kid": kid or f"{of}-1"})


@pytest.fixture
def token() -> Callable[..., str]:
    return _token


@pytest.fixture
def ask(client: falcon.testing.TestClient) -> Callable[..., falcon.testing.Result]:
    """Send a request; `role` and `claims` make its token."""

    def send(path: str, role: str | None = None, method: str = "GET", **more: Any) -> falcon.testing.Result:
        claims = more.pop("claims", {})
        headers = more.pop("headers", {})
        if role is not None:
            headers = {"Authorization": f"Bearer {_token(role, **claims)}", **headers}
        return client.simulate_request(method, path, headers=headers, **more)

    return send
