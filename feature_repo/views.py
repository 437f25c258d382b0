"""The feature views. Each reads the table that the query with its name in sql/ writes."""

from datetime import timedelta
from typing import Any

from entities import aircraft, carrier, destination, origin
from feast import FeatureView, Field, FileSource, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, UnixTimestamp


def table(view: str) -> FileSource:
    """Return the source of a view: its Parquet file in the folder of feature tables."""
    return FileSource(name=view, path=f"{view}.parquet", timestamp_field="event_timestamp")


weather_hourly = FeatureView(
    name="weather_hourly",
    entities=[origin],
    ttl=timedelta(hours=6),
    schema=[
        Field(name="temp", dtype=Float64, description="Temperature, °F."),
        Field(name="dewp", dtype=Float64, description="Dew point, °F."),
        Field(name="humid", dtype=Float64, description="Relative humidity, %."),
        Field(name="wind_speed", dtype=Float64, description="Wind speed, mph."),
        Field(name="precip", dtype=Float64, description="Precipitation, inches an hour."),
        Field(name="pressure", dtype=Float64, description="Sea level pressure, millibars."),
        Field(name="visib", dtype=Float64, description="Visibility, miles."),
    ],
    source=table("weather_hourly"),
)

origin_hourly = FeatureView(
    name="origin_hourly",
    entities=[origin],
    ttl=timedelta(hours=2),
    schema=[
        Field(name="departures_next_2h", dtype=Float64, description="Departures on the timetable, 1 to 3 hours ahead."),
        Field(name="origin_late_1h", dtype=Float64, description="Share that left 15 minutes late or more, last hour."),
        Field(name="origin_late_3h", dtype=Float64, description="The same over the last three hours."),
        Field(name="origin_cancelled_3h", dtype=Float64, description="Share cancelled over the last three hours."),
    ],
    source=table("origin_hourly"),
)

carrier_daily = FeatureView(
    name="carrier_daily",
    entities=[carrier],
    ttl=timedelta(days=3),
    schema=[Field(name="carrier_late_1d", dtype=Float64, description="Share of the day before that was late.")],
    source=table("carrier_daily"),
)

destination_daily = FeatureView(
    name="destination_daily",
    entities=[destination],
    ttl=timedelta(days=3),
    schema=[Field(name="dest_late_7d", dtype=Float64, description="Share of the last seven days that was late.")],
    source=table("destination_daily"),
)

aircraft_facts = FeatureView(
    name="aircraft",
    entities=[aircraft],
    ttl=timedelta(days=3650),
    schema=[
        Field(name="built", dtype=Float64, description="Year of manufacture."),
        Field(name="seats", dtype=Float64, description="Seats."),
    ],
    source=table("aircraft"),
)

flight = RequestSource(
    name="flight",
    schema=[
        Field(name="sched_dep", dtype=UnixTimestamp, description="Scheduled departure."),
        Field(name="distance", dtype=Float64, description="Distance, miles."),
        Field(name="sched_minutes", dtype=Float64, description="Arrival less departure on the timetable, minutes."),
    ],
)


@on_demand_feature_view(
    sources=[aircraft_facts, flight],
    mode="python",
    # No descriptions here, since Feast compares these fields with inferred ones, which have none.
    schema=[
        Field(name="hour", dtype=Float64),
        Field(name="weekday", dtype=Float64),
        Field(name="plane_age", dtype=Float64),
        Field(name="distance_miles", dtype=Float64),
        Field(name="timetable_minutes", dtype=Float64),
    ],
)
def flight_facts(inputs: dict[str, Any]) -> dict[str, Any]:
    """Derive the features that depend only on the request and the aircraft; columns in, columns out.

    Feast stores only the source of this function, so it imports what it needs inside.
    """
    from zoneinfo import ZoneInfo

    local = [moment.astimezone(ZoneInfo("America/New_York")) for moment in inputs["sched_dep"]]
    return {
        "hour": [moment.hour + moment.minute / 60 for moment in local],
        "weekday": [float(moment.weekday()) for moment in local],
        "plane_age": [
            None if built is None or built != built else float(moment.year - built)
            for moment, built in zip(local, inputs["built"], strict=True)
        ],
        "distance_miles": inputs["distance"],
        "timetable_minutes": inputs["sched_minutes"],
    }
