"""What a SQLSTATE of a portal function means to its caller. Source: PostgreSQL, appendix A."""

from __future__ import annotations

from gateway.errors import (
    BadRequest,
    BindingRefused,
    Conflict,
    DatabaseInterrupted,
    DatabaseTimeout,
    DatabaseUnavailable,
    GatewayError,
    InternalError,
    NotFound,
    Unprocessable,
)

_EXACT: dict[str, tuple[type[GatewayError], str]] = {
    "P0002": (NotFound, ""),  # no_data_found
    "PT404": (NotFound, ""),
    "PT409": (Conflict, "The request conflicts with what is stored"),
    "PT422": (Unprocessable, "A value is not one the portal accepts"),
    "23505": (Conflict, "Such a record exists already"),  # unique_violation
    "23P01": (Conflict, "The request conflicts with what is stored"),  # exclusion_violation
    "23001": (Conflict, "Another record refers to this one"),  # restrict_violation
    "57014": (DatabaseTimeout, "The database did not finish in time"),  # query_canceled
    "40001": (DatabaseUnavailable, "The request met others that change the same records"),  # serialization_failure
    "40P01": (DatabaseUnavailable, "The request met others that change the same records"),  # deadlock_detected
    "40003": (DatabaseInterrupted, ""),  # statement_completion_unknown
    "55P03": (DatabaseUnavailable, "The request met others that change the same records"),  # lock_not_available
    "25006": (DatabaseUnavailable, ""),  # read_only_sql_transaction: a standby
}
_BY_CLASS: dict[str, tuple[type[GatewayError], str]] = {
    "08": (DatabaseUnavailable, ""),
    "53": (DatabaseUnavailable, ""),
    "57": (DatabaseUnavailable, ""),
    "58": (DatabaseUnavailable, ""),
}
_VALUE_CLASSES = ("22", "23")
_ROW_SECURITY = ("42501", "PT403")
"""insufficient_privilege: row-level security refused a new row, or the function said so itself."""


def error_of(sqlstate: str, *, has_body: bool, hidden: bool) -> GatewayError:
    """The error to answer; its detail is ours, never the server's.

    Shapes: `hidden`: to this caller a record that is not his does not exist.
    """
    if sqlstate in _ROW_SECURITY:
        return NotFound() if hidden else BindingRefused("The database refused this access")
    row = _EXACT.get(sqlstate) or _BY_CLASS.get(sqlstate[:2])
    if row is not None:
        cls, detail = row
        return cls(detail, retry_after_s=1) if issubclass(cls, DatabaseUnavailable) else cls(detail)
    if sqlstate[:2] in _VALUE_CLASSES:
        detail = "A value is not one the portal accepts"
        return Unprocessable(detail, errors=[{"pointer": "", "detail": detail}]) if has_body else BadRequest(detail)
    return InternalError()
