"""Register model versions, compare them, and make one the champion."""
