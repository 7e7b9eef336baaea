"""Transforms of both operands of a product that leave the product what it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from struct import pack
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from quantizers import kernels, random_bits, root_key
from quantizers.devices.by_device import ByDevice
from quantizers.devices.memory import fresh
from quantizers.devices.placed import Placed
from quantizers.kernels import team
from quantizers.kernels.serving import SOURCES

from .. import checks
from .gpu import rotations

Signs = Literal["fixed", "step"] | tuple[int, ...] | None


@dataclass(frozen=True)
class Hadamard:
    """x -> (x * signs) H / sqrt(size), for every `size` neighbours along a product's sum.

    H is Sylvester's Hadamard matrix; the product of two operands that are transformed alike is
    theirs, and an outlier is spread over its neighbours before they are quantized (random Hadamard
    transform: Tseng et al., arXiv 2502.20586; NVFP4: arXiv 2509.25149, appendix C).

    size    a power of two; an operand's last neighbours are filled up with zeros, in both
    signs   "fixed": one draw for all layers and steps;  "step": another for each product at every
            step, the same on every rank;  a tuple of `size` 1s and -1s;  None: no signs
    """

    size: int = 16
    signs: Signs = "fixed"

    def __post_init__(self) -> None:
        checks.integer("hadamard: size", self.size, low=2, high=2**12)
        if self.size & (self.size - 1):
            raise ValueError(f"hadamard: size: got {self.size}, need a power of two such as 16")
        if isinstance(self.signs, list):
            object.__setattr__(self, "signs", tuple(self.signs))
        own = self.signs
        if isinstance(own, tuple):
            if len(own) != self.size or any(sign not in (1, -1) for sign in own):
                raise ValueError(
                    f"hadamard: signs: got {checks.shown(own)}, need {self.size} numbers 1 or -1"
                )
        elif own is not None:
            checks.choice("hadamard: signs", own, ("fixed", "step"))

    @property
    def noisy(self) -> bool:
        """Whether it needs a key at every step."""
        return self.signs == "step"

    def __call__(self, x: Tensor, key: Tensor | None = None) -> Tensor:
        """x: (*, K), fp16, bf16, fp32 or fp64 -> (*, K rounded up to a multiple of size), fp32 or
        fp64: log2(size) additions an element, each rounded, neighbours a power of two apart, the
        nearest first, then the division.  key: 0-d int64, for signs of each step."""
        return _rotated(x, self._signs(x, key), self.size)

    def _signs(self, x: Tensor, key: Tensor | None) -> Tensor | None:
        """(size), fp32, or fp64 for fp64 x."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        if self.signs is None:
            return None
        if self.signs == "step":
            if key is None:
                raise ValueError("hadamard: signs of each step need a key: pass key=root_key(seed)")
            return _drawn(key, self.size).to(dtype)
        if torch.compiler.is_compiling():
            return _stated(self.size, self.signs).to(x.device, dtype)
        return _kept(self.size, self.signs, dtype).on(x)

    def __str__(self) -> str:
        signs = "given" if isinstance(self.signs, tuple) else self.signs
        return f"hadamard {self.size}" + ("" if signs is None else f", {signs} signs")


def _drawn(key: Tensor, size: int) -> Tensor:
    return 1 - 2 * (random_bits(key, (size,)) & 1)


def _stated(size: int, signs: Signs) -> Tensor:
    """Signs that stay, on the CPU."""
    if isinstance(signs, tuple):
        return torch.tensor(signs, device="cpu")
    return _drawn(root_key(0, size), size)


@lru_cache(maxsize=64)
def _kept(size: int, signs: Signs, dtype: torch.dtype) -> Placed:
    with torch.inference_mode(False), _disable_current_modes():
        return Placed(_stated(size, signs).to(dtype).numpy())


def _by_halves(x: Tensor, signs: Tensor | None, size: int) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    found = F.pad(wide, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size))
    if signs is not None:
        found = found * signs
    step = 1
    while step < size:
        pairs = found.unflatten(-1, (-1, 2, step))
        one, other = pairs.unbind(-2)
        found = torch.stack((one + other, one - other), -2).flatten(-3)
        step *= 2
    scaled: Tensor = (found * (1 / math.sqrt(size))).flatten(-2)
    return scaled


def _compiled(x: Tensor, signs: Tensor | None, size: int) -> Tensor | None:
    """The same in one pass; None where no kernel serves x, or its gradient is wanted."""
    source = SOURCES.get(x.dtype)
    if x.requires_grad and torch.is_grad_enabled():
        return None
    signs = x.new_ones(size, dtype=torch.float32) if signs is None else signs
    if source is None or x.numel() == 0 or not x.is_contiguous() or not kernels.serves(x, signs):
        return None
    kernel = kernels.made(f"{__package__}.compiled_hadamard", "rotated", source, size)
    if kernel is None:
        return None
    *lines, terms = x.shape
    found = fresh((*lines, -(-terms // size) * size), None, torch.float32, x)
    words = math.prod(lines), terms, x.data_ptr(), signs.data_ptr(), found.data_ptr()
    team.run(kernel.address, team.packed(*words) + pack("d", 1 / math.sqrt(size)), found.numel())
    return found


_rotated = ByDevice(_by_halves, cpu=_compiled, cuda=rotations.rotated)


def hadamard(size: int = 16, signs: Signs = "fixed") -> Hadamard:
    """The (random) Hadamard transform of a product: GradWeight(..., transform=hadamard(16))."""
    return Hadamard(size, signs)
