"""How much: a number with a prediction interval a row."""
