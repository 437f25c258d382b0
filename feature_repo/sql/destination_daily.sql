-- The destination's share of late flights over the seven days before, published at 10:00 UTC.
-- Every arrival counts in the seven publications after it is known.
SELECT s.dest,
       date_trunc('day', a.available_at - INTERVAL 10 HOUR - INTERVAL 1 MICROSECOND) + INTERVAL 34 HOUR + to_days(n)
           AS event_timestamp,
       avg(a.late::DOUBLE) AS dest_late_7d
FROM arrivals a JOIN schedule s USING (flight_id), (SELECT unnest(range(7))::INTEGER AS n)
WHERE s.published_at <= a.available_at
GROUP BY ALL
