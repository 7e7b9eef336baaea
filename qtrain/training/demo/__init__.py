"""The demonstration: where int4 breaks, why, and what mends it."""
