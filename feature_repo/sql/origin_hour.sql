-- How each airport of origin ran over the last three hours, computed at every full hour.
-- Event time and created time: that hour. Departures and landings count once the feed has reported
-- them; overdue is a departure whose time has passed without a report that it left.
WITH hours AS (
    SELECT origin, hour
    FROM (SELECT DISTINCT origin FROM flights) AS origins, (
        SELECT unnest(
            generate_series(
                (SELECT time_bucket(INTERVAL 1 HOUR, min(scheduled_departure)) FROM flights),
                (SELECT max(landing_known_at) FROM flights),
                INTERVAL 1 HOUR
            )
        ) AS hour
    ) AS clock
),
departed AS (
    SELECT
        origin,
        hour_up(departure_known_at) + to_hours(step) AS hour,
        count(*) AS departures_3h,
        avg(departure_delay_min) AS departure_delay_3h_min,
        avg((departure_delay_min >= 15)::BIGINT) AS late_departures_3h_share
    FROM flights, range(3) AS steps (step)
    WHERE departure IS NOT NULL AND hour < departure_known_at + INTERVAL 3 HOUR
    GROUP BY ALL
),
landed AS (
    SELECT
        origin,
        hour_up(landing_known_at) + to_hours(step) AS hour,
        avg(arrival_delay_min) AS arrival_delay_3h_min
    FROM flights, range(3) AS steps (step)
    WHERE arrival IS NOT NULL AND hour < landing_known_at + INTERVAL 3 HOUR
    GROUP BY ALL
),
overdue AS (
    SELECT
        origin,
        hour_up(scheduled_departure) + to_hours(step) AS hour,
        count(*) AS overdue_3h
    FROM flights, range(3) AS steps (step)
    WHERE
        hour < scheduled_departure + INTERVAL 3 HOUR
        AND (departure IS NULL OR hour < departure_known_at)
    GROUP BY ALL
)
SELECT
    origin,
    hour AS event_time,
    hour AS created_time,
    coalesce(departures_3h, 0) AS departures_3h,
    departure_delay_3h_min,
    late_departures_3h_share,
    arrival_delay_3h_min,
    coalesce(overdue_3h, 0) AS overdue_3h
FROM hours
LEFT JOIN departed USING (origin, hour)
LEFT JOIN landed USING (origin, hour)
LEFT JOIN overdue USING (origin, hour)
