-- Label of cancellation: did the departure never take place?
-- Event time: the request that it answers. Created time: a day after the scheduled departure, for
-- both answers: were departures reported at once, then young labels would all say "took place".
SELECT
    request_time AS event_time,
    outcome_known_at AS created_time,
    carrier,
    flight,
    origin,
    cancelled::BIGINT AS cancelled
FROM flights
