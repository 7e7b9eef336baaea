"""torch's default dtype and default device are the caller's: no result depends on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from quantizer_checks import MODES, same_bits
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from quantizers import (
    FloatFormat,
    Format,
    IntFormat,
    Quantizer,
    Scale,
    TableFormat,
    absmax,
    blocks,
    ceil,
    chunked_minmax,
    ema,
    floor,
    formats,
    kernels,
    minmax,
    per_axis,
    per_tensor,
    percentile,
    random_bits,
    root_key,
)
from quantizers.ranges.running import Ema

#: scales and roundings are tried together at random
pytestmark = pytest.mark.filterwarnings("ignore::quantizers.ClippingScaleWarning")
FORMATS: list[Format] = [
    *formats.NAMED.values(),
    FloatFormat(4, 4, signed=False, name="unsigned"),
    FloatFormat(4, 3, specials="fn", overflow="nan", name="to nan"),
    FloatFormat(3, 2, bias=140, specials="finite", name="below fp32's normal numbers"),
    IntFormat(7, signed=False),
    IntFormat(5, symmetric=False),
]
RULES = [
    absmax, minmax, chunked_minmax(), chunked_minmax(3), percentile(0.9), ema(),
    ema(absmax, momentum=0.3), ema(chunked_minmax(2), train_on="batch"),
]  # fmt: skip
GRAINS = [per_tensor, per_axis(1), blocks(4)]
SCALES = [
    {}, {"scale": Scale(formats.e8m0, rounding=ceil)},
    {"scale": Scale(formats.e4m3, rounding=floor)}, {"scale": Scale(formats.e8m0)},
]  # fmt: skip
KEY = root_key(3)
TABLE_MODES = [mode for mode in MODES if mode.mode in ("nearest_even", "stochastic")]


def numbers() -> Tensor:
    x = random_bits(root_key(1), (6, 5, 7)).float() / 2**29
    x[2] = 0.0
    x[3, 1, 1:3] = torch.tensor([1e-38, -3e38])
    return x


class Case(NamedTuple):
    name: str
    quantizer: Quantizer
    state: dict[str, Tensor]


def cases() -> Iterator[Case]:
    """Every format by every range rule; by every rounding, granularity and scale format in turn."""
    for number, fmt in enumerate(FORMATS):
        if isinstance(fmt, FloatFormat):
            for mode in MODES:
                plain = Quantizer(format=fmt, range=None, rounding=mode)
                yield Case(f"{fmt} {mode}", plain, {})
        for i, rule in enumerate(RULES if fmt.largest < 2**48 else []):
            modes = TABLE_MODES if isinstance(fmt, TableFormat) else MODES
            mode = modes[(number + i) % len(modes)]
            grain = GRAINS[(number + 2 * i) % len(GRAINS)]
            if isinstance(rule, Ema) and grain == GRAINS[2]:
                grain = per_axis(1)
            scale = SCALES[(2 * number + i) % len(SCALES)]
            batch = isinstance(rule, Ema) and rule.train_on == "batch"
            quantizer = Quantizer(
                format=fmt, range=rule, granularity=grain, rounding=mode,
                straight_through="identity" if batch else "inclusive", **scale,
            )  # fmt: skip
            name = f"{fmt} {rule} {grain} {scale} {mode}"
            yield Case(name, quantizer, quantizer.init_state((None, 5, None)))


def results(case: Case, x: Tensor) -> list[Tensor]:
    """All of two steps and an evaluation: elements, scales, values, gradients, states."""
    _, quantizer, state = case
    state, found = {key: value.clone() for key, value in state.items()}, []
    for part, training in ((x, True), (x * 0.3, True), (x, False)):
        made = quantizer(part, state=state, key=KEY, training=training)
        found += [one for one in made[:3] if one is not None]
        found.append(made.dequantize())
    return [*found, quantizer.backward(x, x, state), *state.values()]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.timeout(600)  # kernels are compiled
@pytest.mark.parametrize("served", [nullcontext, kernels.eager], ids=["fused", "eager"])
def test_no_quantizer_depends_on_the_default_dtype_or_device(served: Any) -> None:
    """Each meets one dtype of three in turn."""
    dtypes = (torch.float64, torch.bfloat16, torch.float16)
    x, every = numbers(), list(cases())
    assert len(every) > 300
    for number, case in enumerate(every):
        contexts = partial(default_dtype, dtypes[number % 3]), partial(torch.device, "meta")
        with served():
            expected = results(case, x)
            for context in contexts:
                with context():
                    got = results(case, x)
                for i, (one, other) in enumerate(zip(got, expected, strict=True)):
                    assert same_bits(one, other), f"{case.name}, {context}: result {i}"
    with torch.device("meta"):
        assert root_key(1, 2).is_cpu


class _Divisions(TorchDispatchMode):
    """Fails where a tensor is divided by a number, which CUDA does by a multiplication."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        assert name != "mean"
        if name in ("div", "divide", "true_divide"):
            assert isinstance(args[1], Tensor) and args[1].device == args[0].device, (func, args)
        return func(*args, **(kwargs or {}))


def test_no_quantizer_divides_by_a_python_number() -> None:
    x = numbers()
    for case in cases():
        with _Divisions():
            results(case, x)
    with pytest.raises(AssertionError), _Divisions():
        x / 255
