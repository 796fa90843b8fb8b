"""Who is told what he may call."""

from __future__ import annotations

from openapi_spec_validator import validate

PATH = "/openapi/v1/openapi.json"


def test_an_audience_learns_of_its_own_routes(client, token):
    answer = client.simulate_get(PATH, headers={"Authorization": f"Bearer {token('member')}"})
    assert answer.status_code == 200
    validate(answer.json)
    assert set(answer.json["paths"]) == {"/v1/who", "/v1/members/{member}/notes"}
    again = client.simulate_get(
        PATH, headers={"Authorization": f"Bearer {token('member')}", "If-None-Match": answer.headers["ETag"]}
    )
    assert again.status_code == 304
    staff = client.simulate_get(PATH, headers={"Authorization": f"Bearer {token('nurse')}"})
    assert "/v1/secret" in staff.json["paths"]
    assert "/v1/list" not in staff.json["paths"]
    assert staff.headers["ETag"] != answer.headers["ETag"]


def test_nobody_else_does(client):
    assert client.simulate_get(PATH).status_code == 401
    assert client.simulate_get(PATH, headers={"Authorization": "Bearer x.y.z"}).status_code == 401
    assert client.simulate_post(PATH).status_code == 405
