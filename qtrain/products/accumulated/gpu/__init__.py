"""Sums of accumulators, term by term, by Triton kernels."""
