"""Which features each model sees; most are shared."""

from __future__ import annotations

from feast import FeatureService
from on_demand import runway_wind, schedule, turnaround
from views import carrier_day, origin_hour, plane, route_week, tail_last_flight, weather

late_arrival_features = FeatureService(
    name="late_arrival_features",
    features=[
        weather,
        origin_hour,
        carrier_day,
        # The moment itself would tell the model which month it is; turnaround says what matters.
        tail_last_flight[["last_arrival_delay_min", "last_departure_delay_min"]],
        route_week,
        plane,
        schedule,
        runway_wind,
        turnaround,
    ],
)

# Without the aircraft: a tail is missing from the records only where nothing ever left.
cancellation_features = FeatureService(
    name="cancellation_features",
    features=[
        weather,
        origin_hour,
        carrier_day,
        route_week[["route_landed_7d", "route_late_7d_share", "route_late_28d_share"]],
        schedule,
        runway_wind,
    ],
)
