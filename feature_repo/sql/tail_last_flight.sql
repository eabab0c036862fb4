-- The last flight out of New York that each aircraft has landed.
-- Event time: the landing. Created time: the next quarter hour, when the feed reports it.
-- Where the records have one aircraft land twice in a minute, the later departure counts.
SELECT
    tailnum,
    arrival AS event_time,
    landing_known_at AS created_time,
    arrival_delay_min AS last_arrival_delay_min,
    departure_delay_min AS last_departure_delay_min,
    epoch_us(arrival) // 1000000 AS last_landing_s
FROM flights
WHERE arrival IS NOT NULL
QUALIFY row_number() OVER (
    PARTITION BY tailnum, arrival
    ORDER BY scheduled_departure DESC, flight
) = 1
