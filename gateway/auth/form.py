"""The parameters of a request to the token service (RFC 6749, appendix B)."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl

from gateway.errors import TokenRequestRefused

MAX_BODY_BYTES: Final = 32_768
MEDIA_TYPE: Final = "application/x-www-form-urlencoded"
_MAX_FIELDS = 32


def parse_form(body: bytes, content_type: str) -> dict[str, str]:
    """Name -> value; a parameter without a value is none.

    Raises: TokenRequestRefused, also for one given twice (RFC 6749, 3.2).
    """
    if content_type.partition(";")[0].strip().lower() != MEDIA_TYPE:
        raise TokenRequestRefused("invalid_request", f"The body must be {MEDIA_TYPE}")
    try:
        pairs = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(body),
            errors="strict",
            max_num_fields=_MAX_FIELDS,
        )
    except ValueError:
        raise TokenRequestRefused("invalid_request", "The body is not a form") from None
    if len({name for name, _ in pairs}) != len(pairs):
        raise TokenRequestRefused("invalid_request", "A parameter is given twice")
    return {name: value for name, value in pairs if value}
