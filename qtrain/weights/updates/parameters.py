"""The parameters of an optimizer, by name, and whether their updates can be in low precision."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from quantizers import root_key

from ...names import some
from .update import Update, cut_shape


def named(optimizer: Optimizer, model: nn.Module | None) -> dict[str, Tensor]:
    """Every parameter of the optimizer's groups by its name: in the model, else as the optimizer
    was given it, else its number in the groups.

    ValueError for one that the model has not.
    """
    own = [p for group in optimizer.param_groups for p in group["params"]]
    given = [n for group in optimizer.param_groups for n in group.get("param_names", ())]
    if model is None:
        names = given if len(given) == len(own) else [str(i) for i in range(len(own))]
        return dict(zip(names, own, strict=True))
    places = {id(p): name for name, p in model.named_parameters()}
    missing = [tuple(p.shape) for p in own if id(p) not in places]
    if missing:
        raise ValueError(
            f"model: lacks {len(missing)} of the optimizer's {len(own)} parameters (of shape "
            f"{some([str(shape) for shape in missing], 3)}); give the model that it trains"
        )
    return {places[id(p)]: p for p in own}


def check(optimizer: Optimizer, names: dict[str, Tensor], update: Update) -> None:
    """ValueError for an optimizer, or one of its parameters, that cannot be followed."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "optimizer: got LBFGS, which steps several times within one call, by a closure; need "
            "one whose step() takes gradients that are there, such as SGD or AdamW"
        )
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise ValueError("optimizer: got SparseAdam, of sparse gradients; need a dense one")
    for name, p in names.items():
        plain = type(p) in (Tensor, nn.Parameter) and p.layout is torch.strided
        if not plain or p.dtype != torch.float32 or p.device.type == "meta":
            raise ValueError(
                f"optimizer: {name} is {type(p).__name__} of {p.dtype} on {p.device}, need plain "
                f"parameters of float32, which hold the values of any format (model.float())"
            )
        for place, granularity in update.granularities():
            try:
                granularity.block_shape(cut_shape(granularity, p.shape))
            except ValueError as error:
                raise ValueError(f"{place}: {name}: {error}") from error


def key_of(seed: int, name: str, part: str) -> Tensor:
    """The key of all noise of one tensor of a parameter's update; folded with the step."""
    return root_key(seed, *(_number(text) for text in ("update", name, part)))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def check_step(names: dict[int, str], optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """ValueError for a step that we cannot follow."""
    if any(a is not None for a in args[1:]) or kwargs.get("closure") is not None:
        raise ValueError(
            "step: got a closure, whose gradients come after they are to be rounded; call "
            "backward() before step()"
        )
    own = [p for group in optimizer.param_groups for p in group["params"]]
    if any(id(p) not in names for p in own):
        raise ValueError(
            "step: parameters were added to the optimizer after low_precision_; call it last, or "
            "remove() the handle and call it again"
        )
    for p in own:
        if p.grad is not None and p.grad.layout is not torch.strided:
            raise ValueError(
                f"step: the gradient of {names[id(p)]} is {p.grad.layout}, need a dense one "
                f"(Embedding(..., sparse=False))"
            )
