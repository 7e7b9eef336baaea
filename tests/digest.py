"""The bits of twenty training steps of small networks, under every kind of recipe and layer.

    python tests/digest.py            compare with tests/digest.json
    python tests/digest.py --write    keep today's

Code that is moved or rewritten without a change of bits keeps every line of it, on one machine:
weights, gradients, and the state of each quantized layer, in eager mode; in a compiled step the
outputs of integer products.  Other machines, and other releases of torch, sum in another order.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qtrain import Forward, GradInput, GradWeight, Matmul, Recipe, models, quantize
from quantizers import (
    Granularity,
    IntFormat,
    Quantizer,
    Scale,
    e4m3,
    e5m2,
    e8m0,
    kernels,
    stochastic,
)

FILE = Path(__file__).with_suffix(".json")
STEPS = 20


def digest(tensors: dict[str, Tensor]) -> str:
    """Of the bits, names and dtypes; one NaN is as another."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if tensor.is_floating_point():
            tensor = torch.where(tensor.isnan(), torch.full_like(tensor, float("nan")), tensor)
        bits = tensor.detach().contiguous().view(-1).view(torch.uint8)
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(bits.numpy().tobytes())
    return found.hexdigest()[:16]


def trained(model: nn.Module, *shape: int, autocast: bool = False, last: bool = False) -> str:
    """Twenty steps of SGD on noise; the digest of all that the model holds then, and of its
    output in evaluation."""
    torch.manual_seed(1)
    x, target = torch.randn(shape), None
    if last:
        x = x.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    around = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    for step in range(STEPS):
        optimizer.zero_grad()
        with around:
            output = model(x * (1 + step / STEPS))
        target = torch.randn(output.shape) if target is None else target
        (output.float() - target).square().mean().backward()
        optimizer.step()
    tensors = dict(model.state_dict())
    tensors |= {f"{n}.grad": p.grad for n, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        tensors["output"] = model.eval()(x)
    return digest(tensors)


class Text(nn.Module):
    """A Transformer of one layer on vectors."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.first = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.norm, self.head = norm(32), nn.Linear(32, 5)
        self.scores, self.mixed = Matmul(), Matmul()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        return self.head(self.mixed(self.scores(x, x.transpose(1, 2)), x))


def mixed() -> Recipe:
    """fp8 gradients, 4-bit affine inputs, weights of 12 bits."""
    return Recipe(
        name="mixed",
        forward=Forward(
            input=Quantizer(format=IntFormat(4, signed=False, symmetric=False)),
            weight=Quantizer(format=IntFormat(12)),
        ),
        grad_input=GradInput(grad_output=Quantizer(format=e5m2, rounding=stochastic())),
        grad_weight=GradWeight(grad_output=Quantizer(format=e4m3)),
    )


def blocks(length: int) -> Recipe:
    """Blocks of 32 with scales of powers of two, as the MX formats."""

    def quantizer(axis: int) -> Quantizer:
        return Quantizer(
            format=e4m3, granularity=Granularity(((axis, length),), rest="each"), scale=Scale(e8m0)
        )

    return Recipe(
        name="blocks",
        forward=Forward(input=quantizer(-1), weight=quantizer(2)),
        grad_input=GradInput(grad_output=quantizer(-1), weight=quantizer(1)),
        grad_weight=GradWeight(grad_output=quantizer(0), input=quantizer(0)),
    )


def _resnet(
    recipe: Recipe | str, *, autocast: bool = False, last: bool = False, **settings: Any
) -> str:
    net = models.get("resnet20", num_classes=10, in_channels=1, image_size=8)
    model = quantize(net, recipe=recipe, **settings)
    layout = torch.channels_last if last else torch.contiguous_format
    return trained(model.to(memory_format=layout), 8, 1, 8, 8, autocast=autocast, last=last)


def _text(
    recipe: Recipe | str,
    norm_kind: Callable[[int], nn.Module] = nn.LayerNorm,
    *,
    autocast: bool = False,
    **settings: Any,
) -> str:
    model = quantize(Text(norm_kind), recipe=recipe, **settings)
    return trained(model, 4, 8, 32, autocast=autocast)


def layers(*modules: nn.Module, recipe: Recipe | str = "int8", **settings: Any) -> nn.Module:
    return quantize(nn.Sequential(*modules), recipe=recipe, **settings)


def _eager(make: Callable[[], str]) -> str:
    with kernels.eager():
        return make()


def _compiled() -> str:
    """Outputs and gradients of inputs of integer products, in a compiled graph."""
    found = {}
    torch.manual_seed(2)
    for name, layer, shape in (
        ("linear", nn.Linear(40, 24), (9, 40)),
        ("convolution", nn.Conv2d(8, 12, 3, stride=2, groups=2), (3, 8, 9, 9)),
    ):
        model = torch.compile(layers(layer))
        for step in range(3):
            x = torch.randn(shape).requires_grad_()
            output = model(x)
            output.backward(torch.randn(output.shape))
            assert x.grad is not None
            found |= {f"{name} {step} output": output, f"{name} {step} grad_input": x.grad}
    return digest(found)


CASES: dict[str, Callable[[], str]] = {
    **{f"resnet20 {r}": partial(_resnet, r) for r in ("int8", "banner2018", "bf16", "fp16")},
    **{f"resnet20 {bits} bits": partial(_resnet, "int8", bits=bits) for bits in (2, 4, 12, 16)},
    **{
        f"resnet20 int8, norm {norm}": partial(_resnet, "int8", norm=norm)
        for norm in ("l2", "l1", "linf", "topk", "range")
    },
    "resnet20 banner2018, norm l1": partial(_resnet, "banner2018", norm="l1"),
    "resnet20 mixed": lambda: _resnet(mixed()),
    "resnet20 overrides": partial(
        _resnet, "int8", overrides={"*conv1": 4, "fc": None, "*layer2*": "bf16"}
    ),
    "resnet20 int8 range, kernels off": partial(_eager, partial(_resnet, "int8", norm="range")),
    "resnet20 banner2018, kernels off": partial(_eager, partial(_resnet, "banner2018")),
    "resnet20 int8, autocast": partial(_resnet, "int8", autocast=True),
    "resnet20 banner2018, autocast": partial(_resnet, "banner2018", autocast=True),
    "resnet20 int8 range, channels last": partial(_resnet, "int8", norm="range", last=True),
    **{f"transformer {r}": partial(_text, r) for r in ("int8", "banner2018", "bf16", "fp16")},
    "transformer mixed": lambda: _text(mixed()),
    "transformer int8, norm l1": partial(_text, "int8", norm="l1"),
    "transformer int8, RMSNorm range": partial(_text, "int8", nn.RMSNorm, norm="range"),
    "transformer int8, autocast": partial(_text, "int8", autocast=True),
    "transformer int8, kernels off": partial(_eager, partial(_text, "int8")),
    "blocks": lambda: trained(
        layers(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), recipe=blocks(32)), 32, 64
    ),
    "attention": lambda: trained(
        layers(nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0), recipe="banner2018"), 4, 8, 32
    ),
    "groups": lambda: trained(
        layers(nn.Conv2d(8, 16, 3, groups=4), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16)),
        4, 8, 9, 9,
    ),
    "groups, zero point and padding": lambda: trained(
        layers(nn.Conv2d(8, 16, 3, groups=2, padding=2, dilation=2, padding_mode="circular")),
        4, 8, 9, 9,
    ),
    "transposed": lambda: trained(
        layers(
            nn.ConvTranspose2d(6, 8, 3, stride=2, output_padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 4, 2, groups=2),
        ),
        2, 6, 5, 5,
    ),
    "1d": lambda: trained(
        layers(nn.Conv1d(6, 8, 5, padding=2), nn.BatchNorm1d(8), nn.Conv1d(8, 4, 3), norm="range"),
        4, 6, 20,
    ),
    "3d": lambda: trained(
        layers(nn.Conv3d(3, 6, 3), nn.GroupNorm(2, 6), nn.Conv3d(6, 4, 2, stride=2), norm="l1"),
        2, 3, 8, 8, 8,
    ),
    "compiled": _compiled,
}  # fmt: skip


def machine() -> dict[str, str]:
    """What the bits of sums may depend on."""
    cpu = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "cpu": cpu, "processor": platform.machine()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"keep today's in {FILE.name}")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)  # threads divide sums, too
    found, kept = {}, json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}
    for name, make in CASES.items():
        start = time.perf_counter()
        torch.manual_seed(0)
        found[name] = make()
        same = found[name] == kept.get("digests", {}).get(name)
        note = "" if same else "  differs" if name in kept.get("digests", {}) else "  new"
        print(f"{found[name]}  {name} ({time.perf_counter() - start:.1f} s){note}", flush=True)
    if asked.write:
        text = json.dumps({"machine": machine(), "digests": found}, indent=2) + "\n"
        FILE.write_text(text, "utf-8")
        return 0
    if kept.get("machine") != machine():
        print(f"kept on {kept.get('machine')}, this is {machine()}: bits may differ")
    return int(found != kept.get("digests"))


if __name__ == "__main__":
    sys.exit(main())
