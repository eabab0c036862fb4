-- How each route ran over the last week and the last four, computed daily at 06:00 UTC.
-- Event time and created time: that moment. Landings count once the feed has reported them.
WITH daily AS (
    SELECT
        origin,
        dest,
        morning_up(landing_known_at) AS known_morning,
        count(*) AS landed,
        sum(arrival_delay_min) AS delay_min,
        count_if(arrival_delay_min >= 15) AS late
    FROM flights
    WHERE arrival IS NOT NULL
    GROUP BY ALL
)
SELECT
    origin,
    dest,
    known_morning + to_days(step) AS event_time,
    event_time AS created_time,
    coalesce(sum(landed) FILTER (step < 7), 0)::BIGINT AS route_landed_7d,
    sum(delay_min) FILTER (step < 7) / sum(landed) FILTER (step < 7) AS route_arrival_delay_7d_min,
    sum(late) FILTER (step < 7) / sum(landed) FILTER (step < 7) AS route_late_7d_share,
    sum(delay_min) / sum(landed) AS route_arrival_delay_28d_min,
    sum(late) / sum(landed) AS route_late_28d_share
FROM daily, range(28) AS steps (step)
WHERE event_time <= (SELECT max(landing_known_at) FROM flights)
GROUP BY ALL
