"""How a norm's Triton kernels are launched: the tiles of x, the parts of its channels."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor

from quantizers.kernels.gpu import launcher
from quantizers.kernels.gpu.device import OPTIONS, bound, power_of_two

from ..memory import Layout

STATISTICS = "qtrain.norms.kernels.gpu.triton_statistics"
FINISH = "qtrain.norms.kernels.gpu.triton_finish"
CHANNELS = "qtrain.norms.kernels.gpu.triton_channels"
PASSES = "qtrain.norms.kernels.gpu.triton_passes"
#: elements of a tile, of passes and of statistics; the most channels of one; elements of a channel
#: at once where its runs are shorter than a line of the cache is worth
PASS, TILE, ACROSS, SHORT = 4096, 2048, 64, 64
#: tiles that a program reads before it needs them, of the many that it sums
AHEAD = 3
#: places of a tensor's elements, those of a tile beyond its end included, are int32
MOST = 2**31 - 2**24
#: about how many programs read x for its statistics: what a large GPU runs at once, as each ends
#: with sums over its threads, which take as long as several tiles
PROGRAMS = 396


class Tiles(NamedTuple):
    """x's layout, elements of a channel, and the elements and channels of a tile."""

    layout: Layout
    elements: int
    rows: int
    columns: int

    @property
    def across(self) -> int:
        """How many tiles lie side by side."""
        return -(-self.layout.channels // self.columns)

    @property
    def programs(self) -> int:
        """One for each tile."""
        return -(-self.elements // self.rows) * self.across

    def shape(self, *sizes: int) -> dict[str, Any]:
        """As the kernels are told; sizes: besides the runs', the multiples of which matter."""
        aligned = math.gcd(self.layout.width, 16, *sizes) if self.layout.planes else 1
        return {
            "PLANES": self.layout.planes, "ALIGNED": aligned, "ROWS": self.rows,
            "COLUMNS": self.columns,
        }  # fmt: skip

    def read(self, cut: Parts) -> dict[str, Any]:
        """As the kernels are told that read the parts of `cut`."""
        return {**self.shape(*cut.sizes), "AHEAD": AHEAD}


@lru_cache(maxsize=4096)
def tiles(layout: Layout, length: int | None = None, size: int = TILE) -> Tiles:
    """Those of a tensor, of `size` elements, whose channels are read in chunks of `length`."""
    count = layout.runs * layout.width // layout.channels
    most = power_of_two(count if length is None else length)
    if layout.planes:  # the elements of a channel are neighbours
        rows = min(most, size if layout.width >= SHORT else size // 8)
        return Tiles(layout, count, rows, min(power_of_two(layout.channels), size // rows))
    columns = min(power_of_two(layout.channels), ACROSS)
    return Tiles(layout, count, min(most, size // columns), columns)


class Parts(NamedTuple):
    """The chunks of each channel, the first `longer` of size + 1 elements, from `start` on, each in
    parts of `steps` tiles."""

    start: int
    size: int
    longer: int
    chunks: int
    parts: int
    steps: int

    @property
    def slots(self) -> int:
        """Of each channel."""
        return self.chunks * self.parts

    @property
    def sizes(self) -> tuple[int, ...]:
        """What all chunks start and end at multiples of."""
        return self.start, self.size, self.longer and 1

    @property
    def words(self) -> tuple[Any, ...]:
        """As the kernels are told."""
        return self.start, self.size, self.longer, self.parts, bound(self.steps)

    def added(self, channels: int, chunked: bool = False) -> tuple[int, dict[str, Any]]:
        """Programs of a kernel that reads all parts, and how it is told so; chunked: it minds the
        chunks."""
        size, chunks = power_of_two(self.parts), power_of_two(self.chunks)
        columns = max(1, min(1024 // (size * chunks), power_of_two(channels) // 128))
        shape = {"CHUNKS": chunks} if chunked else {}
        shape |= {"PARTS": size, "COLUMNS": columns, "num_warps": 4}
        return -(-channels // columns), shape


@lru_cache(maxsize=4096)
def parts(of: Tiles, start: int, size: int, longer: int, chunks: int) -> Parts:
    """So many that the GPU is busy, and no more."""
    blocks = -(-(size + (longer > 0)) // of.rows)
    wanted = max(1, PROGRAMS // (of.across * chunks))
    steps = -(-blocks // min(blocks, wanted))
    return Parts(start, size, longer, chunks, -(-blocks // steps), steps)


def whole(of: Tiles) -> Parts:
    """All elements as one chunk."""
    return parts(of, 0, of.elements, 0, 1)


def launched(
    module: str, name: str, x: Tensor, programs: int, *words: Any, **constants: Any
) -> None:
    """A kernel of that name on x's device, of tensors, then numbers, then constants."""
    everything = {"num_warps": 8, **constants, **OPTIONS}
    launcher.launched(module, name, (programs, 1, 1), *words, **everything)
