"""Which query parameters a route lets through: declared by name, compared as the receiver will read them."""

from __future__ import annotations

from urllib.parse import unquote_plus

from gateway.errors import QueryRefused


def check_query(query: str, declared: frozenset[str] | None) -> None:
    """Refuse a query with a parameter that the route does not declare; None declares any.

    Names are compared after percent-decoding and with `+` as a space, so that no spelling slips past. Values and
    repeated names are left to the receiver.

    Raises: QueryRefused.
    """
    if not query or declared is None:
        return
    for part in query.split("&"):
        name = part.partition("=")[0]
        if name in declared and "%" not in name and "+" not in name:
            continue
        if unquote_plus(name, errors="replace") not in declared:
            raise QueryRefused("A query parameter is not declared for this route")
