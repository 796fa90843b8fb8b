import pytest

from gateway import errors
from gateway.http.problems import row_of
from gateway.portal.sqlstate import error_of


@pytest.mark.parametrize(
    ("sqlstate", "status"),
    [
        ("P0002", 404),
        ("PT404", 404),
        ("23505", 409),
        ("23P01", 409),
        ("PT409", 409),
        ("23503", 422),
        ("23514", 422),
        ("23502", 422),
        ("22P02", 422),
        ("22003", 422),
        ("22P05", 422),
        ("PT422", 422),
        ("42501", 403),
        ("PT403", 403),
        ("57014", 503),
        ("40001", 503),
        ("40P01", 503),
        ("55P03", 503),
        ("53300", 503),
        ("57P01", 503),
        ("57P03", 503),
        ("08006", 503),
        ("25006", 503),
        ("42883", 500),
        ("P0001", 500),
        ("XX000", 500),
        ("", 500),
    ],
)
def test_status(sqlstate, status):
    error = error_of(sqlstate, has_body=True, hidden=False)
    assert row_of(error).status == status
    assert sqlstate == "" or sqlstate not in error.detail


@pytest.mark.parametrize("sqlstate", ["22P02", "23514"])
def test_a_bad_value_without_a_body_is_a_bad_request(sqlstate):
    assert type(error_of(sqlstate, has_body=False, hidden=False)) is errors.BadRequest


def test_a_refused_record_does_not_exist_for_one_it_is_hidden_from():
    assert type(error_of("42501", has_body=True, hidden=True)) is errors.NotFound


@pytest.mark.parametrize("sqlstate", ["57P01", "53300", "40001"])
def test_come_back_soon(sqlstate):
    assert error_of(sqlstate, has_body=False, hidden=False).retry_after_s == 1


def test_a_body_fault_has_a_pointer():
    assert error_of("22P02", has_body=True, hidden=False).members["errors"] == [
        {"pointer": "", "detail": "A value is not one the portal accepts"}
    ]
