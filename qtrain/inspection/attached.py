"""A monitor's hold on a model: its probes, and what would run unseen by them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ..names import some
from ..products.watched import Watched
from .recorder import Recorder


class _Mark:
    """On a product that is monitored; none of its copies is."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


class Attached:
    """Puts recorders on products, by layer, and takes them off.

    open    those of the step that is being recorded
    """

    def __init__(self, products: Mapping[str, list[Watched]]) -> None:
        self._products, self._mark = products, _Mark()
        self.open: dict[str, Recorder] = {}
        self._counts: dict[Watched, Tensor] = {}
        for product in self._of(products):
            product.monitored = self._mark

    def _of(self, names: Iterable[str]) -> list[Watched]:
        return [product for name in names for product in self._products[name]]

    def put(self, recorders: Mapping[str, Recorder]) -> None:
        """ValueError where another monitor's are on a product."""
        if any(product.probe is not None for product in self._of(recorders)):
            raise ValueError("Monitor: the model is monitored already; close() the other one")
        for name, recorder in recorders.items():
            self.open[name] = recorder
            for product in self._products[name]:
                product.probe = recorder
                self._counts[product] = product.noise_count.clone()

    def take(self) -> None:
        for name, recorder in self.open.items():
            for product in self._products[name]:
                if product.probe is recorder:
                    product.probe = None
        self.open.clear()
        self._counts.clear()

    def leave(self) -> None:
        """Take them off for good."""
        self.take()
        for product in self._of(self._products):
            if product.monitored is self._mark:
                product.monitored = None

    def warn_of_unseen(self) -> None:
        """Of layers that trained, as their counters tell, and whose recorders saw nothing."""
        unseen = [
            name
            for name, recorder in self.open.items()
            if not recorder.sums and any(self._ran(product) for product in self._products[name])
        ]
        if unseen:
            warnings.warn(
                f"Monitor: {some(unseen, 4)} ran in a step that was to be recorded, and nothing "
                f"of it was seen: replays of a CUDA graph run no Python; monitor steps that are "
                f"not captured",
                stacklevel=4,
            )

    def _ran(self, product: Watched) -> bool:
        return product.training and int(product.noise_count) != int(self._counts[product])


def refuse_compiled(model: nn.Module) -> None:
    """ValueError for a model that is compiled."""
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise ValueError(
                f"Monitor: {name or 'the model'} is compiled, and a measured step would run "
                "uncompiled, with other last bits; monitor a run of the uncompiled model"
            )
