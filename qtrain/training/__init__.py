"""Runs: their configuration, steps, checkpoints, folders, comparison."""
