"""What is timed: full precision, bf16 autocast, qtrain's recipes and the peers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import peers
import torch
from networks import Network
from step import Step
from torch import nn

from qtrain import Recipe, quantize_, recipes
from quantizers import fp16

Convert = Callable[[nn.Module], nn.Module]

CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels_last"
LAYOUTS = (CONTIGUOUS, CHANNELS_LAST)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to train a network.

    convert      the network, in place
    autocast     the dtype of torch.autocast, or None
    compilable   whether it is also timed compiled
    package      that must be importable
    recipe       qtrain's, where it is a row of ours
    """

    name: str
    convert: Convert
    autocast: torch.dtype | None = None
    compilable: bool = False
    package: str | None = None
    recipe: Recipe | None = None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A method in one layout, eager or compiled: one row of the table."""

    method: Method
    layout: str
    compiled: bool

    @property
    def mode(self) -> str:
        return "compiled" if self.compiled else "eager"

    @property
    def key(self) -> str:
        return f"{self.method.name} | {self.mode} | {self.layout}"

    @property
    def missing(self) -> str | None:
        """The package that is not installed, or None."""
        package = self.method.package
        return package if package and importlib.util.find_spec(package) is None else None

    def build(self, network: Network, batch: int, device: torch.device) -> Step:
        """The step, ready to run; weights and data are the same for every subject."""
        torch.manual_seed(0)
        model = network.make().to(device)
        inputs, targets = network.data(batch, device)
        if self.layout == CHANNELS_LAST:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            inputs = inputs.to(memory_format=torch.channels_last)
        return Step(
            self.method.convert(model),
            (inputs, targets),
            network.loss,
            autocast=self.method.autocast,
            compiled=self.compiled,
        )


def _same(model: nn.Module) -> nn.Module:
    return model


FP32 = "fp32"


def _ours(
    name: str,
    recipe: Recipe,
    norm: str | None = None,
    *,
    compilable: bool = True,
) -> Method:
    convert = partial(quantize_, recipe=recipe, norm=norm)
    return Method(name=name, convert=convert, compilable=compilable, recipe=recipe)


def methods(network: Network) -> list[Method]:
    """The methods that make sense for a network, full precision first."""
    has_norm = any(isinstance(m, nn.BatchNorm2d) for m in network.make().modules())
    int8 = recipes.int8()
    rounded = replace(int8, activation=fp16)
    found = [
        Method(name=FP32, convert=_same, compilable=True),
        Method(name="bf16 autocast", convert=_same, autocast=torch.bfloat16, compilable=True),
        _ours("int8", int8),
    ]
    prefix, norm = ("int8 range-norm", "range") if has_norm else ("int8", None)
    if has_norm:
        found.append(_ours(prefix, int8, norm))
    found += [
        _ours(f"{prefix} bf16-units", recipes.int8(unit="bf16"), norm),
        _ours(f"{prefix} fp16-outputs", rounded, norm, compilable=False),
        _ours(f"{prefix} fp16-stored", replace(rounded, narrow=True), norm, compilable=False),
        _ours("fp8", recipes.fp8(), compilable=False),
        _ours("mxfp8", recipes.mxfp8(), compilable=False),
        _ours("banner2018", recipes.banner2018(), compilable=False),
        Method(name="QPyTorch", convert=peers.qtorch, package="qtorch"),
        Method(name="microxcaling", convert=peers.microxcaling, package="mx"),
    ]
    if not network.images:  # it quantizes linear layers alone
        found.append(Method(name="torchao int8", convert=peers.torchao, package="torchao"))
    return found


def subjects(
    network: Network, *, layouts: Sequence[str], compiled: bool, wanted: Sequence[str] | None
) -> list[Subject]:
    """The rows of a network's table; wanted: names of methods (full precision always is)."""
    known = methods(network)
    kept = [m for m in known if wanted is None or m.name in (FP32, *wanted)]
    found = []
    for method in kept:
        for mode in (False, True) if compiled and method.compilable else (False,):
            own = layouts if network.images else (CONTIGUOUS,)
            rows = [Subject(method=method, layout=layout, compiled=mode) for layout in own]
            found += rows[:1] if rows[0].missing else rows  # once is enough to say so
    return found
