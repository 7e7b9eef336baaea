"""What this machine computes with: devices, engines, kernels; int8 beside full precision."""

from __future__ import annotations

import copy
import importlib
import statistics
import time

import torch
from torch import nn

from quantizers.kernels import eager

from ..conversion.quantize import quantize
from ..products.engines.choice import ENGINES
from ..recipes import int8
from ..reports.table import Table, wrapped
from .environment import environment

#: a module of kernels for each kind of device, and what it is made with
_KERNELS = {
    "CPU": ("numba", "quantizers.kernels.compiled_elements"),
    "GPU": ("triton", "quantizers.kernels.gpu.triton_elements"),
}
_ROUNDS = 7


def doctor() -> str:
    """Versions; for each device the engines that it admits and refuses, in the order in which they
    are asked, whether int8 has the bits of plain torch on the CPU, and what a step of a small layer
    costs beside full precision.  Takes seconds; paste it into a report of a bug.
    """
    devices = [torch.device("cpu")]
    devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    lines = [f"{name}: {value}" for name, value in environment(devices[-1]).items()]
    for where, (package, module) in _KERNELS.items():
        lines += wrapped(f"{where} kernels: {_kernels(package, module)}")
    for device in devices:
        lines += ["", *_engines(device), *_layer(device)]
    return "\n".join(lines)


def _kernels(package: str, module: str) -> str:
    try:
        version = importlib.import_module(package).__version__
        importlib.import_module(module)
    except Exception as error:
        return f"none, plain torch serves ({type(error).__name__}: {error})"
    return f"{package} {version}"


def _engines(device: torch.device) -> list[str]:
    admitted: list[str] = []
    refused: list[str] = []
    for engine in ENGINES[device.type]:
        if engine.device_types and device.type not in engine.device_types:
            continue
        (admitted if engine.admitted_on(device.type) else refused).append(engine.name)
    found = wrapped(f"{device}: engines {', '.join(admitted)}")
    if refused:
        why = "no fast units here, or not exact: an extreme product differs from float64's"
        found += wrapped(f"{device}: refused {', '.join(refused)} ({why})")
    return found


def _layer(device: torch.device) -> list[str]:
    """A 3x3 convolution of 64 channels, batch 8, 28x28: forward and backward."""
    torch.manual_seed(0)
    plain = nn.Conv2d(64, 64, 3, padding=1)
    ours = quantize(nn.Sequential(plain), recipe=int8())
    x = torch.randn(8, 64, 28, 28)
    with eager():
        want = copy.deepcopy(ours)(x)
    got = copy.deepcopy(ours).to(device)(x.to(device)).cpu()
    differ = int((got != want).sum())
    seconds: dict[str, list[float]] = {"full precision": [], "int8": []}
    models = dict(zip(seconds, (nn.Sequential(plain), ours), strict=True))
    leaf = x.to(device).contiguous(memory_format=torch.channels_last).requires_grad_()
    for _ in range(_ROUNDS + 2):  # two to warm up
        for name, model in models.items():
            model.to(device)
            start = _now(device)
            model(leaf).sum().backward()
            seconds[name].append(_now(device) - start)
    cost = {name: 1e3 * statistics.median(times[2:]) for name, times in seconds.items()}
    bits = (
        "the bits of plain torch on the CPU" if not differ else f"{differ} of {got.numel()} WRONG"
    )
    table = Table(
        headers=[f"3x3 convolution, {device}", "ms a step"],
        lines=[[name, f"{ms:.2f}"] for name, ms in cost.items()],
    )
    return [table.text(), f"{device}: int8 gives {bits}"]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
