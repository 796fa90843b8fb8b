"""What the Admin API is sent: strictly as declared, every fault named, nothing echoed."""

from __future__ import annotations

import json
from typing import Annotated

import pytest
from msgspec import Meta

from gateway.admin.decode import decode_body, decode_params, decode_query
from gateway.admin.operation import Body
from gateway.errors import BadJson, NotFound, QueryRefused, Unprocessable


class Sent(Body, frozen=True):
    name: Annotated[str, Meta(min_length=1, max_length=5)]
    count: Annotated[int, Meta(ge=1)] = 1
    tags: list[str] = []


class Asked(Body, frozen=True):
    limit: Annotated[int, Meta(ge=1, le=9)] = 3
    cursor: Annotated[str, Meta(pattern="^[a-z]+$")] | None = None


def test_a_body_as_declared() -> None:
    assert decode_body(b'{"name": "abc", "tags": ["x"]}', Sent) == Sent(name="abc", tags=["x"])


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        pytest.param({}, ["/name"], id="missing"),
        pytest.param({"name": ""}, ["/name"], id="too short"),
        pytest.param({"name": "abcdef"}, ["/name"], id="too long"),
        pytest.param({"name": 1, "count": "1", "tags": "x"}, ["/name", "/count", "/tags"], id="every fault"),
        pytest.param({"name": "a", "count": True}, ["/count"], id="true is no number"),
        pytest.param({"name": "a", "count": 1.5}, ["/count"], id="no whole number"),
        pytest.param({"name": "a", "count": 0}, ["/count"], id="too small"),
        pytest.param({"name": "a", "tags": ["b", 2]}, ["/tags/1"], id="in a list"),
        pytest.param({"name": "a", "invented": 1}, [""], id="not declared"),
        pytest.param({"name": "\ud800", "tags": ["\udc00"]}, ["/name", "/tags"], id="half a character"),
        pytest.param([], [""], id="no object"),
        pytest.param(None, [""], id="null"),
    ],
)
def test_every_fault_of_a_body_by_its_pointer(body, pointers) -> None:
    with pytest.raises(Unprocessable) as refused:
        decode_body(json.dumps(body).encode(), Sent)
    assert [fault["pointer"] for fault in refused.value.members["errors"]] == pointers
    assert "invented" not in json.dumps(refused.value.members)


@pytest.mark.parametrize("raw", [b"", b"{", b'{"name": "a", "name": "b"}', b'{"name": NaN}', b"\xff", b"[" * 100_000])
def test_what_is_no_json(raw) -> None:
    with pytest.raises(BadJson):
        decode_body(raw, Sent)


def test_a_query_as_declared() -> None:
    assert decode_query("limit=9&cursor=abc", Asked) == Asked(limit=9, cursor="abc")
    assert decode_query("", Asked) == Asked()


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=10", "limit=x", "limit=", "limit=1&limit=2", "other=1", "cursor=A", "limit", "%ff=1", "a&"],
)
def test_a_query_that_is_not(query) -> None:
    with pytest.raises(QueryRefused):
        decode_query(query, Asked)


def test_a_path_that_names_nothing_is_not_there() -> None:
    with pytest.raises(NotFound):
        decode_params({"cursor": "A B"}, Asked)
