"""Model versions: registered, compared, and made the champion."""
