-- How each carrier ran over the last day and the last week, computed daily at 06:00 UTC, in the
-- lull of New York's night.
-- Event time and created time: that moment. Landings count once the feed has reported them,
-- cancellations once the outcome is settled.
WITH known AS (
    SELECT
        carrier,
        morning_up(landing_known_at) AS known_morning,
        arrival_delay_min AS delay_min,
        arrival_delay_min >= 15 AS late,
        NULL AS cancelled
    FROM flights
    WHERE arrival IS NOT NULL
    UNION ALL
    SELECT carrier, morning_up(outcome_known_at), NULL, NULL, cancelled FROM flights
),
daily AS (
    SELECT
        carrier,
        known_morning,
        count(late) AS landed,
        coalesce(sum(delay_min), 0) AS delay_min,
        count_if(late) AS late,
        count(cancelled) AS settled,
        count_if(cancelled) AS cancelled
    FROM known
    GROUP BY ALL
)
SELECT
    carrier,
    known_morning + to_days(step) AS event_time,
    event_time AS created_time,
    coalesce(sum(landed) FILTER (step = 0), 0)::BIGINT AS landed_1d,
    sum(delay_min) FILTER (step = 0)
    / nullif(sum(landed) FILTER (step = 0), 0) AS arrival_delay_1d_min,
    sum(late) FILTER (step = 0) / nullif(sum(landed) FILTER (step = 0), 0) AS late_1d_share,
    sum(delay_min) / nullif(sum(landed), 0) AS arrival_delay_7d_min,
    sum(late) / nullif(sum(landed), 0) AS late_7d_share,
    sum(cancelled) FILTER (step = 0)
    / nullif(sum(settled) FILTER (step = 0), 0) AS cancelled_1d_share,
    sum(cancelled) / nullif(sum(settled), 0) AS cancelled_7d_share
FROM daily, range(7) AS steps (step)
WHERE event_time <= (SELECT max(landing_known_at) FROM flights)
GROUP BY ALL
