"""Which norm over rows a module of no torch class computes, if it is LayerNorm's or RMSNorm's.

Tried in fp64, against torch's functions, on rows from 1 down to 1e-6, at which eps and its place
show, with means of their own; compared are the output and the gradients of the input and of the
parameters, within 1e-5 of each row's largest, for those that compute in fp32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .calls import Recorded
from .form import Written
from .probe import alone, axes, brief, layouts, other_inputs, own_tensors, replica, settings

Forward = Callable[[Tensor], Tensor]
#: the usual ones, for a module without an attribute that has it; None: the dtype's
_EPS = (1e-5, 1e-6, 1e-12, 1e-8, 1e-3, 1e-7, 1e-9, 1e-10, 0.0, None)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_NO_NORM = "it computes neither LayerNorm nor RMSNorm"


def form(module: nn.Module) -> Written | str:
    """What a module computes, or why that is not known; raises nothing."""
    others = other_inputs(module)
    if others:
        return f"its forward takes more than an input ({', '.join(others)})"
    tensors = own_tensors(module)
    if len(tensors) > 2 or not all(t.is_floating_point() for t in tensors.values()):
        return f"its own tensors are more than a scale and a shift ({', '.join(tensors)})"
    sizes = _sizes(module, list(tensors.values()))
    if sizes is None:
        return "the size of its rows is not known"
    try:
        with alone():
            return _form(module, sizes)
    except Exception as error:
        return f"its forward could not be tried ({brief(error)})"


def _sizes(module: nn.Module, tensors: list[Tensor]) -> tuple[int, ...] | None:
    """The sizes of a row: its tensors', without axes of 1, or those it names."""
    found = {tuple(size for size in t.shape if size != 1) or (1,) for t in tensors}
    if not tensors:
        named: Any = getattr(module, "normalized_shape", None)
        found = {(named,) if isinstance(named, int) else tuple(named or ())}
    sizes = found.pop()
    return sizes if sizes and not found else None


def _form(module: nn.Module, sizes: tuple[int, ...]) -> Written | str:
    error: Exception | None = None
    ran = False
    for first in (False, True) if len(sizes) == 1 else (False,):
        try:
            found = _at(module, sizes, first)
        except Exception as raised:  # with rows at the other place it may run
            error = error or raised
            continue
        if found is not None:
            return replace(found, dtypes=_dtypes(module, found))
        ran = True
    return _NO_NORM if ran or error is None else f"its forward could not be tried ({brief(error)})"


def _at(module: nn.Module, sizes: tuple[int, ...], first: bool) -> Written | None:
    """The form that its runs have on rows of this place."""
    own = replica(module)
    runs = []
    error: Exception | None = None
    with Recorded() as recorded:
        for shape, training in itertools.product(_inputs(sizes, first), (False, True)):
            try:
                run = _Run(own.train(training), partial(_own_forward, own), *shape)
                runs.append((run, shape))
            except (RuntimeError, ValueError, IndexError) as raised:  # of this number of axes
                error = raised
    if not runs:
        raise error or ValueError("no input")
    for one in _forms(own, sizes, first, bool(recorded.calls)):
        expected = partial(_of_torch, own, one)
        if _close(runs[0][0].output, expected(runs[0][0].x), one) and all(
            run.agrees(_Run(own, expected, *shape), one) for run, shape in runs
        ):
            return one
    return None


def _inputs(sizes: tuple[int, ...], first: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and gradients of what it may take: images, or any number of axes, in each layout."""
    for dims in (3,) if first else (1, 2, 3):
        x, grad = _input(sizes, dims, first)
        yield from ((one, grad) for one in layouts(x))


def _input(sizes: tuple[int, ...], dims: int, first: bool) -> tuple[Tensor, Tensor]:
    """Rows of all magnitudes behind so many axes, and a gradient for the output."""
    random = torch.Generator().manual_seed(1)
    shape = axes(dims, *sizes)
    rows = torch.randn((*shape, *sizes), generator=random, dtype=torch.float64)
    magnitudes = torch.logspace(0, -6, math.prod(shape), dtype=torch.float64)
    rows = (rows + 0.5) * magnitudes.view(*shape, *[1] * len(sizes))
    grad = torch.randn(rows.shape, generator=random, dtype=torch.float64)
    return (rows.movedim(-1, 1), grad.movedim(-1, 1)) if first else (rows, grad)


class _Run:
    """What comes of an input: the output, and the gradients of the input and the own tensors."""

    def __init__(self, own: nn.Module, forward: Forward, x: Tensor, grad: Tensor) -> None:
        self.x = x.clone().requires_grad_()
        output = forward(self.x)
        self.leaves = {name: t for name, t in own_tensors(own).items() if t.requires_grad}
        self.output = output.detach()
        self.grads = torch.autograd.grad(
            output, [self.x, *self.leaves.values()], grad.to(output.dtype), allow_unused=True
        )

    def agrees(self, other: _Run, one: Written) -> bool:
        """Whether another run came to the same, each row for itself."""
        (mine, *more), (theirs, *others) = self.grads, other.grads
        if mine is None or theirs is None or not _close(self.output, other.output, one):
            return False
        if not _close(mine, theirs, one):
            return False
        return all(
            a is b if a is None or b is None else _near(a, b, b.abs().amax())
            for a, b in zip(more, others, strict=True)
        )


def _close(a: Tensor, b: Tensor, one: Written) -> bool:
    over = [1] if one.first else list(range(b.dim() - len(one.sizes), b.dim()))
    return _near(a, b, b.abs().amax(over, keepdim=True))


def _near(a: Tensor, b: Tensor, unit: Tensor) -> bool:
    """NaN is near nothing."""
    return bool(((a.double() - b).abs() <= 1e-5 * unit).all())


def _own_forward(own: nn.Module, x: Tensor) -> Tensor:
    """ValueError where it writes into its buffers, or returns another shape."""
    before = {name: tensor.detach().clone() for name, tensor in own_tensors(own).items()}
    output = type(own).forward(own, x)
    if not isinstance(output, Tensor) or output.shape != x.shape:
        raise ValueError(f"it returns {tuple(getattr(output, 'shape', ()))} of {tuple(x.shape)}")
    if not all(torch.equal(before[name], tensor) for name, tensor in own_tensors(own).items()):
        raise ValueError("it writes into its buffers")
    return output


def _forms(
    module: nn.Module, sizes: tuple[int, ...], first: bool, called: bool
) -> Iterator[Written]:
    """All that it may be."""
    named = [k for k, v in settings(module).items() if type(v) is float]
    named.sort(key=lambda name: "eps" not in name)
    roles: list[tuple[str | None, float, str | None]] = [(None, 0.0, None)]
    tensors = list(own_tensors(module))
    roles += [(scale, offset, None) for scale in tensors for offset in (0.0, 1.0)]
    roles += [(None, 0.0, shift) for shift in tensors]
    pairs = itertools.permutations(tensors, 2)
    roles += [(scale, offset, shift) for scale, shift in pairs for offset in (0.0, 1.0)]
    behind = tuple(name for name, child in module.named_children())
    for role, eps, centered in itertools.product(roles, [*named, *_EPS], (False, True)):
        yield Written(sizes, first, centered, *role, eps, behind, {}, called)


def _of_torch(own: nn.Module, one: Written, x: Tensor) -> Tensor:
    """What torch's function of the form makes of it, with the module's own tensors."""
    rows = x.movedim(1, -1) if one.first else x
    scale, shift = (
        None if name is None else getattr(own, name).view(one.sizes)
        for name in (one.scale, one.shift)
    )
    scale = scale if scale is None else scale + one.offset
    eps = getattr(own, one.eps) if isinstance(one.eps, str) else one.eps
    if one.centered:
        eps = torch.finfo(torch.float64).eps if eps is None else eps
        output = F.layer_norm(rows, one.sizes, scale, shift, eps)
    else:
        output = F.rms_norm(rows, one.sizes, scale, eps)
        output = output if shift is None else output + shift
    output = output.movedim(-1, 1) if one.first else output
    for name in one.behind:
        output = getattr(own, name)(output)
    return output


def _dtypes(
    module: nn.Module, one: Written
) -> dict[tuple[torch.dtype | None, torch.dtype], torch.dtype]:
    """The output's dtype by those of its parameters and of the input."""
    found: dict[tuple[torch.dtype | None, torch.dtype], torch.dtype] = {}
    x, _ = _input(one.sizes, 3, one.first)
    for own in _DTYPES if one.scale or one.shift else (None,):
        made = replica(module).to(own)
        for dtype in _DTYPES:
            try:
                found[own, dtype] = type(made).forward(made, x.to(dtype)).dtype
            except RuntimeError:
                continue  # as torch's functions of other dtypes
    return found
