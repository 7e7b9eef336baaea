"""What attention computes between its products, by Triton kernels."""
