-- Weather at the three airports, hour by hour.
-- Event time: the start of the hour. Created time: its end, when it can have been measured.
-- One wind of over a thousand miles an hour is a slip in the records and becomes null.
SELECT
    origin,
    time_hour AS event_time,
    time_hour + INTERVAL 1 HOUR AS created_time,
    temp AS temperature_f,
    dewp AS dew_point_f,
    humid AS humidity_pct,
    wind_dir AS wind_direction_deg,
    CASE WHEN wind_speed < 200 THEN wind_speed END AS wind_speed_mph,
    CASE WHEN wind_gust < 200 THEN wind_gust END AS wind_gust_mph,
    precip AS precipitation_in,
    pressure AS pressure_mbar,
    visib AS visibility_mi
FROM raw_weather
