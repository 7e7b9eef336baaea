"""quantize a model; what was done, what stayed outside."""
