"""A layer under torch's autograd: what a recomputed or saved forward may see."""
