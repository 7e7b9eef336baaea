"""Which engine serves a product: the first that supports it and keeps its promise on its device.

That follows from the kind of product, the formats' bounds and the shapes, never from the data.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch

from .cut import CutInt8
from .engine import Engine
from .float_units import Float32, RoundedSums, TensorFloat32, reference
from .gpu.digits.engine import TritonDigits
from .gpu.half.engine import TritonHalf
from .gpu.int8.engine import TritonInt8
from .half.engine import HalfUnits
from .matrices import MatricesInt8
from .onednn import OneDnnInt8
from .task import Task
from .unfolded import UnfoldedInt8

#: for each kind of device, in order of preference
ENGINES: Mapping[str, tuple[Engine, ...]] = defaultdict(
    lambda: (Float32(), reference, RoundedSums()),
    cpu=(
        OneDnnInt8(),
        OneDnnInt8(shifted=2**24),
        MatricesInt8(),
        UnfoldedInt8(),
        CutInt8(MatricesInt8()),
        CutInt8(UnfoldedInt8()),
        Float32(),
        reference,
        HalfUnits(),
        RoundedSums(),
    ),
    cuda=(
        TritonDigits(),
        TritonInt8(),
        UnfoldedInt8(),
        CutInt8(TritonInt8()),
        CutInt8(UnfoldedInt8()),
        Float32(),
        reference,
        TritonHalf(torch.bfloat16),
        TritonHalf(torch.float16),
        TensorFloat32(),
        RoundedSums(),
    ),
)


def choose(
    tasks: Sequence[Task], device_type: str, engines: tuple[Engine, ...]
) -> tuple[Engine, Task]:
    """The first engine that is admitted on this device and supports a form of the product.

    tasks: the forms, in order of preference; engines: to choose from, likewise.

    Raises ValueError when the sum can pass 2^53, which none holds.
    """
    for engine in engines:
        for task in tasks:
            if (
                engine.promise != task.promise
                or (task.zero_point and not engine.takes_zero_point)
                or (task.zero_points and not engine.takes_zero_points)
            ):
                continue
            if engine.supports(task) and engine.admitted_on(device_type):
                return engine, task
    task = tasks[-1]
    names = ", ".join(engine.name for engine in engines)
    if task.promise == "float":
        unit = "" if task.unit is None else f" in {task.unit} units"
        raise ValueError(
            f"no engine ({names}) multiplies floating-point operands{unit} on {device_type} within "
            f"the rounding of its sums"
        )
    raise ValueError(
        f"an integer sum of {task.terms} products of elements up to "
        f"{task.a.magnitude} and {task.b.magnitude} can reach {task.bound:.3g}; engines "
        f"({names}) are exact below 2^53; use fewer bits"
    )
