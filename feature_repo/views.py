"""The stored views. sql/NAME.sql says what each column is and when it became known."""

from __future__ import annotations

from datetime import timedelta

from entities import carrier, destination, origin, tail
from feast import FeatureView, Field
from feast.types import Bool, Float64, Int64
from feeds import carrier_days, landings, origin_hours, planes, route_weeks, weather_hours

weather = FeatureView(
    name="weather",
    entities=[origin],
    # An observation is an hour old when it becomes known; a gap of a few hours may be bridged.
    ttl=timedelta(hours=6),
    schema=[
        Field(name="temperature_f", dtype=Float64),
        Field(name="dew_point_f", dtype=Float64),
        Field(name="humidity_pct", dtype=Float64),
        Field(name="wind_direction_deg", dtype=Int64),
        Field(name="wind_speed_mph", dtype=Float64),
        Field(name="wind_gust_mph", dtype=Float64),
        Field(name="precipitation_in", dtype=Float64),
        Field(name="pressure_mbar", dtype=Float64),
        Field(name="visibility_mi", dtype=Float64),
    ],
    source=weather_hours,
    description="Hourly weather at the origin.",
)

origin_hour = FeatureView(
    name="origin_hour",
    entities=[origin],
    # Delays of this morning say nothing of tonight.
    ttl=timedelta(hours=6),
    schema=[
        Field(name="departures_3h", dtype=Int64),
        Field(name="departure_delay_3h_min", dtype=Float64),
        Field(name="late_departures_3h_share", dtype=Float64),
        Field(name="arrival_delay_3h_min", dtype=Float64),
        Field(name="overdue_3h", dtype=Int64),
    ],
    source=origin_hours,
    description="How the origin ran over the last three hours.",
)

carrier_day = FeatureView(
    name="carrier_day",
    entities=[carrier],
    # Daily; two missed runs may be bridged.
    ttl=timedelta(days=3),
    schema=[
        Field(name="landed_1d", dtype=Int64),
        Field(name="arrival_delay_1d_min", dtype=Float64),
        Field(name="late_1d_share", dtype=Float64),
        Field(name="arrival_delay_7d_min", dtype=Float64),
        Field(name="late_7d_share", dtype=Float64),
        Field(name="cancelled_1d_share", dtype=Float64),
        Field(name="cancelled_7d_share", dtype=Float64),
    ],
    source=carrier_days,
    description="How the carrier ran over the last day and week.",
)

tail_last_flight = FeatureView(
    name="tail_last_flight",
    entities=[tail],
    # An aircraft that has not been here for a week comes without a past.
    ttl=timedelta(days=7),
    schema=[
        Field(name="last_arrival_delay_min", dtype=Int64),
        Field(name="last_departure_delay_min", dtype=Int64),
        Field(name="last_landing_s", dtype=Int64),
    ],
    source=landings,
    description="The last flight out of New York that the aircraft has landed.",
)

route_week = FeatureView(
    name="route_week",
    entities=[origin, destination],
    # Some routes are flown on one day of the week.
    ttl=timedelta(days=14),
    schema=[
        Field(name="route_landed_7d", dtype=Int64),
        Field(name="route_arrival_delay_7d_min", dtype=Float64),
        Field(name="route_late_7d_share", dtype=Float64),
        Field(name="route_arrival_delay_28d_min", dtype=Float64),
        Field(name="route_late_28d_share", dtype=Float64),
    ],
    source=route_weeks,
    description="How the route ran over the last week and the last four.",
)

plane = FeatureView(
    name="plane",
    entities=[tail],
    # The register does not age.
    ttl=timedelta(0),
    schema=[
        Field(name="built_year", dtype=Int64),
        Field(name="engines", dtype=Int64),
        Field(name="seats", dtype=Int64),
        Field(name="is_jet", dtype=Bool),
    ],
    source=planes,
    description="The aircraft in the register.",
)
