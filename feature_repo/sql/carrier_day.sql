-- How each carrier ran over the last day and the last week, computed daily at 07:00 UTC, in the
-- lull of New York's night.
-- Event time and created time: that moment. Landings count once the feed has reported them,
-- cancellations once the outcome is settled.
WITH landed AS (
    SELECT
        carrier,
        morning_up(landing_known_at) + to_days(step) AS morning,
        count(*) FILTER (step = 0) AS landed_1d,
        avg(arrival_delay_min) FILTER (step = 0) AS arrival_delay_1d_min,
        avg((arrival_delay_min >= 15)::BIGINT) FILTER (step = 0) AS late_1d_share,
        avg(arrival_delay_min) AS arrival_delay_7d_min,
        avg((arrival_delay_min >= 15)::BIGINT) AS late_7d_share
    FROM flights, range(7) AS steps (step)
    WHERE arrival IS NOT NULL
    GROUP BY ALL
),
settled AS (
    SELECT
        carrier,
        morning_up(outcome_known_at) + to_days(step) AS morning,
        avg(cancelled::BIGINT) FILTER (step = 0) AS cancelled_1d_share,
        avg(cancelled::BIGINT) AS cancelled_7d_share
    FROM flights, range(7) AS steps (step)
    GROUP BY ALL
)
SELECT
    carrier,
    morning AS event_time,
    morning AS created_time,
    coalesce(landed_1d, 0) AS landed_1d,
    arrival_delay_1d_min,
    late_1d_share,
    arrival_delay_7d_min,
    late_7d_share,
    cancelled_1d_share,
    cancelled_7d_share
FROM landed FULL JOIN settled USING (carrier, morning)
WHERE morning <= (SELECT max(landing_known_at) FROM flights)
