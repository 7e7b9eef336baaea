"""Learning rates as a pure function of the step, so that resuming needs no state."""

from __future__ import annotations

import math

from .config import TrainConfig


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The rate of step `step` (from 0): linear warm-up, then cosine to 0, steps, or constant."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "step":
        passed = sum(step >= epoch * steps_per_epoch for epoch in config.milestones)
        return config.lr * (0.1 if config.gamma is None else config.gamma) ** passed
    total = config.epochs * steps_per_epoch
    # a warm-up as long as the run leaves no cosine: the step < warmup branch took every step
    progress = (step - warmup) / (total - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
