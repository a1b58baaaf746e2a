"""A moment as people and schedulers write it: a date, a time, or how long ago."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from fcn_ray.errors import ConfigError

_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_since(text: str, now: datetime | None = None) -> datetime:
    """ISO 8601 ("2026-09-01", "2026-09-01T06:00+02:00"; without an offset the time of this machine), or "12h" ago.

    Units of the latter are s, m, h, d and w. Raises ConfigError for anything else.
    """
    now = (now or datetime.now()).astimezone()
    match = _AGO.fullmatch(text.strip())
    try:
        if match:
            return now - timedelta(**{_UNITS[match[2]]: float(match[1])})
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError, OSError) as error:
        raise ConfigError(
            f"since {text!r} is no time: expected 2026-09-01, 2026-09-01T06:00+02:00, 7d or 12h"
        ) from error
