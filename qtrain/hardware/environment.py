"""What a run ran on: versions, machine, threads.  Results repeat exactly only on the same."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

import numpy
import torch

from ..files.plain_json import read
from ..files.whole import there
from ..version import VERSION

#: Entries that can change the bits of a result.
DECISIVE = ("qtrain", "torch", "machine", "processor", "capability", "threads", "device", "code")


def environment(device: torch.device) -> dict[str, str]:
    """Versions, machine, processor, vector instructions, threads and device, as text."""
    cuda = device.type == "cuda"
    return {
        "qtrain": VERSION,
        "torch": str(torch.__version__),  # with what it was built for, which its package may lack
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "cuda": str(torch.version.cuda) if cuda else "none",
    }


def sessions(path: Path) -> list[dict[str, str]]:
    """The entries of an environment.json, one of each machine that a run was on; none where the
    file is missing.  ValueError for a damaged one."""
    found: list[dict[str, str]] = read(path, list) if there(path) else []
    if not all(isinstance(session, dict) for session in found):
        raise ValueError(f"{path}: holds no list of environments; restore or delete it")
    return found


def changed(stored: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Decisive entries that differ, with both values; what ran before there was an entry of its
    own code does not differ in it."""
    return [
        f"{name} (then {stored.get(name)}, now {now.get(name)})"
        for name in DECISIVE
        if stored.get(name) != now.get(name) and (name != "code" or name in stored)
    ]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
