"""The operators' page: its own files alone, under a strict policy, and fleet data without a token on loopback only."""

from __future__ import annotations

import re

import falcon.testing
import pytest

from gateway.http.console import FILES, is_loopback


@pytest.fixture
def operations(gateway):
    return falcon.testing.TestClient(gateway.operations)


@pytest.mark.parametrize("path", FILES)
def test_a_file_of_the_page(operations, path) -> None:
    answer = operations.simulate_get(path)
    assert answer.status_code == 200
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = operations.simulate_get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", FILES)
def test_nothing_is_loaded_from_elsewhere_and_nothing_is_inline(operations, path) -> None:
    text = operations.simulate_get(path).text
    assert set(re.findall(r"(?:https?:)?//[a-z0-9.]+\.[a-z]+[^\s\"'`]*", text)) <= {
        "http://www.w3.org/2000/svg",
        "//www.w3.org/2000/svg",
    }
    assert not re.search(
        r"\sstyle=|\son[a-z]+=|<style|<script>|javascript:|innerHTML|eval\(|localStorage|document\.cookie", text
    )


def test_every_file_that_the_page_names_is_there(operations) -> None:
    named = re.findall(r'(?:href|src)="([^"]+)"', operations.simulate_get("/console").text)
    assert set(named) == FILES.keys() - {"/console"}


def test_what_the_script_looks_for_is_in_the_page(operations) -> None:
    page, script = (operations.simulate_get(path).text for path in ("/console", "/console/console.js"))
    wanted = set(re.findall(r'byId\("([a-z]+)"\)', script)) | set(re.findall(r'rows\("([a-z]+)"', script))
    assert wanted <= set(re.findall(r'id="([a-z-]+)"', page))


def test_the_page_is_not_on_the_public_listener(gateway) -> None:
    public = falcon.testing.TestClient(gateway.public)
    assert {public.simulate_get(path).status_code for path in (*FILES, "/status/fleet")} == {404}


@pytest.mark.parametrize(
    ("bind", "open_to_all_on_it"),
    [
        ("127.0.0.1:9090", True), ("[::1]:9090", True), ("localhost:9090", True), ("unix:/run/ops.sock", True),
        ("0.0.0.0:9090", False), ("[::]:9090", False), ("10.0.0.5:9090", False), ("ops.internal:9090", False),
        (":9090", False), ("", False),
    ],
)  # fmt: skip
def test_which_listeners_only_the_machine_reaches(bind, open_to_all_on_it) -> None:
    assert is_loopback(bind) is open_to_all_on_it


def test_the_fleet_is_not_shown_without_a_token_to_other_machines(gateway, operations, monkeypatch) -> None:
    # On loopback it would be answered by the workers, of which there are none here.
    assert operations.simulate_get("/status/fleet").status_code in (200, 503)
    monkeypatch.setattr(gateway.fleet, "_open", False)
    assert operations.simulate_get("/status/fleet").status_code == 404
