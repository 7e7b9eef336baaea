"""From a range to a scale: what `Scale` says, one level, two levels, whether it clips."""
