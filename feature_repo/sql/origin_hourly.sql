-- The airport on the hour: how many departures are scheduled next, and how late the last ones were.
-- A flight that has not left 15 minutes after its time is late, which is known at that moment.
WITH legs AS (
    SELECT flight_id, origin, published_at, date_trunc('hour', sched_dep) AS due, sched_dep + INTERVAL 15 MINUTE AS known
    FROM schedule
), next AS (
    SELECT origin, due - to_hours(ahead) AS hour, count(*)::DOUBLE AS departures_next_2h
    FROM legs, (SELECT unnest([1, 2]) AS ahead)
    WHERE published_at <= due - to_hours(ahead)
    GROUP BY ALL
), gone AS (
    SELECT origin, known, (dep_delay IS NULL OR dep_delay >= 15)::DOUBLE AS late,
           coalesce(cancelled, FALSE)::DOUBLE AS cancelled
    FROM legs LEFT JOIN departures d ON d.flight_id = legs.flight_id AND d.available_at <= known
    WHERE published_at <= known
), recent AS (
    -- Every leg counts on the three full hours after its state is known.
    SELECT origin, date_trunc('hour', known - INTERVAL 1 MICROSECOND) + to_hours(after) AS hour,
           avg(late) FILTER (after = 1) AS origin_late_1h,
           avg(late) AS origin_late_3h, avg(cancelled) AS origin_cancelled_3h
    FROM gone, (SELECT unnest([1, 2, 3]) AS after)
    GROUP BY ALL
)
SELECT origin, hour AS event_timestamp, coalesce(departures_next_2h, 0) AS departures_next_2h,
       origin_late_1h, origin_late_3h, origin_cancelled_3h
FROM next FULL JOIN recent USING (origin, hour)
