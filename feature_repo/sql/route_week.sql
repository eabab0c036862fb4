-- How each route ran over the last week and the last four, computed daily at 07:00 UTC.
-- Event time and created time: that moment. Landings count once the feed has reported them.
SELECT
    origin,
    dest,
    morning_up(landing_known_at) + to_days(step) AS event_time,
    event_time AS created_time,
    count(*) FILTER (step < 7) AS route_landed_7d,
    avg(arrival_delay_min) FILTER (step < 7) AS route_arrival_delay_7d_min,
    avg((arrival_delay_min >= 15)::BIGINT) FILTER (step < 7) AS route_late_7d_share,
    median(arrival_delay_min) AS route_arrival_delay_28d_median_min,
    avg((arrival_delay_min >= 15)::BIGINT) AS route_late_28d_share
FROM flights, range(28) AS steps (step)
WHERE
    arrival IS NOT NULL
    AND event_time <= (SELECT max(landing_known_at) FROM flights)
GROUP BY ALL
