"""What a multiply-add costs by an accumulator: nanoseconds on one thread of a CPU.

    python -m experiments.accumulators.speed [--rounds 7]

CPU time of a product as a model has it, operands rounded to e4m3 (to bytes for the integer), all
accumulators and fp32's matrix product in turn, round after round; the median of the rounds and its
quartiles.  "fp32 sums" rounds the operands alone.  Matrices:

square    512 x 512 sums of 512 terms, a Linear's
narrow    32,768 x 16 sums of 144 terms, the forward of a Conv2d of 16 channels
long      16 x 144 sums of 32,768 terms, its grad_weight

Targets, of the sums: 0.5 ns; rounded at the chunks' boundaries 1.5 times fp32's product.  Writes
results/speed.json.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from tabulate import tabulate
from torch import nn

from experiments.speed.timing import cpu_seconds, run, spread
from qtrain import Forward, Matmul, Recipe, quantize
from quantizers import FloatFormat, Quantizer, accumulators, bf16, stochastic

SHAPES = {"square": (512, 512, 512), "narrow": (32768, 16, 144), "long": (16, 144, 32768)}
E6M9 = FloatFormat(6, 9)
UNITS: dict[str, accumulators.Accumulator | None] = {
    "fp32 sums": None,
    "integer(18, saturate)": accumulators.integer(18, overflow="saturate"),
    "e6m9": accumulators.sequential(E6M9),
    "e6m9, chunk=64": accumulators.sequential(E6M9, chunk=64),
    "bf16": accumulators.sequential(bf16),
    "e6m9, stochastic": accumulators.sequential(E6M9, rounding=stochastic()),
    "e6m9, compensated": accumulators.sequential(E6M9, compensated=True),
    "H100, e4m3": accumulators.get("H100", "e4m3"),
    "e6m9, chunk=64, inside=exact": accumulators.sequential(E6M9, chunk=64, inside="exact"),
}


def run_of(name: str, shape: tuple[int, int, int]) -> Callable[[], object]:
    """One product by an accumulator, or by torch's matrix product in fp32."""
    rows, columns, terms = shape
    seed = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, terms, generator=seed) for size in (rows, columns))
    model: nn.Module = Matmul()
    if name in UNITS:
        unit = UNITS[name]
        operand = Quantizer(format="int8" if isinstance(unit, accumulators.Integer) else "e4m3")
        forward = Forward(input=operand, weight=operand, accumulator=unit)
        model = quantize(model, recipe=Recipe(name="own", forward=forward))
    return torch.no_grad()(lambda: model(a, b.T))


def measured(rounds: int) -> dict[str, dict[str, list[float]]]:
    """{accumulator: {matrices: the nanoseconds of each round}}."""
    runs = {
        (name, shape): run_of(name, sizes)
        for name in ("fp32, a @ b.T", *UNITS)
        for shape, sizes in SHAPES.items()
    }
    found: dict[str, dict[str, list[float]]] = {name: {} for name, _ in runs}
    for (name, shape), times in cpu_seconds(runs, rounds).items():
        count = math.prod(SHAPES[shape])
        found[name][shape] = [round(taken / count * 1e9, 4) for taken in times]
    return found


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """Markdown: a row an accumulator."""
    rows = [
        [name, *(spread(each[shape]).text(digits=2) for shape in SHAPES)]
        for name, each in found.items()
    ]
    return tabulate(rows, ["ns a multiply-add", *SHAPES], "github", disable_numparse=True)


def main(arguments: list[str] | None = None) -> None:
    run(__file__, __doc__ or "", "ns", measured, table, arguments)


if __name__ == "__main__":
    main()
