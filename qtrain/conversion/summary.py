"""What a conversion did, and what one pass through the model shows of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from quantizers.accumulators import Accumulator

from ..copies import unwrapped
from ..layer_state import device_of
from ..names import some
from ..products.engines.choice import ENGINES
from ..products.engines.engine import was_refused
from ..products.module import products_of
from ..products.operations import KINDS, Kind
from ..products.probe import Probe
from ..recipe.units import Unit
from .declined import Declined
from .declined import lines as declined_lines
from .record import Conversion, by_reason, grouped
from .registered import class_of, name_of
from .share import Share
from .watch import rehearsed, twin


@dataclass
class Summary:
    """A conversion, and, where inputs were given, what one forward pass showed.

    converted, left   layer -> its type, and why it was left
    outside           module path -> the products that ran there outside qtrain's Function; None
                      where no inputs were given
    constant          module path -> those of functions through which no gradient flows, which are
                      left; None likewise
    never_ran         converted layers that the forward did not reach; None likewise
    inside            module path -> of products outside that are of a torch.autograd.Function, what
                      to do
    used_by           those whose weight another layer used, as a call of a function -> that one
    refused           engines that a product of this process asked for, and that failed their
                      exactness test on this machine; `doctor` tries all
    engines           layer -> product -> the engine that served it, of those that ran; several are
                      joined by " + "; None likewise
    device            the kind of device that the model is on
    share             of the forward's multiply-adds; None likewise
    types             module path -> its type, of those in the share's
    registered        modules computed by a function that was registered -> their type, and it
    seconds           layer -> product -> what an accumulator took to sum it, on these inputs
    declined          quantizers -> calls for which that device has a kernel, and none served
    """

    conversion: Conversion
    outside: dict[str, list[str]] | None
    never_ran: list[str] | None
    refused: list[str]
    engines: dict[str, dict[Kind, str]] | None = None
    device: str = "cpu"
    declined: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, dict[Kind, float]] = field(default_factory=dict)
    constant: dict[str, list[str]] | None = None
    share: Share | None = None
    types: dict[str, str] = field(default_factory=dict)
    registered: dict[str, str] = field(default_factory=dict)
    used_by: dict[str, str] = field(default_factory=dict)
    inside: dict[str, str] = field(default_factory=dict)

    @property
    def converted(self) -> dict[str, str]:
        return self.conversion.converted

    @property
    def left(self) -> dict[str, str]:
        return self.conversion.left

    def __str__(self) -> str:
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(self.converted.values()).items())
        lines = [f"recipe     {self.conversion.recipe}"]
        if self.conversion.schedule:
            lines.append(f"schedule   {self.conversion.schedule}")
        for name, what in self.conversion.left_out.items():
            lines.append(f"leaves out {name}: {what}")
        ran = f", {len(self.engines)} products ran" if self.engines else ""
        lines.append(f"converted  {len(self.converted)} layers{ran}: {kinds}")
        for recipe, layers in grouped(self.conversion.overridden).items():
            lines.append(f"override   {', '.join(layers)}: {recipe}")
        for said, layers in grouped(self.registered).items():
            lines.append(f"registered {some(layers, 8)}: {said}")
        lines.append(f"left       {len(self.left)}")
        lines += [f"           {line}" for line in by_reason(self.left, 8)]
        for own in self.conversion.in_force:
            lines += [f"sums       {p}: {text}" for p, text in own.sums_overflow.items()]
        names = list(self.conversion.norms_left)
        if names:
            lines.append(
                f"norms      {len(names)} do not follow the norm asked for ({some(names, 8)})"
            )
        lines += self._share_lines()
        for name, products in (self.outside or {}).items():
            said = f"ran in full precision{self.inside.get(name, '')}"
            lines.append(f"outside    {name}: {', '.join(products)} {said}")
        for name, products in (self.constant or {}).items():
            lines.append(
                f"constant   {name}: {', '.join(products)}, through which no gradient flows"
            )
        if self.never_ran:
            lines.append(f"never ran  {', '.join(self.never_ran)}")
        for name, instead in self.used_by.items():
            lines.append(f"used by    {instead}: the weight of {name}, which was not called itself")
        lines += self._engine_lines()
        lines += declined_lines(self.engines or {}, self.declined, self.device)
        lines += self._slow_lines()
        for name in self.refused:
            lines.append(f"refused    engine {name}: inexact on this machine, not used")
        lines.append("update     in full precision, but for an optimizer given to low_precision_")
        if self.conversion.copied:
            lines.append(
                "optimizer  this model is a copy: an optimizer built before quantize() trains the "
                "old one; build it from this model's parameters (or use quantize_)"
            )
        return "\n".join(lines)

    def _share_lines(self) -> list[str]:
        """What follows the recipe, and the types of the modules of what does not."""
        if self.share is None:
            return []
        lines = [f"share      {self.share}"]
        total = self.share.simulated + self.share.left.total()
        kinds: Counter[str] = Counter()
        for path, macs in self.share.left.items():
            kinds[self.types[path]] += macs
        if kinds.total():
            each = [
                f"{kind} {float(f'{100 * macs / total:.2g}'):g} %"
                for kind, macs in kinds.most_common()
            ]
            lines.append(f"           not: {some(each, 6)}")
        return lines

    def _slow_lines(self) -> list[str]:
        """Of products that accumulators sum: how long they take, where that is long."""
        total = sum(sum(products.values()) for products in self.seconds.values())
        if total < _SLOW:
            return []
        layers = {name: sum(products.values()) for name, products in self.seconds.items()}
        slowest = sorted(layers, key=lambda name: -layers[name])
        where = "" if self.device == "cpu" else f", by torch's own operations on {self.device}"
        each = [f"{name} {layers[name]:.2g}" for name in slowest if layers[name] > 0.05 * total]
        return [
            f"slow       sums by accumulators take about {total:.2g} s a step of such inputs"
            f"{where}, in seconds: {some(each, 6)}"
        ]

    def _engine_lines(self) -> list[str]:
        """One line for each engine: how many products it serves; of attention a layer has several,
        of a norm none."""
        counts: dict[str, Counter[str]] = {}
        for products in (self.engines or {}).values():
            for kind, engine in products.items():
                counts.setdefault(engine, Counter())[kind] += 1
        return [
            f"engine     {engine}: "
            + ", ".join(f"{kind} of {found[kind]} products" for kind in KINDS if found[kind])
            for engine, found in counts.items()
        ]


#: seconds of all sums by accumulators from which on a summary names them
_SLOW = 0.5


class _Engines(Probe):
    """The probe of one layer that learns which engines serve it, and how long accumulators take."""

    def __init__(self) -> None:
        self.found: dict[Kind, str] = {}
        self.seconds: dict[Kind, float] = {}

    def engine(self, kind: Kind, name: str) -> None:
        known = self.found.setdefault(kind, name).split(" + ")
        if name not in known:
            self.found[kind] += f" + {name}"

    def summed(self, kind: Kind, unit: Unit, found: Tensor, by: Callable[..., Tensor]) -> None:
        if not isinstance(unit, Accumulator) or found.is_meta:
            return
        start = perf_counter()  # once more: the first call may have compiled a kernel
        by(unit).flatten()[:1].tolist()  # waits for a device
        self.seconds[kind] = self.seconds.get(kind, 0.0) + perf_counter() - start


def summary(model: nn.Module, *inputs: Any, **kwargs: Any) -> Summary:
    """What `quantize` did to the model; with inputs, also what one pass through it shows.

    The pass, forward and, for an output that has a gradient, backward, runs on a copy: nothing of
    the model changes.  Raises ValueError for a model that was not converted.
    """
    model = unwrapped(model)
    conversion = Conversion.of(model)
    if conversion is None:
        part = Conversion.within(model, "summary({}, ...)")
        raise ValueError(f"summary: this model was not converted by quantize or quantize_{part}")
    device = device_of(model).type
    if not inputs and not kwargs:
        return Summary(
            conversion, None, None, _refused(device), device=device, registered=_registered(model)
        )
    model = twin(model, *inputs, **kwargs)
    conversion = Conversion.of(model) or conversion  # with the layers of its calls
    probes: dict[str, _Engines] = {}
    for product in products_of(model):
        product.probe = probes.setdefault(product.name, _Engines())
    with Declined() as declined:
        watch, _ = rehearsed(model, inputs, kwargs, learning=not torch.is_inference_mode_enabled())
    engines = {name: probe.found for name, probe in probes.items() if probe.found}
    outside, idle = {**watch.outside}, watch.never_ran()
    never_ran = [name for name, instead in idle.items() if not instead]
    for name, left in watch.aside["left"].items():
        outside[name] = [*outside.get(name, []), *left]
    seconds = {name: probe.seconds for name, probe in probes.items() if probe.seconds}
    return Summary(
        conversion, outside, never_ran, _refused(device), engines, device, declined.quantizers,
        seconds, watch.aside["constant"], watch.share, _types(model, watch.share.left),
        _registered(model), {name: instead for name, instead in idle.items() if instead},
        watch.inside,
    )  # fmt: skip


def _types(model: nn.Module, paths: Iterable[str]) -> dict[str, str]:
    of = {name or "(model)": class_of(module).__name__ for name, module in model.named_modules()}
    return {path: of[path] for path in paths}


def _registered(model: nn.Module) -> dict[str, str]:
    of = {name or "(model)": name_of(module) for name, module in model.named_modules()}
    return {path: said for path, said in of.items() if said is not None}


def _refused(device: str) -> list[str]:
    """Engines that a product of this process asked for, and that were inexact."""
    return [engine.name for engine in ENGINES[device] if was_refused(engine, device)]
