"""What a benchmark ran on, for its JSON."""

from __future__ import annotations

import os
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from qtrain import environment

#: vector instructions that decide how fast int8 and bf16 products are
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
#: settings from outside that change speed
VARIABLES = ("ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS", "LD_PRELOAD", "CUDA_VISIBLE_DEVICES")
PEERS = ("qtorch", "torchao", "mx")


def machine(device: torch.device) -> dict[str, str]:
    """`qtrain.environment`, the processor's flags, variables, the peers' versions, the commit."""
    return {
        **environment(device),
        "flags": " ".join(_flags()),
        "cores": str(os.cpu_count()),
        **{name: os.environ[name] for name in VARIABLES if name in os.environ},
        **{name: _version(name) for name in PEERS},
        "commit": _commit(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _flags() -> list[str]:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return []
    for line in info.read_text(encoding="utf-8").splitlines():
        if line.startswith("flags"):
            return [flag for flag in FLAGS if flag in line.split()]
    return []


def _commit() -> str:
    """The commit, "+ changes" where tracked files differ from it; "unknown" outside git."""
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty= + changes"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"
