"""Products by Triton kernels, on tensor cores: an engine a folder."""
