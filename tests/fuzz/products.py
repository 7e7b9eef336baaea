"""Random products: layers, matmuls and attention, their operands' layouts, formats and scales.

The oracle is the definition in qtrain/products/blocks.py.  Integer products have its bits, on any
units; those with a float lie within the bound of their sums.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtrain import Forward, GradInput, GradWeight, Matmul, Recipe, ScaledDotProductAttention
from qtrain import quantize as converted
from qtrain.products.engines.choice import ENGINES
from qtrain.products.engines.cut import CutInt8
from qtrain.products.engines.engine import Engine
from qtrain.products.engines.float_units import RoundedSums, reference
from qtrain.products.engines.matrices import MatricesInt8
from qtrain.products.engines.onednn import OneDnnInt8
from qtrain.products.engines.unfolded import UnfoldedInt8
from quantizers import (
    OFF,
    IntFormat,
    Quantizer,
    absmax,
    bf16,
    e2m1,
    e4m3,
    e5m2,
    fp16,
    kernels,
    minmax,
    per_axis,
    per_tensor,
)
from quantizers.granularity import Granularity

from ._product_oracle import Family, Geometry, Result, expected, spread

FLOATS = (bf16, fp16, e4m3, e5m2, e2m1)


@dataclass
class Case:
    """What was drawn, for the description."""

    draw: random.Random
    said: list[str] = field(default_factory=list)

    def pick(self, name: str, *options: Any) -> Any:
        chosen = self.draw.choice(options)
        self.said.append(f"{name}={chosen}")
        return chosen

    def tensor(self, name: str, *shape: int) -> Tensor:
        """Numbers in some layout; the same numbers for the same draw."""
        generator = torch.Generator().manual_seed(self.draw.getrandbits(32))
        kind = self.pick(f"{name} is", "normal", "normal", "normal", "uniform", "zero", "extreme")
        if kind == "normal":
            x = torch.randn(shape, generator=generator)
        elif kind == "uniform":
            x = torch.rand(shape, generator=generator) + self.draw.choice([-3, 0, 2])
        elif kind == "zero":
            x = torch.zeros(shape)
        else:
            x = torch.randint(0, 2, shape, generator=generator).float() * 2 - 1
        x = x * 2.0 ** self.draw.randint(-4, 3)
        layout = self.pick(f"{name} lies", "plain", "plain", "last", "expanded", "sliced", "turned")
        if layout == "last" and x.dim() in (4, 5):
            last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
            return x.contiguous(memory_format=last)
        if layout == "expanded" and x.numel():
            axis = self.draw.randrange(x.dim())
            return x.narrow(axis, 0, 1).expand(shape)
        if layout == "sliced":
            wide = torch.full((*shape[:-1], 2 * shape[-1] + 1), 9.0)
            wide[..., 1::2] = x
            return wide[..., 1::2]
        if layout == "turned":
            order = list(range(x.dim()))
            self.draw.shuffle(order)
            inverse = [order.index(i) for i in range(x.dim())]
            return x.permute(order).contiguous().permute(inverse)
        return x

    def quantizer(self, name: str, *granularities: Granularity) -> Any:
        form = self.draw.choice(("int", "int", "int", "affine", "float", "off"))
        if form == "off":
            self.said.append(f"{name}=OFF")
            return OFF
        granularity = self.draw.choice(granularities)
        if form == "float":
            format = self.draw.choice(FLOATS)
            # over the whole range of bf16 sums pass fp32's, and scales are subnormal
            scaled = format != bf16 and self.draw.random() < 0.6
            made = Quantizer(
                format=format,
                range=absmax if scaled else None,
                granularity=granularity if scaled else per_tensor,
            )
        else:
            bits = self.draw.choice([2, 3, 4, 6, 8, 8, 8, 8, 9, 12, 16])
            signed = self.draw.random() < 0.5
            made = Quantizer(
                format=IntFormat(bits, symmetric=form == "int", signed=form == "int" or signed),
                range=absmax if form == "int" else minmax,
                granularity=granularity,
            )
        self.said.append(f"{name}={made.format} {made.granularity}")
        return made

    def recipe(self, geometry: Geometry, dims: int) -> Recipe:
        """A legal one: scales vary along kept axes, or in blocks along the sum."""
        size = self.draw.choice([2, 3, 4, 5])

        def blocks(axis: int) -> Granularity:
            return Granularity(((axis, size),))

        if geometry.family == "matmul":
            keep = (per_tensor, per_axis(0), per_axis(0, 1))
            each = (per_tensor, per_axis(0, 2), blocks(1), per_axis(0))
            x, w, gi_g, gi_w = (*keep, blocks(2)), (*keep, blocks(2)), (*keep, blocks(2)), each
            gw_g, gw_x = each, each
        else:
            channel = 1 if geometry.space else dims - 1
            sample = tuple(range(1 if geometry.space else dims - 1))
            uncut = geometry.groups > 1
            x = (per_tensor, per_axis(*sample), *(() if uncut else (blocks(channel),)))
            w = (per_tensor, per_axis(0, 1), *(() if uncut else (blocks(2),)))
            gi_g = x
            gi_w = (per_tensor, per_axis(0, 2), per_axis(0, 1), *(() if uncut else (blocks(1),)))
            gw_g = gw_x = (per_tensor, per_axis(channel), blocks(0))
        forward = Forward(input=self.quantizer("input", *x), weight=self.quantizer("weight", *w))
        return Recipe(
            name="drawn",
            forward=forward,
            grad_input=GradInput(
                grad_output=self.quantizer("grad_output", *gi_g),
                weight=self.quantizer("grad_input's weight", *gi_w),
            ),
            grad_weight=GradWeight(
                grad_output=self.quantizer("grad_weight's grad_output", *gw_g),
                input=self.quantizer("grad_weight's input", *gw_x),
            ),
        )


class Oracle(torch.autograd.Function):
    """A product of activations by its definition, for what is composed of several."""

    @staticmethod
    def forward(ctx: Any, recipe: Recipe, x: Tensor, w: Tensor) -> Tensor:
        ctx.recipe = recipe
        ctx.save_for_backward(x, w)
        return _forward(MATMUL, recipe, x, w, None).value

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return None, *(r.value for r in _backward(MATMUL, ctx.recipe, *ctx.saved_tensors, g))


MATMUL = Geometry("matmul", lambda x, w: x @ w.transpose(1, 2))


def _forward(g: Geometry, recipe: Recipe, x: Tensor, w: Tensor, bias: Any) -> Result:
    """w: canonical."""
    xq, wq = recipe.forward.input(x), recipe.forward.weight(w)
    return expected(g, "forward", xq, wq, x, w, bias)


def _backward(
    g: Geometry, recipe: Recipe, x: Tensor, w: Tensor, grad: Tensor
) -> tuple[Result, Result]:
    own = recipe.grad_input.weight
    wq = (recipe.forward.weight if own is None else own)(w)
    folded = grad
    if wq.scale is not None and wq.block[1] == 1 < wq.elements.shape[1] and g.family != "matmul":
        # a scale of each output channel lies along the sum: it goes into the gradient
        factor = g.lifted("forward", "b", spread(wq, wq.scale), 0, x.dim())
        folded, wq = grad * factor, wq._replace(scale=None)
    gq = recipe.grad_input.grad_output(folded)
    grad_input = expected(g, "grad_input", gq, wq, x, w)
    own = recipe.grad_weight.input
    xq = (recipe.forward.input if own is None else own)(x)
    grad_weight = expected(g, "grad_weight", recipe.grad_weight.grad_output(grad), xq, x, w)
    return grad_input, grad_weight


def _layer(case: Case) -> tuple[nn.Module, Geometry, tuple[int, ...]]:
    """A layer, its operation and the shape of an input."""
    draw = case.draw
    kind = case.pick("layer", "Linear", "Conv", "Conv", "ConvTranspose")
    bias = draw.random() < 0.6
    if kind == "Linear":
        sizes = draw.choice([(5, 3), (17, 8), (64, 65), (1, 4), (130, 70)])
        lead = [draw.choice([1, 2, 5, 9]) for _ in range(draw.randint(1, 3))]
        case.said.append(f"sizes={sizes}, lead={lead}, bias={bias}")
        return nn.Linear(*sizes, bias=bias), Geometry("linear", F.linear), (*lead, sizes[0])
    space = draw.randint(1, 3)
    groups = draw.choice([1, 1, 2, 3])
    inside, outside = groups * draw.choice([1, 2, 4, 7]), groups * draw.choice([1, 3, 4])
    each: Callable[[Sequence[int]], list[int]] = lambda o: [draw.choice(o) for _ in range(space)]  # noqa: E731
    kernel, stride, dilation = each((1, 2, 3)), each((1, 1, 2, 3)), each((1, 1, 2))
    padding = [draw.randint(0, d * (k - 1)) for k, d in zip(kernel, dilation, strict=True)]
    size = [draw.randint(d * (k - 1) + 1, 8) for k, d in zip(kernel, dilation, strict=True)]
    options: dict[str, Any] = {"stride": tuple(stride), "padding": tuple(padding)}
    options |= {"dilation": tuple(dilation), "groups": groups}
    shape = (draw.choice([1, 2, 5]), inside, *size)
    if kind == "Conv":
        run = (F.conv1d, F.conv2d, F.conv3d)[space - 1]
        layer: Any = getattr(nn, f"Conv{space}d")
        family: Family = "conv"
    else:
        run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[space - 1]
        layer, family = getattr(nn, f"ConvTranspose{space}d"), "transposed"
        options["output_padding"] = tuple(
            draw.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True)
        )
        for n, s, p, k, d, e in zip(
            size, stride, padding, kernel, dilation, options["output_padding"], strict=True
        ):
            if (n - 1) * s - 2 * p + d * (k - 1) + e + 1 <= 0:
                options["padding"] = (0,) * space
    case.said.append(f"{inside}->{outside} kernel={kernel} {options} shape={shape}, bias={bias}")
    return (
        layer(inside, outside, tuple(kernel), bias=bias, **options),
        Geometry(family, lambda x, w: run(x, w, None, **options), groups),
        shape,
    )


def _of_layer(case: Case) -> list[tuple[str, str | None]]:
    layer, geometry, shape = _layer(case)
    weight: Any = layer.weight
    with torch.no_grad():
        own = case.tensor("weight", *weight.shape)
        layer.weight = nn.Parameter(own if own.is_contiguous() else own.clone())
        if layer.bias is not None:
            bias: Any = layer.bias
            bias.copy_(torch.linspace(-1, 1, bias.numel()))
    recipe = case.recipe(geometry, len(shape))
    if recipe.products_off:
        return []
    model: Any = converted(layer, recipe=recipe)
    alone = shape[0] == 1 and (geometry.space or len(shape) == 2)
    alone = case.pick("alone", alone, False)  # a sample without an axis of the batch
    given = case.tensor("input", *shape[alone:]).requires_grad_()
    output = model(given)
    grad = case.tensor("gradient", *output.shape)
    output.backward(grad)
    assert given.grad is not None
    x, x_grad, output = given.detach(), given.grad, output.detach()
    if alone:
        x, x_grad, grad, output = (t[None] for t in (x, x_grad, grad, output))
    w = geometry.canonical(own)
    with torch.no_grad(), kernels.eager():
        bias = None if model.bias is None else model.bias.detach()
        aside = bias if bias is None or not geometry.space else bias.view(-1, *[1] * len(shape[2:]))
        forward = _forward(geometry, recipe, x, w, aside)
        grad_input, grad_weight = _backward(geometry, recipe, x, w, grad)
    grad_weight.value = geometry.raw(grad_weight.value)
    if grad_weight.bound is not None:
        grad_weight.bound = geometry.raw(grad_weight.bound)
    found = [
        ("output", forward.differs(output)),
        ("grad_input", grad_input.differs(x_grad)),
        ("grad_weight", grad_weight.differs(model.weight.grad)),
    ]
    if bias is not None:
        axes = [i for i in range(grad.dim()) if i != (1 if geometry.space else grad.dim() - 1)]
        wide = grad.double()
        bound = (grad.numel() + 2) * 2.0**-23 * wide.abs().sum(axes)
        found.append(("grad_bias", Result(wide.sum(axes), bound).differs(model.bias.grad)))
    return found


def _of_matmul(case: Case) -> list[tuple[str, str | None]]:
    draw = case.draw
    batch, rows, inside, columns = (draw.choice([1, 2, 3, 6]) for _ in range(4))
    if draw.random() < 0.2:
        rows, inside, columns = 90, 130, 70  # for the int8 units
    case.said.append(f"matmul of {batch} x ({rows}, {inside}, {columns})")
    recipe = case.recipe(MATMUL, 3)
    if recipe.products_off:
        return []
    model = converted(Matmul(), recipe=recipe)
    x = case.tensor("input", batch, rows, inside).requires_grad_()
    other = case.tensor("other", batch, inside, columns).requires_grad_()
    output = model(x, other)
    grad = case.tensor("gradient", *output.shape)
    output.backward(grad)
    w = other.detach().transpose(1, 2)
    with torch.no_grad(), kernels.eager():
        forward = _forward(MATMUL, recipe, x.detach(), w, None)
        grad_input, grad_weight = _backward(MATMUL, recipe, x.detach(), w, grad)
    assert x.grad is not None and other.grad is not None
    return [
        ("output", forward.differs(output.detach())),
        ("grad_input", grad_input.differs(x.grad)),
        ("grad_weight", grad_weight.differs(other.grad.transpose(1, 2))),
    ]


def _of_attention(case: Case) -> list[tuple[str, str | None]]:
    """All its products of integers: what is composed of them has their bits."""
    draw = case.draw
    batch, queries, keys, size = (draw.choice([1, 2, 3, 5]) for _ in range(4))
    bits, shared = draw.choice([4, 8, 8, 12]), draw.choice([per_tensor, per_axis(0)])
    symmetric = Quantizer(format=IntFormat(bits), granularity=shared)
    affine = Quantizer(
        format=IntFormat(bits, symmetric=False, signed=False), range=minmax, granularity=shared
    )
    recipe = Recipe(
        name="drawn",
        forward=Forward(input=affine, weight=symmetric),
        grad_input=GradInput(grad_output=symmetric),
        grad_weight=GradWeight(grad_output=symmetric),
    )
    mask: Tensor | None = None
    if draw.random() < 0.6:
        generator = torch.Generator().manual_seed(draw.getrandbits(32))
        mask = torch.rand(batch, queries, keys, generator=generator) < 0.6
    case.said.append(f"attention {batch, queries, keys, size}, {bits} bits {shared}, mask={mask}")
    model = converted(ScaledDotProductAttention(), recipe=recipe)
    q, k, v = (
        case.tensor(name, batch, n, size).requires_grad_()
        for name, n in (("query", queries), ("key", keys), ("value", keys))
    )
    output = model(q, k, v, mask)
    grad = case.tensor("gradient", *output.shape)
    found = torch.autograd.grad(output, (q, k, v), grad)
    with kernels.eager():
        logits: Any = Oracle.apply(recipe, q * size**-0.5, k)  # type: ignore[no-untyped-call]
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf"))
        weights = logits.softmax(-1)
        if mask is not None:
            weights = weights.masked_fill(~mask.any(-1, keepdim=True), 0.0)
            logits.register_hook(lambda g: g.nan_to_num(0.0))  # of hidden rows
        whole: Any = Oracle.apply(recipe, weights, v.transpose(1, 2))  # type: ignore[no-untyped-call]
        wanted = torch.autograd.grad(whole, (q, k, v), grad)
    names = "output", "query's gradient", "key's gradient", "value's gradient"
    pairs = zip(names, (whole.detach(), *wanted), (output.detach(), *found), strict=True)
    return [(name, Result(want).differs(got)) for name, want, got in pairs]


class _AtEverySize(CutInt8):
    """Also of sums too short for it to be fast."""

    @staticmethod
    def terms(products: int) -> int:
        return 0


#: what serves products of every size, where the CPU has such units
UNITS: tuple[Engine, ...] = (
    OneDnnInt8(0),
    OneDnnInt8(0, shifted=2**24),
    MatricesInt8(0, 0),
    UnfoldedInt8(0),
    _AtEverySize(MatricesInt8(0, 0)),
    _AtEverySize(UnfoldedInt8(0)),
)


@contextmanager
def _served_by(engines: tuple[Engine, ...]) -> Iterator[None]:
    usual: Any = ENGINES
    before = usual["cpu"]
    usual["cpu"] = engines
    try:
        yield
    finally:
        usual["cpu"] = before


def attack(draw: random.Random) -> str | None:
    """One product, or attention, against its definition; None, or what was wrong with which."""
    case = Case(draw)
    fused = case.pick("kernels", True, True, False)
    of = draw.choice((_of_layer, _of_layer, _of_layer, _of_matmul, _of_attention))
    usual = ENGINES["cpu"]
    first = case.pick("units", "usual", "usual", "int8", "unfolded", "float64")
    engines = {
        "int8": (*UNITS, *usual),
        "unfolded": (UNITS[3], UNITS[5], *usual),
        "float64": (reference, RoundedSums()),  # of integers, and of floats
    }
    with nullcontext() if fused else kernels.eager(), _served_by(engines.get(first, usual)):
        for name, wrong in of(case):
            if wrong is not None:
                return f"{name} {wrong}: {'; '.join(case.said)}"
    return None
