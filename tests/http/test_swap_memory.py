"""What a worker holds of configurations that are not in force any more: nothing."""

from __future__ import annotations

import gc
import uuid
from collections import Counter
from dataclasses import replace

import falcon.testing
import pytest

from gateway.config.load import load_text
from gateway.config.snapshot import Snapshot
from gateway.context import RequestContext
from gateway.http.explain import Asked

SWAPS = 12
OF_CONFIGURATION = (
    "Snapshot",
    "Route",
    "Limit",
    "Rule",
    "Charge",
    "Grant",
    "Verifier",
    "Lane",
    "CompiledRole",
    "Document",
)


def held() -> Counter[str]:
    gc.collect()
    found = Counter(type(one).__name__ for one in gc.get_objects())
    return Counter({name: found[name] for name in OF_CONFIGURATION})


def versions(gateway) -> list[int]:
    """The snapshots that there still are of this gateway's swaps; what other tests left in the process is theirs."""
    realm = gateway.holder.current.realm.rpartition("-")[0]
    return sorted(
        one.version for one in gc.get_objects() if type(one) is Snapshot and one.realm.rpartition("-")[0] == realm
    )


@pytest.fixture
def swap(gateway):
    realm = f"test-{uuid.uuid4().hex}"
    raw = gateway.settings.config_path.read_text()

    def swap(number: int) -> None:
        text = raw.replace("realm: test", f"realm: {realm}-{number}").replace("burst: 50", f"burst: {50 + number}")
        loaded = load_text(text.encode(), gateway.settings.config_path.parent)
        gateway.holder.swap(replace(loaded.snapshot, version=number))

    return swap


def test_nothing_stays_of_what_was_in_force(gateway, client, swap, token) -> None:
    bearer = {"Authorization": f"Bearer {token('nurse', wards=['w-1'])}"}

    def ask() -> None:
        for path in ("/v1/who", "/v1/wards/w-1/beds", "/v1/wards/w-2/beds", "/nowhere"):
            client.simulate_get(path, headers=bearer)
        client.simulate_get("/v1/who")
        falcon.testing.TestClient(gateway.admin).simulate_get("/admin/v1/units", headers=bearer)
        gateway.explainer.explain(gateway.holder.current, asked)

    asked = Asked("GET", "/v1/who", bearer["Authorization"].removeprefix("Bearer "))
    for number in (2, 3):
        swap(number)
        ask()
    before = held()
    for number in range(4, 4 + SWAPS):
        swap(number)
        ask()
    after = held()
    assert after == before
    assert versions(gateway) == [3 + SWAPS]


def test_a_snapshot_that_stays_is_seen(gateway, swap) -> None:
    """The test above can fail."""
    kept: list[Snapshot] = []
    before = held()
    for number in range(2, 5):
        kept.append(gateway.holder.current)
        swap(number)
    assert held()["Snapshot"] == before["Snapshot"] + len(kept)
    assert versions(gateway) == [2, 3, 4]


@pytest.mark.parametrize("path", ["/v1/who", "/v1/nowhere", "/v1/a%2Fb/../c", "/v1/record"])
def test_a_refused_request_leaves_nothing_for_the_collector(client, token, path) -> None:
    """Its error holds the frames that it has passed, these the request, and that the error, unless one lets go."""
    headers = {"Authorization": f"Bearer {token('nurse')}"} if path == "/v1/record" else {}
    gc.collect()
    gc.disable()
    try:
        before = _contexts()
        assert client.simulate_get(path, headers=headers).status_code >= 400
        assert _contexts() == before
    finally:
        gc.enable()


def _contexts() -> int:
    return sum(type(one) is RequestContext for one in gc.get_objects())
