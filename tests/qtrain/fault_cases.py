"""A small ResNet-18 on the digits, sound or with one broken quantizer: for tests of verdicts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from qtrain import Monitor, data, plain_state_dict, quantize, recipes
from qtrain.models.resnet import resnet18
from quantizers import QTensor, int8, random_bits

#: first, three in the middle, last
LAYERS = ("conv1", "layer1.0.conv2", "layer2.0.conv1", "layer3.1.conv2", "fc")
BATCH = 32


@dataclass
class Planted:
    """Symmetric int8 by one scale from the largest magnitude, and what is wrong with it.

    noise    rounds stochastically, else to the nearest
    clip     the share of the largest magnitude that the codes reach
    bias     is added to every element before it is rounded, in steps
    shared   the axis along which the noise is the same
    dead     the scale is 0
    stale    the scale is that of the first tensor it sees, times this
    """

    noise: bool = False
    clip: float = 1.0
    bias: float = 0.0
    shared: int | None = None
    dead: bool = False
    stale: float | None = None

    def init_state(self, shape: Any) -> dict[str, Tensor]:
        return {"scale": torch.zeros(()), "seen": torch.zeros((), dtype=torch.int64)}

    def __call__(
        self, x: Tensor, *, state: Any, key: Tensor | None = None, training: bool = True
    ) -> QTensor:
        scale = x.detach().abs().amax() * (self.clip / 127)
        if self.dead:
            scale = scale * 0
        if self.stale is not None:
            if state["seen"] == 0:
                state["scale"].copy_(scale * self.stale)
            state["seen"].add_(1)
            scale = state["scale"].clone()
        position = x.detach() / torch.where(scale == 0, torch.inf, scale)
        if self.noise:
            assert key is not None
            shape = list(x.shape)
            if self.shared is not None:
                shape[self.shared] = 1
            position = position + (random_bits(key, shape) / 2**32 % 1)
        else:
            position = position + 0.5
        codes = (position + self.bias).floor().clamp(-127, 127).to(torch.int8)
        return QTensor(codes, scale, None, int8)


def recipe_with(quantizer: Any, role: str, base: Any = None) -> Any:
    """int8, or a recipe, with another quantizer in the slot of a role."""
    base = base or recipes.int8()
    if role in ("input", "weight"):
        return replace(base, forward=replace(base.forward, **{role: quantizer}))
    if role == "grad_output (grad_input)":
        return replace(base, grad_input=replace(base.grad_input, grad_output=quantizer))
    return replace(base, grad_weight=replace(base.grad_weight, grad_output=quantizer))


def backward_role(layer: str) -> str:
    """The first layer has no grad_input."""
    return "grad_output (grad_weight)" if layer == "conv1" else "grad_output (grad_input)"


def batches(seed: int, steps: int, *, skip: int = 0) -> list[tuple[Tensor, Tensor]]:
    """The training batches of the digits from step `skip` on; their contrast changes, as the range
    of inputs does in training."""
    found: list[tuple[Tensor, Tensor]] = []
    split, epoch = data.load("digits").train, 0
    while len(found) < skip + steps:
        found += data.Batches(split, batch_size=BATCH, seed=seed, epoch=epoch, drop_last=True)
        epoch += 1
    contrast = [1 - 0.1 * (step % 4) for step in range(len(found))]
    return [(x * c, y) for (x, y), c in zip(found, contrast, strict=True)][skip : skip + steps]


class Healthy:
    """A network that has been trained for some steps, from which runs go on.

    options   of `quantize`
    """

    def __init__(
        self, *, seed: int = 0, steps: int = 20, device: str = "cpu", **options: Any
    ) -> None:
        torch.manual_seed(seed)
        self.seed, self.steps, self.options = seed, steps, options or {"bits": 8}
        self.device = device
        self.network = resnet18(num_classes=10, in_channels=1, stem="cifar", width=8)
        model = quantize(self.network, seed=seed, **self.options).to(device)
        self._train(model, batches(seed, steps))
        self.state = plain_state_dict(model)

    def run(
        self, overrides: dict[str, Any] | None = None, *, steps: int = 4, every: int = 1
    ) -> Monitor:
        """Train a copy on, with overrides, under a Monitor of every layer."""
        network = copy.deepcopy(self.network)
        model = quantize(network, seed=self.seed, overrides=overrides, **self.options)
        model.to(self.device).load_state_dict(self.state)
        with Monitor(model, every, layers=None) as monitor:
            self._train(model, batches(self.seed, steps, skip=self.steps))
        return monitor

    def _train(self, model: nn.Module, steps: list[tuple[Tensor, Tensor]]) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for images, labels in steps:
            images, labels = images.to(self.device), labels.to(self.device)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()


#: The faults by name: (what is broken in a quantizer that rounds with noise or without, the
#: symptoms that name it).
FAULTS: dict[str, tuple[Callable[[bool], Planted], set[str]]] = {
    "wrong clip": (lambda noise: Planted(noise, clip=0.25), {"range too narrow"}),
    "biased rounding": (lambda noise: Planted(noise, bias=0.1), {"biased rounding"}),
    "dead scale": (lambda noise: Planted(noise, dead=True), {"dead scale"}),
    "shared noise": (lambda noise: Planted(True, shared=0), {"shared noise"}),
    "stale range": (lambda noise: Planted(noise, stale=1 / 4), {"stale range"}),
}
