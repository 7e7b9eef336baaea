"""Sums in blocks on tensor cores, by a Triton kernel."""
