"""Watch a served model: read the payload log, judge windows, performance and drift, and open episodes."""
