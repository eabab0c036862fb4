-- Requests: one for each scheduled departure, also for those that never left.
-- Event time: the request, two hours before the scheduled departure. Created time: the same.
-- Only what the schedule says; the tail is missing where none was ever assigned.
SELECT
    request_time AS event_time,
    request_time AS created_time,
    tailnum,
    carrier,
    origin,
    dest,
    flight,
    epoch_us(scheduled_departure) // 1000000 AS scheduled_departure_s,
    date_diff('minute', scheduled_departure, scheduled_arrival) AS scheduled_duration_min,
    distance_mi
FROM flights
