"""Where Triton's kernels are tested: on a GPU, or on the CPU in Triton's interpreter."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from quantizers.kernels.gpu.device import INTERPRETED

DEVICE = "cpu" if INTERPRETED else "cuda"
INSTALLED = importlib.util.find_spec("triton") is not None
served = pytest.mark.skipif(
    not INSTALLED or not (INTERPRETED or torch.cuda.is_available()),
    reason="needs triton, and a GPU or TRITON_INTERPRET=1 (tests/test_interpreted.py sets it)",
)
