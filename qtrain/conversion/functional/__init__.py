"""Products that a forward computes by functions: each call a layer of its own."""
