-- Facts about the aircraft.
SELECT tailnum, available_at AS event_timestamp, built, seats
FROM planes
