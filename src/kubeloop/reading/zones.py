"""Words for a time zone, such as CEST; one that several zones share is read only if `timezone` decides it."""

import functools
import re
import zoneinfo
from datetime import UTC, datetime

_FIXED = {
    "UTC": "+0000", "UT": "+0000", "GMT": "+0000", "WET": "+0000", "WEST": "+0100", "CET": "+0100", "CEST": "+0200",
    "MEZ": "+0100", "MESZ": "+0200", "EET": "+0200", "EEST": "+0300", "EST": "-0500", "EDT": "-0400", "MST": "-0700",
    "MDT": "-0600", "PST": "-0800", "PDT": "-0700", "AKST": "-0900", "AKDT": "-0800", "HST": "-1000", "NZST": "+1200",
    "NZDT": "+1300", "AEST": "+1000", "AEDT": "+1100", "ACST": "+0930", "ACDT": "+1030", "AWST": "+0800",
    "JST": "+0900", "KST": "+0900", "HKT": "+0800", "SGT": "+0800", "SAST": "+0200", "BRT": "-0300", "ART": "-0300",
}  # fmt: skip
SHARED = {
    "CST": {"America/Chicago": "-0600", "Asia/Shanghai": "+0800", "America/Havana": "-0500"},
    "CDT": {"America/Chicago": "-0500", "America/Havana": "-0400"},
    "IST": {"Asia/Kolkata": "+0530", "Asia/Jerusalem": "+0200", "Europe/Dublin": "+0100"},
    "BST": {"Europe/London": "+0100", "Asia/Dhaka": "+0600"},
    "AST": {"America/Halifax": "-0400", "Asia/Riyadh": "+0300"},
    "SST": {"Pacific/Pago_Pago": "-1100", "Asia/Singapore": "+0800"},
}
"""Words that several zones share, with the zones that may be meant."""


@functools.lru_cache
def offsets(zone: str) -> dict[str, str]:
    """Return the offset of each word that is known for a zone; the zone's own words come first."""
    own: dict[str, set[str]] = {}
    info = zoneinfo.ZoneInfo(zone)
    for year in range(1970, 2038):
        for month in (1, 7):
            moment = datetime(year, month, 15, tzinfo=UTC).astimezone(info)
            own.setdefault(moment.tzname() or "", set()).add(moment.strftime("%z"))
    known = dict(_FIXED)
    known |= {word: found[zone] for word, found in SHARED.items() if zone in found}
    # A word that changed its meaning, as MSK did, is ambiguous.
    return known | {
        word: found.pop() for word, found in own.items() if len(found) == 1 and re.fullmatch("[A-Z]{2,5}", word)
    }
