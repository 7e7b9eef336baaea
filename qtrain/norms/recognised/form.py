"""What was found out about a norm that is no class of torch's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Called:
    """A subclass of a torch norm: its forward calls torch's function of that norm once, with the
    module's own parameters and settings, for every input that it takes."""


@dataclass(frozen=True)
class Written:
    """A module whose forward is x -> (x - mean) / sqrt(variance + eps) * (offset + scale) + shift,
    and then its children.

    sizes      of the rows along which statistics are taken
    first      whether a row is axis 1 of (N, C, H, W), not the last axes
    centered   whether the mean is subtracted, of the variance too (LayerNorm; else RMSNorm)
    scale      the name of its parameter or buffer, None: there is none
    offset     0, or 1 (Gemma's)
    shift      likewise a name
    eps        a number, or the name of the attribute that has it; None: the dtype's, as nn.RMSNorm
    behind     the names of the children that it calls one after the other, as an activation
    dtypes     (of its scale or shift, of the input) -> of the output, where it runs
    widened    whether it calls a function that CUDA's autocast computes in fp32
    """

    sizes: tuple[int, ...]
    first: bool
    centered: bool
    scale: str | None
    offset: float
    shift: str | None
    eps: float | str | None
    behind: tuple[str, ...]
    dtypes: Mapping[tuple[torch.dtype | None, torch.dtype], torch.dtype]
    widened: bool


#: or why it is neither
Found = Called | Written | str
