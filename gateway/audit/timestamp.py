"""Moments as text. Pure: it knows no clock, which is why it does without `time`."""

from __future__ import annotations

_DAYS_TO_1970 = 719_468
"""From the first of March of the year 0, at which the reckoning below begins."""


def instant(at_ms: int) -> str:
    """RFC 3339 in UTC with milliseconds. Units: ms since 1970."""
    seconds, ms = divmod(at_ms, 1000)
    days, second = divmod(seconds, 86_400)
    year, month, day = civil(days)
    return f"{year:04}-{month:02}-{day:02}T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}.{ms:03}Z"


def civil(days: int) -> tuple[int, int, int]:
    """Year, month and day of a number of days since 1970.

    Source: H. Hinnant, chrono-compatible low-level date algorithms, civil_from_days.
    """
    era, day_of_era = divmod(days + _DAYS_TO_1970, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153
    month = shifted + 3 if shifted < 10 else shifted - 9
    return year_of_era + era * 400 + (month <= 2), month, day_of_year - (153 * shifted + 2) // 5 + 1
