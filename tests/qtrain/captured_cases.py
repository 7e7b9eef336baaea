"""Models whose training steps are captured, and a training that is: on any device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import qtrain
from qtrain import bound_weights, quantize, recipes, weight_norm
from qtrain.norms import deviations
from qtrain.norms.recipe import NormRecipe
from quantizers import (
    QTensor,
    Quantizer,
    e4m3,
    e5m2,
    ema,
    history,
    int8,
    minmax,
    per_channel,
    stochastic,
    uint8,
)

NOISY = Quantizer(format=int8, rounding=stochastic())
RECIPE = replace(
    recipes.int8(),
    forward=qtrain.Forward(input=NOISY, weight=NOISY),
    grad_input=qtrain.GradInput(grad_output=NOISY),
    grad_weight=qtrain.GradWeight(grad_output=replace(NOISY, range=ema(minmax))),
)

#: ranges from tensors before
DELAYED = qtrain.Recipe(
    name="delayed",
    forward=qtrain.Forward(
        input=Quantizer(format=e4m3, range=history(4)),
        weight=Quantizer(format=e4m3, range=history(2), granularity=per_channel()),
    ),
    grad_input=qtrain.GradInput(grad_output=Quantizer(format=e5m2, range=history(4, "last"))),
    grad_weight=qtrain.GradWeight(grad_output=Quantizer(format=e5m2, range=history(2))),
)
HINDSIGHT = qtrain.Recipe(
    name="in hindsight",
    forward=qtrain.Forward(
        input=Quantizer(format=uint8, range=ema(use="previous")),
        weight=Quantizer(format=int8, range=ema(use="previous"), granularity=per_channel()),
    ),
    grad_input=qtrain.GradInput(grad_output=replace(NOISY, range=ema(use="previous"))),
    grad_weight=qtrain.GradWeight(grad_output=replace(NOISY, range=ema(use="previous"))),
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def convnet(momentum: float | None = 0.1) -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8, momentum=momentum),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=2, bias=False),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 5),
    )


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.TransformerEncoderLayer(24, 2, 16, dropout=0.0, batch_first=True)
        self.own, self.last = qtrain.ScaledDotProductAttention(), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x.flatten(2).reshape(4, 8, 24))
        y: Tensor = self.last(self.own(x, x, x, is_causal=True).mean(1))
        return y


class Checkpointed(nn.Module):
    """Its convolutions run again in the backward pass; reentrant: see torch, None: they do not."""

    def __init__(self, reentrant: bool | None, times: int = 2) -> None:
        super().__init__()
        self.inner, self.last = convnet(), nn.Linear(5, 5)
        self.reentrant, self.times = reentrant, times

    def forward(self, x: Tensor) -> Tensor:
        def several(x: Tensor) -> Tensor:
            return sum(self.inner(x / (n + 1)) for n in range(self.times))  # type: ignore[no-any-return]

        if self.reentrant is None:
            y = several(x)
        else:
            x = x.requires_grad_(self.reentrant)
            y = checkpoint(several, x, use_reentrant=self.reentrant, preserve_rng_state=False)
        last: Tensor = self.last(y)
        return last


@dataclass(frozen=True)
class Counting:
    """A quantizer of the user's own, whose scale grows with the tensors it has seen."""

    def init_state(self, shape: Any) -> dict[str, Tensor]:
        return {"seen": torch.zeros((), dtype=torch.int64)}

    def __call__(
        self, x: Tensor, *, state: Any = None, key: Any = None, training: bool = True
    ) -> QTensor:
        state["seen"].add_(int(training))
        scale = (x.abs().amax() / 100 + state["seen"] * 2.0**-12).view([1] * x.dim())
        elements = (x / scale).round().clamp(-127, 127).to(torch.int8)
        return QTensor(elements, scale, None, int8, tuple(x.shape))


OWN = qtrain.Recipe(name="own", forward=qtrain.Forward(input=Counting(), weight=NOISY))
RANGED = NormRecipe(deviation=deviations.range_(), input=NOISY, grad_output=NOISY)

CASES: dict[str, Callable[[], nn.Module]] = {
    "int8": lambda: quantize(convnet()),
    "noise everywhere": lambda: quantize(convnet(), recipe=RECIPE),
    "range norm": lambda: quantize(convnet(), norm="range"),
    "quantized norm": lambda: quantize(convnet(), recipe=RECIPE, norm=RANGED),
    "cumulative average": lambda: quantize(convnet(momentum=None), norm="l1"),
    "banner2018": lambda: quantize(convnet(), recipe="banner2018"),
    "bf16": lambda: quantize(convnet(), recipe="bf16"),
    "fp8": lambda: quantize(convnet(), recipe="fp8-delayed"),
    "blocks": lambda: quantize(convnet(), recipe="mxfp8"),
    "blocks, rotated": lambda: quantize(convnet(), recipe="nvfp4"),
    "attention": lambda: quantize(Attention(), recipe=RECIPE),
    "bounded weights": lambda: bound_weights(quantize(convnet(), recipe=RECIPE)),
    "weight norm": lambda: weight_norm(quantize(convnet(), recipe=RECIPE), 1),
    "delayed": lambda: quantize(convnet(), recipe=DELAYED),
    "in hindsight": lambda: quantize(convnet(), recipe=HINDSIGHT),
    "own quantizer": lambda: quantize(convnet(), recipe=OWN),
    "checkpointed, reentrant": lambda: quantize(Checkpointed(True), recipe=RECIPE),
    "checkpointed": lambda: quantize(Checkpointed(False), recipe=RECIPE),
    "checkpointed, delayed": lambda: quantize(Checkpointed(False), recipe=DELAYED),
}


class Training:
    """A model in training on tensors whose contents change; `hook` makes what else steps.

    keeps_grads   their memory, from step to step
    """

    def __init__(
        self,
        model: nn.Module,
        hook: Callable[[Any, nn.Module], Any] | None = None,
        device: str = "cpu",
    ) -> None:
        self.model: Any = model.to(device)
        self.x = torch.zeros(4, 3, 8, 8, device=device)
        self.target = torch.zeros(4, dtype=torch.int64, device=device)
        self.loss, self.keeps_grads = torch.zeros(()), True
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        self.hook: Any = None if hook is None else hook(self.optimizer, model)

    def load(self, step: int) -> None:
        self.x.detach().copy_(normal(4, 3, 8, 8, seed=step))
        self.target.fill_(step % 5)

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=not self.keeps_grads)
        loss = F.cross_entropy(self.model(self.x), self.target)
        loss.backward()
        self.optimizer.step()
        self.loss = loss.detach()

    def found(self) -> dict[str, Tensor]:
        grads = {
            f"{n}.grad": p.grad for n, p in self.model.named_parameters() if p.grad is not None
        }
        every = {**self.model.state_dict(), **grads, "loss": self.loss}
        return {name: value.detach().clone() for name, value in every.items()}
