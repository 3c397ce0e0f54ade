"""Clock features: what a request's time says, by one rule for training and serving."""

from __future__ import annotations

import datetime
import functools
import zoneinfo

UTC = "UTC"


def clock_features(zone: str = UTC, now: datetime.datetime | None = None) -> dict[str, int]:
    """`hour` 0..23 and `weekday` 0 (Monday)..6 of a time, or of now, in a zone of the IANA database.

    Exposures that have no `hour` take it from `ts` by this rule.
    """
    local = datetime.datetime.now(_zone(zone)) if now is None else now.astimezone(_zone(zone))
    return {"hour": local.hour, "weekday": local.weekday()}


def is_zone(name: str) -> bool:
    """Whether the IANA database of this machine has such a zone."""
    try:
        _zone(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


@functools.cache
def _zone(name: str) -> datetime.tzinfo:
    # UTC is there also where the machine has no database.
    return datetime.UTC if name == UTC else zoneinfo.ZoneInfo(name)
