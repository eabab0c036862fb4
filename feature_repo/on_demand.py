"""What is computed when a request comes in.

Each function stands alone, imports and constants inside: it is frozen with a model's contract and
runs where this file may not be.
"""

from __future__ import annotations

from typing import Any

from feast import Field, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64
from views import tail_last_flight, weather

planned_departure = RequestSource(
    name="planned_departure",
    schema=[
        Field(name="flight", dtype=Int64),
        Field(name="scheduled_departure_s", dtype=Int64),
        Field(name="scheduled_duration_min", dtype=Int64),
        Field(name="distance_mi", dtype=Int64),
    ],
    description="What the schedule says; the departure in seconds since 1970 in UTC.",
)


@on_demand_feature_view(
    sources=[planned_departure],
    schema=[
        Field(name="local_hour", dtype=Int64),
        Field(name="local_minute", dtype=Int64),
        Field(name="weekday", dtype=Int64),
        Field(name="duration_min", dtype=Int64),
        Field(name="speed_mph", dtype=Float64),
    ],
    mode="python",
    description="The planned departure by New York's clock and calendar.",
)
def schedule(inputs: dict[str, Any]) -> dict[str, Any]:
    """Hour and minute since midnight by the clock in New York, weekday (Monday is 0), speed."""
    from datetime import datetime
    from zoneinfo import ZoneInfo

    zone = ZoneInfo("America/New_York")
    departures = [
        None if seconds is None else datetime.fromtimestamp(seconds, zone)
        for seconds in inputs["scheduled_departure_s"]
    ]
    durations = inputs["scheduled_duration_min"]
    return {
        "local_hour": [None if at is None else at.hour for at in departures],
        "local_minute": [None if at is None else at.hour * 60 + at.minute for at in departures],
        "weekday": [None if at is None else at.weekday() for at in departures],
        "duration_min": list(durations),
        "speed_mph": [
            None if distance is None or not minutes else distance / minutes * 60.0
            for distance, minutes in zip(inputs["distance_mi"], durations, strict=True)
        ],
    }


@on_demand_feature_view(
    sources=[weather[["wind_direction_deg", "wind_speed_mph"]]],
    schema=[
        Field(name="alongwind_mph", dtype=Float64),
        Field(name="crosswind_mph", dtype=Float64),
    ],
    mode="python",
    description="The wind along and across the runway that the three airports share.",
)
def runway_wind(inputs: dict[str, Any]) -> dict[str, Any]:
    """Wind along runway 04/22, whichever way it is used, and across it; never negative."""
    import math

    # EWR, JFK and LGA each have a runway 04/22. By the FAA's airport diagrams it points to some 30
    # degrees from true north (about 043 magnetic, variation 13 west); winds are reported from true.
    heading_deg = 30.0
    along: list[float | None] = []
    across: list[float | None] = []
    winds = zip(inputs["wind_direction_deg"], inputs["wind_speed_mph"], strict=True)
    for direction_deg, speed_mph in winds:
        if direction_deg is None or speed_mph is None:
            along.append(None)
            across.append(None)
            continue
        angle = math.radians(direction_deg - heading_deg)
        along.append(abs(speed_mph * math.cos(angle)))
        across.append(abs(speed_mph * math.sin(angle)))
    return {"alongwind_mph": along, "crosswind_mph": across}


@on_demand_feature_view(
    sources=[tail_last_flight[["last_landing_s"]], planned_departure],
    schema=[Field(name="since_landing_min", dtype=Int64)],
    mode="python",
    description="How long the aircraft will have had since it last landed.",
)
def turnaround(inputs: dict[str, Any]) -> dict[str, Any]:
    """Minutes from the aircraft's last known landing to the planned departure."""
    pairs = zip(inputs["scheduled_departure_s"], inputs["last_landing_s"], strict=True)
    return {
        "since_landing_min": [
            None if departure is None or landing is None else (departure - landing) // 60
            for departure, landing in pairs
        ]
    }
