-- Every scheduled departure of 2013 with its times in UTC: what all other files read.
--
-- Of the package's table only time_hour is UTC; hour, minute and the *_time columns are clocks on a
-- wall. A departure is its hour in UTC plus its minute. An arrival is a clock in the destination's
-- time zone, on the day of departure there or on the day after. What happened is then exact: the
-- scheduled times plus the delays, in minutes, so that no clock that DST repeats is ever read.
--
-- Whoever may not know the future reads the *_known_at columns: the feed reports departures and
-- landings at the quarter hours, and an outcome (left or cancelled) is settled a day after the
-- scheduled departure; nobody left later than that.
WITH destinations AS (
    SELECT faa AS dest, tzone AS zone FROM raw_airports
    UNION ALL
    -- Not in the package's airports, by the IANA time zone database.
    VALUES
        ('BQN', 'America/Puerto_Rico'),
        ('PSE', 'America/Puerto_Rico'),
        ('SJU', 'America/Puerto_Rico'),
        ('STT', 'America/St_Thomas')
),
departures AS (
    SELECT
        f.*,
        zone,
        time_hour + to_minutes(minute) AS scheduled_departure,
        date_trunc('day', timezone(zone, time_hour + to_minutes(minute)))
        + to_minutes(sched_arr_time // 100 * 60 + sched_arr_time % 100) AS arrival_clock
    FROM raw_flights AS f INNER JOIN destinations USING (dest)
),
schedule AS (
    SELECT
        *,
        CASE
            WHEN timezone(zone, arrival_clock) > scheduled_departure
                THEN timezone(zone, arrival_clock)
            ELSE timezone(zone, arrival_clock + INTERVAL 1 DAY)
        END AS scheduled_arrival
    FROM departures
)
SELECT
    carrier,
    flight,
    tailnum,
    origin,
    dest,
    distance AS distance_mi,
    scheduled_departure,
    scheduled_arrival,
    scheduled_departure - INTERVAL 2 HOUR AS request_time,
    dep_delay AS departure_delay_min,
    arr_delay AS arrival_delay_min,
    dep_time IS NULL AS cancelled,
    scheduled_departure + to_minutes(dep_delay) AS departure,
    scheduled_arrival + to_minutes(arr_delay) AS arrival,
    quarter_up(scheduled_departure + to_minutes(dep_delay)) AS departure_known_at,
    quarter_up(scheduled_arrival + to_minutes(arr_delay)) AS landing_known_at,
    scheduled_departure + INTERVAL 24 HOUR AS outcome_known_at
FROM schedule
