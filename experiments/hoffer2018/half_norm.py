"""Experiment 4: batch-norm in FP16, with the L2 and the L1 deviation, at every scale of its input.

    python -m experiments.hoffer2018.half_norm --data-dir PATH [--scale paper]

Every operation of the norms is rounded to FP16, forward and backward; their sums run in FP16 too
(arms fp16/fp16) or in FP32 (fp16/fp32).  Partial sums of a mean are halved, so that a long sum does
not leave FP16 where its mean would not; "plain sums" are the other kind.  Products are FP32.

At scale 2^k the convolutions' initial weights, and with them every norm's input, are 2^k times as
large, their rate 4^k times, their decay 4^-k times, and the norms' eps with the statistic it is
added to: in exact arithmetic the same training, step by step.  So what differs is the arithmetic.
The loss is multiplied by 1024 before the backward pass and the gradients divided by it after, as
FP16 gradients need.

Writes results/half_norm-<scale>.json and .svg.  The second panel is one norm alone, Gaussian
input: the signal-to-noise ratio of its output and of its gradient against the same in FP64.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from experiments.harness import images
from experiments.harness.experiment import Experiment, Job
from experiments.harness.loop import Curve, Setting
from experiments.harness.report import finals, table
from experiments.harness.runs import execute
from qtrain import Arithmetic, NormRecipe, deviations, quantize
from quantizers import FloatFormat, fp16, fp32

SCALES = (-12, -8, 0, 4, 6, 8, 12)
DEVIATIONS = {"l2": deviations.l2(), "l1": deviations.l1()}
LOSS_SCALE = 1024.0
EPS = 1e-5


def recipe(deviation: deviations.Deviation, accumulator: FloatFormat, sums: Any) -> NormRecipe:
    """A norm in FP16."""
    arithmetic = Arithmetic(format=fp16, accumulator=accumulator, sums=sums)
    return NormRecipe(deviation=deviation, arithmetic=arithmetic)


HALVED = {
    f"{name} 2^{k}": (recipe(deviation, fp16, "halved"), k)
    for name, deviation in DEVIATIONS.items()
    for k in SCALES
}
OTHERS = {
    f"{name} {text}": (recipe(deviation, accumulator, sums), 0)
    for name, deviation in DEVIATIONS.items()
    for text, accumulator, sums in (("plain sums", fp16, "plain"), ("fp16/fp32", fp32, "plain"))
}
RECIPES: Mapping[str, tuple[NormRecipe, int]] = {**HALVED, **OTHERS}


def run(job: Job) -> Curve:
    """One arm."""
    dataset = images.load(job)
    model = images.resnet(job, dataset)
    scale = 1.0
    if job.arm != "fp32":
        norm, k = RECIPES[job.arm]
        scale = 2.0**k
        rescale_(model, scale, norm.deviation)
        model = quantize(model, recipe="fp32", norm=norm)
    return images.fit(
        model,
        dataset,
        job,
        groups=lambda model: groups(model, job.setting, scale),
        loss_scale=LOSS_SCALE,
    )


@torch.no_grad()
def rescale_(model: nn.Module, scale: float, deviation: deviations.Deviation) -> None:
    """Convolutions of `scale` times the size, and an eps that grows with the statistic."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.mul_(scale)
        elif isinstance(module, nn.BatchNorm2d):
            module.eps = EPS * (scale**2 if deviation.name == "l2" else scale)


def groups(model: nn.Module, setting: Setting, scale: float) -> list[dict[str, Any]]:
    """The rates and decays under which scaled convolutions train as unscaled ones do."""
    convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    classifier = list(model.get_submodule("fc").parameters())
    held = {id(p) for p in (*convolutions, *classifier)}
    norms = [p for p in model.parameters() if id(p) not in held]
    return [
        {
            "params": convolutions,
            "lr": setting.rate * scale**2,
            "weight_decay": setting.decay / scale**2,
        },
        {"params": classifier, "weight_decay": setting.decay},
        {"params": norms, "weight_decay": 0.0},
    ]


def alone(norm: NormRecipe, k: int) -> dict[str, float]:
    """SQNR in dB, output and gradient, of one norm of 64 x 16 x 16 Gaussian elements a channel."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, 16, 16, generator=generator).half().double() * 2.0**k
    grad = torch.randn(x.shape, generator=generator).half().double()
    eps = EPS * (4.0**k if norm.deviation.name == "l2" else 2.0**k)
    found = []
    for own in (norm, NormRecipe(deviation=norm.deviation)):
        layer: nn.Module = nn.Sequential(nn.BatchNorm2d(4, affine=False, eps=eps))
        if not own.is_off:
            layer = quantize(layer, recipe="fp32", norm=own)
        inputs = (x.float() if own is norm else x).requires_grad_()
        output = layer.to(inputs.dtype)(inputs)
        output.backward(grad.to(output.dtype))
        assert inputs.grad is not None
        found.append((output.detach().double(), inputs.grad.double()))
    return {
        name: sqnr(exact, rounded)
        for name, rounded, exact in zip(("output", "grad_input"), *found, strict=True)
    }


def sqnr(exact: Tensor, rounded: Tensor) -> float:
    """In dB; 0 where nothing is left of the signal, or a number is not finite."""
    noise = (rounded - exact).square().sum()
    ratio = float(exact.square().sum() / noise)
    return max(0.0, 10 * math.log10(ratio)) if math.isfinite(ratio) and ratio > 0 else 0.0


EXPERIMENT = Experiment(
    name="half_norm",
    arms={
        "fp32": "torch's batch-norm",
        **{arm: str(norm) for arm, (norm, _) in RECIPES.items()},
    },
    reference="fp32",
    # the poster's legend: L2 with FP32, L1 with FP16 sums; it names no scale and no order of sums
    paper={"fp32": 66.8, "l1 2^0": 66.3, "l2 fp16/fp32": 12.0},
    published="ResNet-18, ImageNet, top-1 in %, read off the poster (L2: its last, epoch 19)",
    settings={
        "here": Setting(
            network="resnet10", width=4, images=2000, epochs=6, milestones=(4,), every=6,
            batch=50, rate=0.1, decay=5e-4,
        ),
        "paper": Setting(
            network="resnet18", epochs=120, milestones=(30, 60, 90), batch=256, rate=0.1,
            decay=1e-4,
        ),
    },
    run=run,
)  # fmt: skip


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Accuracy against the scale, and a norm alone, to SVG."""
    figure = Figure(figsize=(11, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    trained, single = figure.subplots(1, 2)
    for i, (name, deviation) in enumerate(DEVIATIONS.items()):
        points = {k: list(finals(result, f"{name} 2^{k}").values()) for k in SCALES}
        # a run that failed has no accuracy: it is drawn at 0
        means = [statistics.fmean(points[k]) if points[k] else 0.0 for k in SCALES]
        trained.plot(SCALES, means, marker="o", color=f"C{i}", label=f"{name} in FP16")
        for k in SCALES:
            trained.scatter([k] * len(points[k]), points[k], s=8, color=f"C{i}", alpha=0.5)
        errors = [alone(recipe(deviation, fp16, "halved"), k) for k in SCALES]
        for role, dash in (("output", "-"), ("grad_input", "--")):
            values = [error[role] for error in errors]
            single.plot(SCALES, values, dash, color=f"C{i}", label=f"{name}, {role}")
    reference = list(finals(result, "fp32").values())
    if reference:
        trained.axhline(statistics.fmean(reference), color="grey", label="L2 in FP32")
    trained.set_ylabel("top-1 in % (0: not finite)")
    single.set_ylabel("SQNR of one norm in dB (0: nothing left)")
    trained.set_xlabel("log2 of the factor on the convolutions' weights")
    single.set_xlabel("log2 of the deviation of its Gaussian input")
    for axes in (trained, single):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main(arguments: list[str] | None = None) -> None:
    args = images.parser(__doc__ or "", __file__).parse_args(arguments)
    result = execute(EXPERIMENT, args)
    print(table(result))
    plot(result, args.output / f"half_norm-{args.scale}.svg")


if __name__ == "__main__":
    main()
