"""Which arm a unit gets: always the same one, at random over units; a growing canary only adds units."""

import hashlib

__all__ = ["bucket", "is_canary"]


def bucket(salt: str, experiment: str, unit: str) -> float:
    """Return the place of a unit in an experiment, uniform in [0, 1).

    It comes from SHA-256 over salt, experiment and unit, so that each experiment divides the units differently.
    """
    digest = hashlib.sha256(f"{salt}:{experiment}:{unit}".encode()).digest()
    # 53 bits: what a float holds, so that 1.0 is never reached.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def is_canary(place: float, share: float) -> bool:
    """Return whether a unit is the canary's; a larger share adds units and moves none back."""
    return place < share
