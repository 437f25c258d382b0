-- The weather at the airport, as observed on the hour.
SELECT origin, observed_at AS event_timestamp, temp, dewp, humid, wind_speed, precip, pressure, visib
FROM weather
