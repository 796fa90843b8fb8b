"""The Admin API of one worker as the composition root builds it, without socket, workers or database."""

from __future__ import annotations

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

from gateway import shared
from gateway.admin import permissions
from gateway.app import Gateway
from gateway.settings import Settings

ISSUER = "https://id.test/{}"
AUDIENCE = {"outsider": "app", "clerk": "ops"}
ONE_EACH = {f"only-{permission}": permission for permission in sorted(permissions.ALL)}
"""A role for each permission, which has that one alone."""
ROLES = ["outsider", "clerk", "nothing", "everything", *ONE_EACH]


def document() -> dict[str, Any]:
    def role(name: str, granted: list[str]) -> dict[str, Any]:
        keys = [{"kid": f"{name}-1", "alg": "HS256", "secret": f"file:{name}.secret"}]
        return {"audience": AUDIENCE.get(name, "ops"), "keys": keys, "permissions": granted}

    granted = {**{name: [one] for name, one in ONE_EACH.items()}, "everything": sorted(permissions.ALL)}
    return {
        "version": 1,
        "audiences": {name: {"issuer": ISSUER.format(name)} for name in ("app", "ops")},
        "roles": {name: role(name, granted.get(name, ["own.read"])) for name in ROLES},
        "admin": {"audience": "ops", "roles": ["nothing", "everything", *ONE_EACH]},
        "limits": {
            "address": {"per": "address", "rate": 1000, "burst": 5000},
            "few": {"per": "principal", "rate": 1, "period_s": 3600, "burst": 2},
        },
        "gateway": {"limits": ["address"]},
        "units": {"north": {"name": "North"}},
        "break_glass": {"roles": ["outsider"], "reviewers": {"nothing": {"sees": "all"}}},
        "controllers": {
            "own": {
                "path": "/v1/members/{member}/notes", "methods": ["GET"], "audiences": ["app"], "roles": ["outsider"],
                "permission": "own.read", "bind": [{"param": "member", "claim": "member", "refuse": "hidden"}],
                "limits": ["few"], "query": ["page"], "resource": "ping",
            },
            "staff": {
                "path": "/v1/staff", "methods": ["GET"], "audiences": ["ops"], "roles": ["nothing"], "resource": "ping",
            },
            "records": {
                "path": "/v1/records", "methods": ["GET"], "audiences": ["ops"], "roles": ["nothing"],
                "query": ["patient"], "phi": True, "audit": {"resource": "Observation"}, "resource": "ping",
            },
            "granted": {
                "path": "/v1/granted", "methods": ["GET"], "audiences": ["ops"], "roles": ["nothing", "everything"],
                "permission": "admin.keys", "resource": "ping",
            },
            "at-unit": {
                "path": "/v1/north/{rest:path}", "methods": ["GET"], "audiences": ["app"], "roles": ["outsider"],
                "unit": {"unit": "north", "target": "/fhir/{rest:path}"},
            },
        },
    }  # fmt: skip


def secret(of: str) -> str:
    return f"a-secret-of-{of}-" + uuid.uuid5(uuid.NAMESPACE_URL, of).hex


def make_gateway(folder: Path, configuration: dict[str, Any], **settings: Any) -> Gateway:
    for name in ROLES:
        path = folder / f"{name}.secret"
        path.touch(mode=0o600)
        path.write_text(secret(name))
    (folder / "caregate.yaml").write_text(yaml.safe_dump(configuration))
    (folder / "run").mkdir(mode=0o700)
    wanted = replace(
        Settings(), config_path=folder / "caregate.yaml", data_dir=folder, run_dir=folder / "run", access_log=False,
        dsn="host=/nowhere connect_timeout=1", bucket_capacity=1024, **settings,
    )  # fmt: skip
    return Gateway(wanted, shared.create(wanted), 0)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    made = make_gateway(tmp_path_factory.mktemp("admin"), document())
    yield made
    made.database.close()


def make_token(of: str, **claims: Any) -> str:
    now, audience = int(time.time()), AUDIENCE.get(of, "ops")
    payload = {
        "iss": ISSUER.format(audience), "aud": audience, "sub": str(uuid.uuid4()), "role": of, "iat": now,
        "exp": now + 600, "jti": str(uuid.uuid4()), **claims,
    }  # fmt: skip
    return jwt.encode(payload, secret(of), "HS256", {"kid": f"{of}-1"})


@pytest.fixture
def token() -> Callable[..., str]:
    return make_token


@pytest.fixture
def make() -> Callable[..., Gateway]:
    return make_gateway


@pytest.fixture
def configuration() -> dict[str, Any]:
    return document()


def asking(application: Any) -> Callable[..., falcon.testing.Result]:
    client = falcon.testing.TestClient(application)

    def ask(method: str, path: str, role: str | None = "everything", **more: Any) -> falcon.testing.Result:
        headers = dict(more.pop("headers", {}))
        if role is not None:
            headers["Authorization"] = f"Bearer {make_token(role)}"
        return client.simulate_request(method, path, headers=headers, **more)

    return ask


@pytest.fixture
def ask(gateway: Gateway) -> Callable[..., falcon.testing.Result]:
    """Send a request to the Admin API as a role."""
    return asking(gateway.admin)


@pytest.fixture
def ask_of() -> Callable[..., Any]:
    return asking
