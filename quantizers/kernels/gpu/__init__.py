"""Fused quantizers for CUDA tensors: Triton kernels, with the bits of the eager path."""
