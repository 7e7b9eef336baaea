"""How a batch-norm's input lies in memory, and the blocks of it in which kernels add."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantizers import kernels
from quantizers.kernels import team
from quantizers.kernels.serving import SOURCES

from ..samples import Cut

#: elements that are added in fp32
BLOCK = 128
#: at most so many neighbours in a plane are added side by side
LANES = 64


def is_dense(x: Tensor, planes: bool) -> bool:
    """Whether x's runs are planes of one channel (contiguous), or rows (channels-last)."""
    return x.is_contiguous() if planes else x.movedim(1, -1).is_contiguous()


class Layout(NamedTuple):
    """runs of `width` adjacent elements, planes of one channel each or else rows of all."""

    planes: bool
    runs: int
    width: int
    channels: int


def layout_of(x: Tensor) -> Layout | None:
    """That of x (N, C, *S), rows where it is both, as (N, C); None where it has neither."""
    channels, count = x.shape[1], x.numel()
    planes = count > x.shape[0] * channels and x.is_contiguous()
    if not planes and not is_dense(x, False):
        return None
    width = count // (x.shape[0] * channels) if planes else channels
    return Layout(planes, count // width, width, channels)


def by_plane(x: Tensor) -> Tensor:
    """The same memory as (N, C, S)."""
    return x.view(x.shape[0], x.shape[1], -1)


class Blocks(NamedTuple):
    """Runs of consecutive elements of each channel whose elements are added up in fp32, in lanes.

    starts   their first elements, and the end of the last
    each     how many a chunk of the cut has
    """

    starts: Tensor
    each: int
    lanes: int


@lru_cache(maxsize=1024)
def in_blocks(planes: bool, width: int, cut: Cut) -> Blocks:
    """The blocks of a cut, for channels whose runs are so wide."""
    start, number, length = cut
    turns = -(-width // LANES)
    lanes = min(-(-width // turns), length) if planes else 1
    each = max(1, -(-length // (BLOCK * lanes)))
    with torch.device("cpu"):  # whose memory the kernels read
        inner = torch.arange(each + 1) * length // each
        chunks = start + length * torch.arange(number).unsqueeze(1)
        end = torch.tensor([start + number * length])
    return Blocks(torch.cat([(chunks + inner[:-1]).flatten(), end]), each, lanes)


def made(name: str, *numbers: int) -> Any:
    """The pass of that name for these numbers, or None."""
    return kernels.made("qtrain.norms.kernels.compiled_passes", name, *numbers)


def run(kernel: Any, count: int, *words: int | Tensor) -> None:
    """A kernel over `count` elements, told numbers and the addresses of tensors."""
    addresses = [word if isinstance(word, int) else word.data_ptr() for word in words]
    team.run(kernel.address, team.packed(*addresses), count)


def statistics(
    kind: int,
    x: Tensor,
    layout: Layout,
    cut: Cut,
    results: int,
    mean: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    grad: Tensor | None = None,
    *numbers: int,
) -> tuple[list[Tensor], int] | None:
    """So many results of a kind of STATISTICS, (blocks, channels, lanes) each, of the cut's blocks
    and how many a chunk has; None where there is no kernel.

    numbers: whether there is a ReLU, and what is rounded to before it.
    """
    planes, _, width, channels = layout
    sources = SOURCES[x.dtype], planes, 0 if grad is None else SOURCES[grad.dtype]
    file = "qtrain.norms.kernels.compiled_statistics"
    kernel = kernels.made(file, "statistics", kind, *sources, *(numbers or (False, 0)))
    if kernel is None:
        return None
    blocks = in_blocks(planes, width, cut)
    shape = blocks.starts.numel() - 1, channels, blocks.lanes
    out = [mean.new_empty(shape) for _ in range(results)]
    scale, shift = (mean if t is None else t for t in (scale, shift))
    run(
        kernel, x.numel(), channels, width, blocks.lanes, x, blocks.starts, shape[0],
        0 if grad is None else grad, mean, scale, shift, *out, *[0] * (4 - results),
    )  # fmt: skip
    return out, blocks.each


def added(partial: Tensor) -> Tensor:
    """(blocks, channels, lanes) -> (channels,), in fp64, rounded once."""
    return partial.sum((0, 2), dtype=torch.float64).float()
