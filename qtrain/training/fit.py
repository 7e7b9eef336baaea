"""Whether a model fits the data it is to learn, and a device's name is one."""

from __future__ import annotations

import re

from .. import data, models
from .given.reference import is_reference


def check_fit(model: str, data_name: str) -> None:
    """ValueError for a model of another kind than the data, where both are of this package."""
    if is_reference(model) or is_reference(data_name):
        return
    kind = data.kind(data_name)
    fitting = models.names(kind)
    if model not in fitting:
        raise ValueError(
            f"model: got {model!r}, but data {data_name!r} holds {kind}; models of {kind} are "
            f"{', '.join(fitting)}"
        )


def check_device(device: object) -> None:
    """ValueError for what is no device of a run."""
    known = r"auto|cpu|cuda(:(0|[1-9][0-9]?))?"
    if not isinstance(device, str) or not re.fullmatch(known, device):
        raise ValueError(f"device: got {device!r:.60}, need auto, cpu, cuda or cuda:N, N up to 99")
