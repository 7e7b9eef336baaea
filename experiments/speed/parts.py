"""Where a step's time goes: range, codes, products, norm, rest, from torch.profiler.

An operation belongs to the nearest part around it: its own name's (`OPERATIONS`), that of a call
it runs inside (`CALLS`, and the forward of any norm module), or, in the backward, that of the
norm whose forward made the node.  The rest is what remains of the step: activations, additions,
pooling, the loss, the update, and Python.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from step import Step
from torch import nn
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile, record_function

PARTS = ("range", "codes", "products", "norm", "rest")

#: names of operations (regular expressions, from the start) and the part they are
OPERATIONS: tuple[tuple[str, str], ...] = (
    (r"aten::(_?convolution|conv\dd|mkldnn_convolution)", "products"),
    (r"aten::(mm|addmm|bmm|baddbmm|matmul|linear|einsum|_int_mm|_scaled_mm)\b", "products"),
    (r"aten::(cudnn_convolution|miopen_convolution|slow_conv|thnn_conv|_slow_conv)", "products"),
    (r"aten::_?scaled_dot_product", "products"),
    (r"(onednn|mkldnn|quantized)::.*(conv|linear|matmul|prepack)", "products"),
    (r"torchao::scaled_int8_mm", "products"),
    (r"aten::_?(native_|cudnn_)?(batch|layer|group)_norm", "norm"),
)  # fmt: skip

#: calls (module, attribute) during which everything is one part, unless a nearer part says other
CALLS: tuple[tuple[str, str, str], ...] = (
    *(
        ("quantizers.ranges.rules", f"{rule}.__call__", "range")
        for rule in ("AbsMax", "MinMax", "ChunkedMinMax", "Percentile")
    ),
    ("quantizers.ranges.running", "Ema.__call__", "range"),
    ("quantizers", "Quantizer.__call__", "codes"),
    ("qtrain.norms.deferred", "Deferred.quantized", "codes"),
    ("qtrain.norms.batch", "QBatchNorm.forward", "norm"),
    ("qtrain.norms.batch", "QBatchNorm.fused_relu", "norm"),
    # the scales that multiply a product's sums are a part of it
    ("qtrain.products.function", "Products.forward", "products"),
    ("qtrain.products.function", "Products.backward", "products"),
)

_MARK = "part:"
_BACKWARD = "autograd::engine::evaluate_function"


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Seconds of one profiled step by part; they add up to `step`.

    unknown   calls of `CALLS` that this version of the library does not have
    """

    seconds: dict[str, float]
    step: float
    unknown: tuple[str, ...]

    def share(self, *parts: str) -> float:
        """The parts' fraction of the step."""
        return sum(self.seconds[part] for part in parts) / self.step


def parts(step: Step, steps: int = 2) -> Parts:
    """The parts of a step, averaged over `steps`; profiling itself slows short operations."""
    activities = [ProfilerActivity.CPU]
    cuda = step.device.type == "cuda"
    if cuda:
        activities.append(ProfilerActivity.CUDA)
    with _named_calls() as unknown, _named_norms(step.plain):
        step()  # first calls under the hooks
        step.wait()
        with profile(activities=activities) as profiler:
            start = time.perf_counter()
            for _ in range(steps):
                step()
            step.wait()
            whole = (time.perf_counter() - start) / steps
    seconds = dict.fromkeys(PARTS, 0.0)
    for event, part in _attributed(list(profiler.events())):
        own = event.self_device_time_total if cuda else event.self_cpu_time_total
        seconds[part] += own / 1e6 / steps
    seconds["rest"] = whole - sum(v for part, v in seconds.items() if part != "rest")
    return Parts(seconds=seconds, step=whole, unknown=tuple(unknown))


def _attributed(events: list[Any]) -> Iterator[tuple[Any, str]]:
    """Each event of the CPU's timeline with its part."""
    events = [e for e in events if e.device_type == DeviceType.CPU]
    events.sort(key=lambda e: (e.time_range.start, -e.time_range.end))
    known: dict[int, str | None] = {}

    def of(event: Any, backward_norms: set[int]) -> str | None:
        chain = []
        while event is not None and id(event) not in known:
            chain.append(event)
            part = _own(event, backward_norms)
            if part is not None:
                known[id(event)] = part
                break
            event = event.cpu_parent
        part = None if event is None else known[id(event)]
        known.update((id(e), part) for e in chain)
        return part

    # the last forward event with a node's sequence number is the operation that made the node
    last: dict[int, Any] = {}
    for event in events:
        if event.sequence_nr >= 0 and event.scope != 1 and not _in_backward(event):
            last[event.sequence_nr] = event
    norms = {number for number, event in last.items() if of(event, set()) == "norm"}
    known.clear()
    for event in events:
        yield event, of(event, norms) or "rest"


def _own(event: Any, backward_norms: set[int]) -> str | None:
    name: str = event.name
    if name.startswith(_MARK):
        return name.removeprefix(_MARK)
    if name.startswith(_BACKWARD):
        return "norm" if event.sequence_nr in backward_norms else None
    for pattern, part in OPERATIONS:
        if re.match(pattern, name):
            return part
    return None


def _in_backward(event: Any) -> bool:
    while event is not None:
        if event.name.startswith(_BACKWARD):
            return True
        event = event.cpu_parent
    return False


@contextlib.contextmanager
def _named_norms(model: nn.Module) -> Iterator[None]:
    """A range of the profiler around the forward of each of torch's norm modules (a hook on one of
    ours would keep it from being fused: `CALLS` names them)."""
    open_: list[Any] = []

    def before(module: nn.Module, args: Any) -> None:
        open_.append(record_function(f"{_MARK}norm"))
        open_[-1].__enter__()

    def after(module: nn.Module, args: Any, output: Any) -> None:
        open_.pop().__exit__(None, None, None)

    handles = []
    for module in model.modules():
        if "Norm" in type(module).__name__ and not hasattr(module, "recipe"):
            handles += [
                module.register_forward_pre_hook(before), module.register_forward_hook(after)
            ]  # fmt: skip
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _named_calls() -> Iterator[list[str]]:
    """A range of the profiler around each of `CALLS`; yields those that do not exist."""
    unknown, restore = [], []
    for module, path, part in CALLS:
        owner, name = path.rsplit(".", 1)
        holder = getattr(import_module(module), owner, None)
        original = None if holder is None else inspect.getattr_static(holder, name, None)
        if holder is None or original is None:
            unknown.append(f"{module}.{path}")
            continue
        restore.append((holder, name, original))
        if isinstance(original, staticmethod):
            setattr(holder, name, staticmethod(_named(original.__func__, part)))
        else:
            setattr(holder, name, _named(original, part))
    try:
        yield unknown
    finally:
        for holder, name, original in restore:
            setattr(holder, name, original)


def _named(function: Callable[..., Any], part: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(f"{_MARK}{part}"):
            return function(*args, **kwargs)

    return call
