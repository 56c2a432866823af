"""Dates as records hold them (`2015`, `2015-03`, `2015-03-07`, date-time with or without zone), made comparable.

A date that is less exact than a second is an interval, so "before" is only claimed where it is certain.
"""

import re
from datetime import UTC, datetime, timedelta

from tagpr_data.errors import InputError, shorten

_PARTIAL = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?")


def interval(date: str) -> tuple[float, float]:
    """Give the first and the last moment that a date may mean, in seconds since 1970 UTC (end exclusive for years,
    months and days; both equal for a date-time). A date-time without zone counts as UTC. InputError if unreadable."""
    partial = _PARTIAL.fullmatch(date)
    try:
        if partial is None:
            moment = datetime.fromisoformat(date)
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
            return seconds, seconds
        year, month, day = (int(part) if part else None for part in partial.groups())
        start = datetime(year or 0, month or 1, day or 1, tzinfo=UTC)
        if day:
            return start.timestamp(), (start + timedelta(days=1)).timestamp()
        if month:
            return start.timestamp(), (start.replace(day=28) + timedelta(days=4)).replace(day=1).timestamp()
        return start.timestamp(), datetime((year or 0) + 1, 1, 1, tzinfo=UTC).timestamp()
    except (ValueError, OverflowError):
        raise InputError(
            f"date {shorten(date)} cannot be read; expected 2015, 2015-03, 2015-03-07 or 2015-03-07T12:30:00+00:00"
        ) from None
