"""Norms that are no class of torch's, as the libraries have them, each beside torch's own norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtrain import NormRecipe
from qtrain.norms.arithmetic import Arithmetic
from qtrain.norms.deviations import l1, l2, linf, none, range_, topk
from quantizers import Quantizer, bf16, fp16, int8, per_axis, stochastic

#: of every kind that rows have
RECIPES = [
    *(NormRecipe(deviation=d) for d in (l1(), l1(times=0.5), linf(), topk(2), range_(), none())),
    NormRecipe(deviation=l2(), activation=bf16),
    NormRecipe(deviation=range_(), arithmetic=Arithmetic(format=fp16)),
    NormRecipe(
        deviation=range_(),
        input=Quantizer(format=int8),
        weight=Quantizer(format=int8, granularity=per_axis(0)),
        bias=Quantizer(format=int8),
        grad_output=Quantizer(format=int8, rounding=stochastic()),
    ),
]


class BatchNormAct2d(nn.BatchNorm2d):
    """A norm and its activation in one, as timm has it: torch's forward written out."""

    def __init__(self, size: int, **kwargs: Any) -> None:
        super().__init__(size, **kwargs)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                factor = 1.0 / float(self.num_batches_tracked)
        batch = self.training or (self.running_mean is None and self.running_var is None)
        use = not self.training or self.track_running_stats
        x = F.batch_norm(
            x,
            self.running_mean if use else None,
            self.running_var if use else None,
            self.weight,
            self.bias,
            batch,
            factor,
            self.eps,
        )
        out: Tensor = self.act(self.drop(x))
        return out


class SuperBatchNorm(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return torch.tanh(super().forward(input))


class SyncBatchNormAct(nn.SyncBatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


class LayerNorm2d(nn.LayerNorm):
    """A layer norm over channels, as timm and torchvision have it."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class LayerNormFp32(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class GroupNorm1(nn.GroupNorm):
    def __init__(self, size: int) -> None:
        super().__init__(1, size)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps))


class InstanceNormAct(nn.InstanceNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(super().forward(input))


class PlainLayerNorm(nn.LayerNorm):
    """A subclass with nothing of its own."""


class LlamaRMSNorm(nn.Module):
    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.variance_epsilon = eps

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        x = x.to(torch.float32)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * x.to(dtype)


class T5LayerNorm(LlamaRMSNorm):
    """An RMSNorm, whatever its name says."""

    def forward(self, x: Tensor) -> Tensor:
        variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(variance + self.variance_epsilon)
        if self.weight.dtype in (torch.float16, torch.bfloat16):
            x = x.to(self.weight.dtype)
        return self.weight * x


class GemmaRMSNorm(nn.Module):
    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(size))

    def _norm(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x: Tensor) -> Tensor:
        return (self._norm(x.float()) * (1.0 + self.weight.float())).type_as(x)


class RmsNorm2d(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.eps, self.normalized_shape = 1e-6, (size,)
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + self.eps)
        return x * self.weight.reshape(1, -1, 1, 1)


class RmsNormAct2d(RmsNorm2d):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.drop(super().forward(x)))
        return out


class WrittenLayerNorm2d(nn.Module):
    """SAM's."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        centered = x - x.mean(1, keepdim=True)
        x = centered / torch.sqrt(centered.pow(2).mean(1, keepdim=True) + self.eps)
        return self.gamma[:, None, None] * x + self.beta[:, None, None]


class FunctionalLayerNorm(nn.Module):
    """nanoGPT's, without a bias."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(size)), None

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.weight.shape, self.weight, self.bias, 1e-5)


class BareLayerNorm(nn.Module):
    """OLMo's."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.normalized_shape = (size,)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.normalized_shape, None, None, eps=1e-5).to(x.dtype)


def _same(x: Tensor) -> Tensor:
    return x


def _last(x: Tensor) -> Tensor:
    return x.movedim(1, -1)


def _first(x: Tensor) -> Tensor:
    return x.movedim(-1, 1)


class Case(NamedTuple):
    """A norm, torch's of the same numbers but its scale and shift, what stands before and behind
    it, and how its parameters are called: its scale is `offset` more than the parameter."""

    make: Callable[[], Any]
    torchs: Callable[[], Any]
    shape: tuple[int, ...]
    before: Callable[[Tensor], Tensor] = _same
    behind: Callable[[Tensor], Tensor] = _same
    names: tuple[str, ...] = ("weight", "bias")
    offset: float = 0.0


IMAGE, TEXT = (4, 6, 3, 5), (3, 4, 6)
CALLED = {
    "batch": Case(lambda: BatchNormAct2d(6), lambda: nn.BatchNorm2d(6), IMAGE, behind=torch.relu),
    "batch-cumulative": Case(
        lambda: BatchNormAct2d(6, momentum=None), lambda: nn.BatchNorm2d(6, momentum=None), IMAGE,
        behind=torch.relu,
    ),
    "batch-untracked": Case(
        lambda: BatchNormAct2d(6, track_running_stats=False),
        lambda: nn.BatchNorm2d(6, track_running_stats=False), IMAGE, behind=torch.relu,
    ),
    "batch-super": Case(
        lambda: SuperBatchNorm(6), lambda: nn.BatchNorm1d(6), (5, 6), behind=torch.tanh
    ),
    "sync": Case(
        lambda: SyncBatchNormAct(6), lambda: nn.SyncBatchNorm(6), IMAGE, behind=torch.relu
    ),
    "layer-2d": Case(lambda: LayerNorm2d(6), lambda: nn.LayerNorm(6), IMAGE, _last, _first),
    "layer-fp32": Case(lambda: LayerNormFp32(6), lambda: nn.LayerNorm(6), TEXT),
    "layer-plain": Case(lambda: PlainLayerNorm(6), lambda: nn.LayerNorm(6), TEXT),
    "group": Case(lambda: GroupNorm1(6), lambda: nn.GroupNorm(1, 6), IMAGE, behind=F.silu),
    "instance": Case(
        lambda: InstanceNormAct(6, affine=True), lambda: nn.InstanceNorm2d(6, affine=True), IMAGE,
        behind=torch.relu,
    ),
}  # fmt: skip
WRITTEN = {
    "llama": Case(lambda: LlamaRMSNorm(6, 1e-3), lambda: nn.RMSNorm(6, eps=1e-3), TEXT),
    "t5": Case(lambda: T5LayerNorm(6), lambda: nn.RMSNorm(6, eps=1e-6), TEXT),
    "gemma": Case(lambda: GemmaRMSNorm(6), lambda: nn.RMSNorm(6, eps=1e-6), TEXT, offset=1.0),
    "rms-2d": Case(lambda: RmsNorm2d(6), lambda: nn.RMSNorm(6, eps=1e-6), IMAGE, _last, _first),
    "rms-2d-act": Case(
        lambda: RmsNormAct2d(6), lambda: nn.RMSNorm(6, eps=1e-6), IMAGE, _last,
        lambda x: torch.relu(_first(x)),
    ),
    "layer-2d-written": Case(
        lambda: WrittenLayerNorm2d(6), lambda: nn.LayerNorm(6, eps=1e-6), IMAGE, _last, _first,
        names=("gamma", "beta"),
    ),
    "layer-functional": Case(
        lambda: FunctionalLayerNorm(6), lambda: nn.LayerNorm(6, bias=False), TEXT
    ),
    "layer-bare": Case(
        lambda: BareLayerNorm(6), lambda: nn.LayerNorm(6, elementwise_affine=False), TEXT
    ),
}  # fmt: skip
CASES = {**CALLED, **WRITTEN}


def pair(case: Case) -> tuple[Any, Any, Tensor]:
    """The norm, torch's of the same scale and shift, away from 1 and 0, and an input."""
    random = torch.Generator().manual_seed(3)
    own, torchs = case.make(), case.torchs()
    with torch.no_grad():
        for name, theirs in zip(case.names, ("weight", "bias"), strict=True):
            parameter = getattr(own, name, None)
            if parameter is not None:
                parameter.add_(torch.rand(parameter.shape, generator=random))
                getattr(torchs, theirs).copy_(parameter + (case.offset if name == "weight" else 0))
    return own, torchs, torch.randn(case.shape, generator=random) * 2 + 0.5
