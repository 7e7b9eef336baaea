"""Exact products of integers by Triton kernels, on tensor cores."""
