"""Batch-norm whose statistics run over the batches of all data-parallel ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .batch import QBatchNorm
from .module import Slots, role_slots
from .recipe import NormRecipe


class QSyncBatchNorm(QBatchNorm):
    """nn.SyncBatchNorm under a NormRecipe, on any device: in training, the batches of all ranks of
    `process_group` (default: all there are), one after the other in rank order, are normalized as
    one.  Their sizes may differ.  The gradients of scale and shift are the rank's own, to be
    averaged as DDP does; a quantizer sees its own rank's tensor alone.

    A ReLU behind it is not fused.  In evaluation, or with no other rank: QBatchNorm.  (No subclass
    of torch's, which DDP refuses on the CPU.)
    """

    process_group: Any

    @classmethod
    def slots(cls, module: nn.Module, recipe: NormRecipe) -> Slots:
        """The quantizers of a synchronised norm; it takes any number of axes, most have images.

        ValueError for an arithmetic of few bits, which is not simulated across ranks.
        """
        if recipe.arithmetic is not None:
            raise ValueError(
                f"norm.arithmetic: got {recipe.arithmetic} for a SyncBatchNorm, whose sums across "
                f"ranks are not simulated; use BatchNorm2d, or leave arithmetic out"
            )
        channels: Any = module.num_features
        return role_slots(recipe, (None, channels, None, None), (channels,))

    @property
    def _group(self) -> Any:
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return None
        group = self.process_group or dist.group.WORLD
        return group if dist.get_world_size(group) > 1 else None

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and self._group is not None:
            output: Tensor = torch.compiler.disable(super().forward)(input)
            return output
        return super().forward(input)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2 or input.shape[1] == 0:
            raise ValueError(
                f"batch-norm: got an input of shape {tuple(input.shape)}, need (N, C, ...) with "
                f"channels"
            )


class QOwnSyncBatchNorm(QSyncBatchNorm, nn.SyncBatchNorm):
    """The same behind a subclass of torch's, whose `super().forward` it is."""
