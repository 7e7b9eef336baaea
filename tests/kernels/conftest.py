"""KERNEL_SHARE=n: every n-th case of each test; else all, but every fifth where kernels are only
compiled ahead of time, in a suite that also runs the rest: the GPUs, three, take turns then."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch

from quantizers.kernels.gpu.device import INTERPRETED

ALL = INTERPRETED or torch.cuda.is_available()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    share = int(os.getenv("KERNEL_SHARE", "1" if ALL else "5"))
    seen: Counter[str] = Counter()
    kept, left = [], []
    for item in items:
        name = item.nodeid.partition("[")[0]
        own = Path(__file__).parent in item.path.parents
        (left if own and seen[name] % share else kept).append(item)
        seen[name] += 1
    items[:] = kept
    config.hook.pytest_deselected(items=left)
