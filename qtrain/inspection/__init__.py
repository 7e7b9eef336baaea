"""The error of every tensor, on one batch or over a run."""
