-- The destination's share of late flights over the seven days before, published at 10:00 UTC.
WITH days AS (
    SELECT unnest(generate_series(date_trunc('day', min(available_at)) + INTERVAL 34 HOUR,
                                  date_trunc('day', max(available_at)) + INTERVAL 34 HOUR, INTERVAL 1 DAY)) AS day
    FROM arrivals
)
SELECT s.dest, d.day AS event_timestamp, avg(a.late::DOUBLE) AS dest_late_7d
FROM days d
JOIN arrivals a ON a.available_at <= d.day AND a.available_at > d.day - INTERVAL 7 DAY
JOIN schedule s USING (flight_id)
GROUP BY ALL
