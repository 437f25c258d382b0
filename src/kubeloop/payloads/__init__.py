"""The payload log: requests, responses and labels, from the event to the table."""
