"""Products on the bf16 units of a CPU."""
