"""Normalisation layers: their deviations, arithmetic and passes."""
