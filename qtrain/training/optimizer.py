"""The optimizer of a run: SGD or AdamW, norms and biases exempt from weight decay, and its rate."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .config import TrainConfig


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, object]]:
    """Two groups: parameters that decay, and those with less than two axes (norms, biases)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if config.decay_all or p.ndim >= 2]
    exempt = [p for p in trained if not config.decay_all and p.ndim < 2]
    groups: list[dict[str, object]] = [{"params": decayed, "weight_decay": config.weight_decay}]
    if exempt:
        groups.append({"params": exempt, "weight_decay": 0.0})
    return groups


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer over `model`'s parameters; its rate is set anew at every step."""
    groups = parameter_groups(model, config)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` for the next step of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def gradient_norm(model: nn.Module) -> Tensor:
    """The 2-norm of all gradients together, 0-d; non-finite where any element is."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(grads)


def clip_gradients(model: nn.Module, norm: Tensor, largest: float | None) -> None:
    """Scale all gradients in place so that their norm is at most `largest`."""
    if largest is not None:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), largest, norm)


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
