"""One network's training: a setting, a loop with hooks around its epochs, and the curve of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from experiments.harness import ranks


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is trained, on how much, and how; what an experiment adds is in `more`.

    network, width   as the experiment understands them
    images           of the training set, the first of each class alike; None: all
    milestones       epochs at which the rate drops by `gamma`
    warmup           epochs in which the rate rises linearly from 0
    clip             largest gradient norm, or None
    every            epochs between evaluations; the last epoch always ends with one
    """

    network: str
    epochs: int
    batch: int
    rate: float
    width: int = 64
    images: int | None = None
    milestones: Sequence[int] = ()
    gamma: float = 0.1
    warmup: int = 0
    momentum: float = 0.9
    decay: float = 0.0
    clip: float | None = None
    every: int = 1
    more: Mapping[str, Any] | None = None

    def drops(self, epoch: int) -> int:
        """How often the rate has dropped by then."""
        return sum(epoch >= milestone for milestone in self.milestones)

    def factor(self, epoch: int, done: float) -> float:
        """What the rate is multiplied by when the part `done` of an epoch (from 0) is done."""
        if epoch + done < self.warmup:
            return (epoch + done) / self.warmup
        return self.gamma ** self.drops(epoch)


class Epoch(Protocol):
    """The batches of an epoch, each what the loss takes."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A run's numbers.

    epochs   one mapping an epoch: "epoch" (from 1), "train_loss", and where it was evaluated what
             the evaluation gave
    failed   why the run ended early, such as "epoch 3, step 17: the loss is nan"; None: it did not
    more     what else an experiment keeps, as plain data
    """

    epochs: list[dict[str, float]]
    failed: str | None = None
    more: Mapping[str, Any] | None = None


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    setting: Setting,
    *,
    batches: Callable[[int], Epoch],
    loss: Callable[[nn.Module, Any], Tensor],
    evaluate: Callable[[nn.Module], Mapping[str, float]],
    before_epoch: Callable[[int], None] = lambda epoch: None,
    after_epoch: Callable[[int], None] = lambda epoch: None,
    tick: Callable[[], None] = lambda: None,
    loss_scale: float = 1.0,
) -> Curve:
    """Train in place until the setting's last epoch, or until a number is not finite.

    Under several ranks every one takes its own batches, and the losses are their mean.

    optimizer     its groups' rates are multiplied by the setting's factor, but for a group with
                  "constant": True
    batches       those of an epoch, from 0
    loss          of a batch, 0-d
    evaluate      metrics by name, of a model in eval mode, without gradients
    before_epoch, after_epoch   called with the epoch, from 0
    tick          called after every epoch
    loss_scale    what the loss is multiplied by before the backward pass, and the gradients divided
                  by after it
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    rows: list[dict[str, float]] = []
    for epoch in range(setting.epochs):
        before_epoch(epoch)
        model.train()
        total, own = 0.0, batches(epoch)
        for step, batch in enumerate(own):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                constant = group.get("constant", False)
                group["lr"] = rate * (1 if constant else setting.factor(epoch, step / len(own)))
            optimizer.zero_grad(set_to_none=True)
            value = loss(model, batch)
            # the ranks' mean, so that all of them end where one does
            found = ranks.total(value.detach() / ranks.count()).item()
            if not math.isfinite(found):
                where = f"epoch {epoch + 1}, step {step + 1}"
                return Curve(epochs=rows, failed=f"{where}: the loss is {found}")
            (value * loss_scale).backward()
            if loss_scale != 1:
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.grad.div_(loss_scale)
            if setting.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), setting.clip)
            optimizer.step()
            total += found
        row = {"epoch": epoch + 1, "train_loss": total / len(own)}
        after_epoch(epoch)
        if (epoch + 1) % setting.every == 0 or epoch + 1 == setting.epochs:
            model.eval()
            with torch.no_grad():
                row |= evaluate(model)
        wrong = [name for name, value in row.items() if not math.isfinite(value)]
        if wrong:
            return Curve(epochs=rows, failed=f"epoch {epoch + 1}: {wrong[0]} is {row[wrong[0]]}")
        # six digits: what is written is what is compared
        rows.append({name: float(f"{value:.6g}") for name, value in row.items()})
        tick()
    return Curve(epochs=rows)
