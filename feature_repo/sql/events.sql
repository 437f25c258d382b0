-- One row per prediction: on the hour, for every flight that is due out in the hour that begins one hour later.
SELECT s.flight_id AS event_id,
       date_trunc('hour', s.sched_dep) - INTERVAL 1 HOUR AS event_timestamp,
       a.late::INTEGER AS label,
       a.available_at AS label_available_at,
       s.origin, s.carrier, s.dest, coalesce(s.tailnum, 'unknown') AS tailnum,
       s.sched_dep, s.distance, s.sched_minutes
FROM schedule s LEFT JOIN arrivals a USING (flight_id)
WHERE s.published_at <= date_trunc('hour', s.sched_dep) - INTERVAL 1 HOUR
