"""What no fast unit of a device computed, in one pass through a model; nothing is on the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from quantizers.formats import Format
from quantizers.kernels.gpu.device import ELEMENTS
from quantizers.kernels.serving import imported
from quantizers.settings import Settings
from quantizers.steps import elements_of, quantize

from ..names import some
from ..products.engines.choice import ENGINES
from ..products.operations import KINDS, Kind

_HOST = "cpu"


class Declined:
    """Counts, within it, the calls of quantizers whose range, or, where they have none, whose
    elements no kernel of a device made.

    quantizers   their settings -> calls
    """

    def __init__(self) -> None:
        self.quantizers: Counter[str] = Counter()

    def __enter__(self) -> Declined:
        self._before = quantize.declined, elements_of.declined
        quantize.declined, elements_of.declined = self._whole, self._elements
        return self

    def __exit__(self, *error: object) -> None:
        quantize.declined, elements_of.declined = self._before

    def _whole(self, x: Tensor, by: Settings, *others: Any, **more: Any) -> None:
        if by.range is not None:
            self._note(x, by)

    def _elements(
        self, x: Tensor, scale: Tensor | None, zero_point: Any, block: Any, format: Format,
        *others: Any, **more: Any,
    ) -> None:  # fmt: skip
        if scale is None:
            self._note(x, format)

    def _note(self, x: Tensor, by: Settings | Format) -> None:
        if x.device.type != _HOST:
            self.quantizers[str(by)] += 1


def _reason(device: str) -> str:
    missing = device == "cuda" and imported(ELEMENTS) is None
    return " (Triton's kernels are not to be had)" if missing else ""


def lines(
    engines: Mapping[str, Mapping[Kind, str]], quantizers: Counter[str], device: str
) -> list[str]:
    """A line of products and one of quantizers, where there are any.

    engines      layer -> product -> what served it, several joined by " + "
    quantizers   see `Declined`
    device       its kind
    """
    found = []
    # torch's own products serve anywhere
    plain = {engine.name for engine in ENGINES[device] if not engine.device_types}
    products: Counter[Kind] = Counter()
    for served in engines.values() if device != _HOST else ():
        products.update(kind for kind, name in served.items() if plain & set(name.split(" + ")))
    if products:
        counts = ", ".join(
            f"{kind} of {products[kind]} products" for kind in KINDS if products[kind]
        )
        fast = len(ENGINES[device]) > len(plain)
        why = "no fast engine takes them" if fast else "there are no fast engines"
        found.append(f"declined   {counts}: {why} on {device}")
    if quantizers:
        each = [f"{by} ({count})" for by, count in quantizers.most_common()]
        found.append(
            f"declined   {quantizers.total()} calls of quantizers, by torch's own operations on "
            f"{device}{_reason(device)}: {some(each, 4)}"
        )
    return found
