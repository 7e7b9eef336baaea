"""Torch's functions of products, each as a converted module."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from qtrain import Matmul, ScaledDotProductAttention


class Functions:
    """What a twin calls in place of torch's functions."""

    def _made(self, layer: nn.Module, kind: str) -> nn.Module:
        """The converted layer of the next call."""
        raise NotImplementedError

    def _weighted(self, layer: nn.Module, kind: str, weight: Tensor, bias: Tensor | None) -> Any:
        """That of a weight which the caller holds."""
        raise NotImplementedError

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
        with torch.random.fork_rng(devices=[]):  # dropout's
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
        return self._weighted(layer, "linear", weight, bias)(x)

    def matmul(self, a: Tensor, b: Tensor) -> Any:
        if b.dim() == 2 and _is_weight(b):
            return self.linear(a, b.t())
        if a.dim() == 2 and _is_weight(a) and b.dim() > 1:
            return self.linear(b.mT, a).mT.contiguous()
        left, right = torch.atleast_2d(a), b if b.dim() > 1 else b[:, None]
        found = self._made(Matmul(), "matmul")(left, right)
        found = found if b.dim() > 1 else found.squeeze(-1)
        return found if a.dim() > 1 else found.squeeze(-1 if b.dim() == 1 else -2)

    def addmm(
        self, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: Any = 1, alpha: Any = 1
    ) -> Any:
        return self.baddbmm(input, mat1, mat2, beta=beta, alpha=alpha)

    def baddbmm(
        self, input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: Any = 1, alpha: Any = 1
    ) -> Any:
        x, a, b = input, batch1, batch2
        if x.dim() == 1 and b.dim() == 2 and _is_weight(b) and alpha == beta == 1:
            return self.linear(a, b.t(), x)
        found = self.matmul(a, b)
        found = found if alpha == 1 else alpha * found
        return found if beta == 0 else found + (x if beta == 1 else beta * x)

    def tensordot(self, a: Tensor, b: Tensor, dims: Any = 2) -> Any:
        if isinstance(dims, int):
            dims = list(range(a.dim() - dims, a.dim())), list(range(dims))
        first, second = ([x % n.dim() for x in d] for n, d in zip((a, b), dims, strict=True))
        left, right = list("abcdefgh"[: a.dim()]), list("ijklmnop"[: b.dim()])
        for i, j in zip(first, second, strict=True):
            right[j] = left[i]
        kept = [x for x in left if x not in right] + [x for x in right if x not in left]
        return self.einsum(f"{''.join(left)},{''.join(right)}->{''.join(kept)}", a, b)

    def bilinear(self, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
        half = self.linear(b, weight.flatten(0, 1)).unflatten(-1, tuple(weight.shape[:2]))
        found = self.matmul(half, a[..., None]).squeeze(-1)
        return found if bias is None else found + bias

    def einsum(self, equation: str, *operands: Any) -> Any:
        """Of operands that have no axis twice, from the left to the right."""
        if len(operands) == 1:
            operands = tuple(operands[0])
        named, _, result = equation.replace(" ", "").partition("->")
        names = named.split(",")
        if len(names) == 2 and _is_weight(operands[0]) and not _is_weight(operands[1]):
            names, operands = names[::-1], operands[::-1]
        if "..." in equation or len(operands) < 2 or "->" not in equation:
            raise NotImplementedError(equation)
        first, found = names[0], operands[0]
        for number, (other, b) in enumerate(zip(names[1:], operands[1:], strict=True), 1):
            kept = result if number == len(names) - 1 else "".join(
                x for x in dict.fromkeys(first + other)
                if x in result or x in "".join(names[number + 1 :])
            )  # fmt: skip
            found, first = self._contracted(first, other, kept, found, b), kept
        return found

    def _contracted(self, a: str, b: str, kept: str, x: Tensor, y: Tensor) -> Any:
        summed = [n for n in a if n in b and n not in kept]
        if not summed:
            return torch.einsum(f"{a},{b}->{kept}", x, y)
        size = dict(zip(a + b, x.shape + y.shape, strict=True))
        both = [n for n in a if n in b and n in kept]
        left, right = [n for n in a if n not in b], [n for n in b if n not in a]
        weight = not both and _is_weight(y)
        x = x.permute([a.index(n) for n in both + left + summed])
        y = y.permute([b.index(n) for n in both + summed + right])
        sizes = [math.prod(size[n] for n in part) for part in (both, left, summed, right)]
        x, y = x.reshape(*sizes[:3]), y.reshape(sizes[0], *sizes[2:])
        if weight:
            found = self.linear(x[0], y[0].t())
        else:
            found = self._made(Matmul(), "matmul")(x, y)
        letters = both + left + right
        return found.reshape([size[n] for n in letters]).permute([letters.index(n) for n in kept])

    def attention(self, *args: Any, **kwargs: Any) -> Any:
        return self._made(ScaledDotProductAttention(), "attention")(*args, **kwargs)

    def conv(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
        padding: Any = 0, dilation: Any = 1, groups: int = 1,
    ) -> Any:  # fmt: skip
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[weight.dim() - 3]
        with torch.random.fork_rng(devices=[]):
            layer = kind(
                weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), stride,
                padding, dilation, groups, bias is not None,
            )  # fmt: skip
        return self._weighted(layer, "conv", weight, bias)(x)

    def conv_transpose(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
        padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
    ) -> Any:  # fmt: skip
        kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[weight.dim() - 3]
        with torch.random.fork_rng(devices=[]):
            layer = kind(
                weight.shape[0], weight.shape[1] * groups, tuple(weight.shape[2:]), stride,
                padding, output_padding, groups, bias is not None, dilation,
            )  # fmt: skip
        return self._weighted(layer, "conv_transpose", weight, bias)(x)


def _is_weight(x: Tensor) -> bool:
    return isinstance(x, nn.Parameter) or isinstance(x._base, nn.Parameter)
