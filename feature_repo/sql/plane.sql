-- What is known of each aircraft from the register.
-- Event time and created time: the eve of the year; the register does not change in it.
SELECT
    tailnum,
    TIMESTAMPTZ '2012-12-31 00:00:00+00' AS event_time,
    TIMESTAMPTZ '2012-12-31 00:00:00+00' AS created_time,
    year AS built_year,
    engines,
    seats,
    engine IN ('Turbo-fan', 'Turbo-jet') AS is_jet
FROM raw_planes
