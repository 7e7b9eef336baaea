"""Which engine serves an exact product: the first that supports it and is exact on its device.

That follows from the kind of product, the formats' bounds and the shapes, never from the data.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from ..operations import Kind, Operation
from .cut import CutInt8
from .engine import Engine, Work
from .float_units import Float32, reference
from .matrices import MatricesInt8
from .onednn import OneDnnInt8
from .unfolded import UnfoldedInt8

#: for each kind of device, in order of preference
ENGINES: Mapping[str, tuple[Engine, ...]] = defaultdict(
    lambda: (Float32(), reference),
    cpu=(
        OneDnnInt8(),
        OneDnnInt8(shifted=2**24),
        MatricesInt8(),
        UnfoldedInt8(),
        CutInt8(MatricesInt8()),
        CutInt8(UnfoldedInt8()),
        Float32(),
        reference,
    ),
    cuda=(UnfoldedInt8(), CutInt8(UnfoldedInt8()), Float32(), reference),
)


def choose(
    operation: Operation,
    kind: Kind,
    works: Sequence[Work],
    device_type: str,
    engines: tuple[Engine, ...],
) -> tuple[Engine, Work]:
    """The first engine that is exact on this device and supports a form of the product.

    works: the forms, in order of preference; engines: to choose from, likewise.

    Raises ValueError when the sum can pass 2^53, which none holds.
    """
    for engine in engines:
        for work in works:
            if work.zero_point and not engine.takes_zero_point:
                continue
            if engine.supports(operation, kind, work) and engine.exact_on(device_type):
                return engine, work
    work = works[-1]
    names = ", ".join(engine.name for engine in engines)
    raise ValueError(
        f"an integer sum of {work.count * work.per_index} products of elements up to "
        f"{work.a.magnitude} and {work.b.magnitude} can reach {work.bound:.3g}; engines "
        f"({names}) are exact below 2^53; use fewer bits"
    )
