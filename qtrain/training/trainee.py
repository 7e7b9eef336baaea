"""One of the models that train side by side: its optimizer, its step, its evaluation."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..inspection.row import SUMS
from ..inspection.step import Loss, cross_entropy, logits_of
from ..weights.updates.low_precision import LowPrecision, low_precision_
from ..weights.updates.named import find
from ..weights.updates.update import Update
from .captured import Captured
from .checkpoint import CheckpointError, load_buffers, load_model, unsaved_buffers
from .config import TrainConfig
from .given import optimizer as given_optimizer
from .given.reference import is_reference
from .nonfinite import NonFiniteError, first_nonfinite
from .optimizer_state import load_optimizer, optimizer_state


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
    if is_reference(config.optimizer):
        return given_optimizer.made(model, config)
    groups = parameter_groups(model, config)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


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


_STATE = ("model", "optimizer", "sums")  # and, where there are any, buffers


class Branch:
    """A model in training.

    key, label      "baseline" or "quantized", and what tables call it
    passes          a step's forward and backward, as a CUDA graph where there is one
    update          the hold of its optimizer's low precision, if any
    loss_sum, samples, seconds   of the running epoch; seconds without evaluation
    """

    def __init__(self, key: str, label: str, model: nn.Module, config: TrainConfig) -> None:
        self.key = key
        self.label = label
        self.model = model
        self.optimizer = build_optimizer(model, config)
        optimizer_state(self.optimizer)  # what cannot be kept is refused before the first step
        self.update: LowPrecision | None = None
        if config.update is not None and key == "quantized":
            update = find(config.update)
            _rehearse(model, update, config)
            self.update = low_precision_(self.optimizer, update, model=model, seed=config.seed)
        self._config = config
        wanted = config.capture and config.monitor is None  # which sees no replayed step
        self.passes = Captured(model, self._passes, wanted=wanted)
        self.reset_sums()

    def reset_sums(self) -> None:
        """Begin an epoch."""
        self.loss_sum, self.samples, self.seconds = 0.0, 0, 0.0

    def step(self, inputs: Tensor, targets: Tensor, *, step: int, rate: float) -> dict[str, float]:
        """One training step: its loss and gradient norm.

        NonFiniteError before the update where one of them is not finite.
        """
        start = time.perf_counter()
        self.model.train()
        seed_step(self._config.seed, step)
        figures = self.passes(inputs, targets)
        value, norm = figures.tolist()  # the one wait for the device in a step
        if not (math.isfinite(value) and math.isfinite(norm)):
            with torch.no_grad():
                for buffer, before in self._buffers:
                    buffer.copy_(before)
            raise self._fault(inputs, targets, step, value)
        if (most := self._config.clip_grad) is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), most, figures[1])
        self._set_rates(rate)
        self.optimizer.step()
        self.loss_sum += value * len(targets)
        self.samples += len(targets)
        self.seconds += time.perf_counter() - start
        return {"loss": value, "grad_norm": norm}

    def _set_rates(self, rate: float) -> None:
        """Each group's own rate, that before the first step, times what the schedule makes of the
        run's; a constant one's."""
        whole = self._config.lr
        for group in self.optimizer.param_groups:
            if "initial_lr" not in group:  # torch's schedulers' name
                group["initial_lr"] = float(group["lr"])  # once: of a GPU's tensor it waits
            own = group["initial_lr"]
            if not group.get("constant", False):
                group["lr"] = rate if own == whole else own * (rate / whole)

    def _passes(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Forward and backward: the loss and the norm of all gradients, fp32, shape (2,)."""
        self._buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        loss = self._loss(inputs, targets)
        scale = self._config.loss_scale
        (loss if scale == 1 else loss * scale).backward()
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        if scale != 1:
            torch._foreach_div_(grads, scale)
        norm = nn.utils.get_total_norm(grads)
        return torch.stack([loss.detach().float(), norm.float()])

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        smoothing = self._config.label_smoothing
        return cross_entropy(self.model(inputs), targets, label_smoothing=smoothing)

    @property
    def scaled_loss(self) -> Loss | None:
        """The loss of (output, targets) as the backward pass has it; None: the cross-entropy."""
        scale = self._config.loss_scale
        return None if scale == 1 else lambda out, targets: cross_entropy(out, targets) * scale

    def _fault(self, inputs: Tensor, targets: Tensor, step: int, value: float) -> NonFiniteError:
        """Run the step again, watched."""
        self.optimizer.zero_grad(set_to_none=True)
        seed_step(self._config.seed, step)
        scale = self._config.loss_scale
        place = first_nonfinite(self.model, lambda: self._loss(inputs, targets) * scale)
        layer, role = place or ("model", "gradient norm (every value is finite, their norm is not)")
        advice = "Try a lower lr, clip_grad or more warmup" + ", a lower loss_scale" * (scale > 1)
        if role in SUMS.values():
            advice = (
                "Its exact sums are finite: take an accumulator of more exponent bits "
                "(qtrain.required_bits finds the narrowest)"
            )
        return NonFiniteError(
            f"{self.label}: stopped at step {step} with loss {value:.4g}; the first non-finite "
            f"value is in layer {layer!r}, role {role}. {advice}",
            layer=layer,
            role=role,
            step=step,
        )

    @torch.no_grad()
    def evaluate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, Tensor]:
        """Mean cross-entropy (no smoothing), and which targets are met, bool on the CPU: of
        samples (N,), or of the tokens of windows (N, T)."""
        self.model.eval()
        losses, right = [], []
        for inputs, targets in batches:
            logits = logits_of(self.model(inputs))
            losses.append(cross_entropy(logits, targets, reduction="sum").double())
            right.append(logits.argmax(dim=-1) == targets)
        correct = torch.cat(right).cpu()
        return float(torch.stack(losses).sum()) / correct.numel(), correct

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint needs, as plain data."""
        unsaved = unsaved_buffers(self.model)
        return {
            **({"buffers": unsaved} if unsaved else {}),
            "model": self.model.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            "sums": [self.loss_sum, self.samples, self.seconds],
        }

    def load_state_dict(self, state: object, *, where: str) -> None:
        """Restore what `state_dict` gave; CheckpointError where it does not fit."""
        if not isinstance(state, dict) or {*state, "buffers"} != {*_STATE, "buffers"}:
            raise CheckpointError(f"{where}: got no state of a model in training")
        sums = state["sums"]
        if not isinstance(sums, list) or [type(v) for v in sums] != [float, int, float]:
            raise CheckpointError(f"{where}: damaged sums of the running epoch")
        if not all(math.isfinite(value) and value >= 0 for value in sums):
            raise CheckpointError(f"{where}: sums of the running epoch are {sums}, need 0 or more")
        load_model(self.model, state["model"], where=where)
        load_buffers(self.model, state.get("buffers"), where=where)
        hooks = self._config.hooks if self.key == "quantized" else ()
        changing = bool(hooks) or is_reference(self._config.optimizer)
        load_optimizer(self.optimizer, state["optimizer"], where=where, changing=changing)
        self.loss_sum, self.samples, self.seconds = sums


def _rehearse(model: nn.Module, update: Update, config: TrainConfig) -> None:
    """ValueError for an update that does not fit the optimizer's states, before a run has begun."""
    twin = copy.deepcopy(model)
    optimizer = build_optimizer(twin, config)
    low_precision_(optimizer, update, model=twin)
    for p in twin.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()


def seed_step(seed: int, step: int) -> None:
    """torch's random numbers as a function of (seed, step): nothing to restore on resume."""
    digest = hashlib.blake2b(f"{seed} {step}".encode(), digest_size=4).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))  # its CPU generator takes 32 bits
