-- The carrier's share of late flights on the day before, published at 10:00 UTC (early morning in New York).
SELECT s.carrier, publication AS event_timestamp, avg(a.late::DOUBLE) AS carrier_late_1d
FROM schedule s JOIN arrivals a USING (flight_id),
     LATERAL (SELECT s.sched_local[:10]::DATE::TIMESTAMP AT TIME ZONE 'UTC' + INTERVAL 34 HOUR AS publication)
WHERE a.available_at <= publication AND s.published_at <= publication
GROUP BY ALL
