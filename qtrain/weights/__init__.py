"""Weights from step to step: bounded, decayed, corrected, tracked; updates in low precision."""
