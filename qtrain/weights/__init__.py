"""Norms of weights: bounded, decayed, corrected, tracked."""
