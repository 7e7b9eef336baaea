"""Rotations on a GPU, by a Triton kernel."""
