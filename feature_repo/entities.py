"""What the features are about. A route is the pair of origin and destination."""

from __future__ import annotations

from feast import Entity, ValueType

tail = Entity(
    name="tail",
    join_keys=["tailnum"],
    value_type=ValueType.STRING,
    description="An aircraft, by the number on its tail.",
)
carrier = Entity(
    name="carrier",
    join_keys=["carrier"],
    value_type=ValueType.STRING,
    description="An airline, by its two-character code.",
)
origin = Entity(
    name="origin",
    join_keys=["origin"],
    value_type=ValueType.STRING,
    description="The airport of departure: EWR, JFK or LGA.",
)
destination = Entity(
    name="destination",
    join_keys=["dest"],
    value_type=ValueType.STRING,
    description="The airport of arrival, by its FAA code.",
)
