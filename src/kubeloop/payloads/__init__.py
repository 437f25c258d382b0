"""The payload log: requests, answers and labels, from the event to the table."""
