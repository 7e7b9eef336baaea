"""A layer under torch's autograd: what a recomputed, saved or transformed forward may see."""
