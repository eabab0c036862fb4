-- Label of late_arrival: did the flight land 15 minutes late or more?
-- Event time: the request that it answers. Created time: when the feed reported the landing.
-- Cancelled and diverted flights never get one.
SELECT
    request_time AS event_time,
    landing_known_at AS created_time,
    carrier,
    flight,
    origin,
    (arrival_delay_min >= 15)::BIGINT AS late
FROM flights
WHERE arrival IS NOT NULL
