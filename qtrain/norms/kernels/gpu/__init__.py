"""The Triton passes of norms."""
