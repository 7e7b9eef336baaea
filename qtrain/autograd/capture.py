"""Work that goes into a CUDA graph, whose replays run no Python."""

from __future__ import annotations

import torch


def capturing() -> bool:
    """Whether what this thread computes on the GPU is captured, to be replayed."""
    return (
        not torch.compiler.is_compiling()
        and torch.cuda.is_initialized()
        and torch.cuda.is_current_stream_capturing()
    )
