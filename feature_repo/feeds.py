"""Where Feast finds the tables that sources.py makes."""

from __future__ import annotations

from feast import FileSource, PushSource


def _source(table: str) -> FileSource:
    return FileSource(
        name=table,
        path=f"data/{table}.parquet",
        timestamp_field="event_time",
        created_timestamp_column="created_time",
    )


planned_departures = _source("requests")
arrivals = _source("arrivals")
outcomes = _source("outcomes")
weather_hours = _source("weather")
origin_hours = _source("origin_hour")
carrier_days = _source("carrier_day")
# A landing may also be pushed, as soon as it is reported.
landings = PushSource(name="landings", batch_source=_source("tail_last_flight"))
route_weeks = _source("route_week")
planes = _source("plane")
