"""The accumulators of units that were measured, by GPU and format."""

from __future__ import annotations

from dataclasses import replace

from .. import checks
from ..formats import FloatFormat, bf16, e4m3, e5m2, fp16, tf32
from .models import Aligned

_HALVES, _EIGHTS = (fp16, bf16), (e4m3, e5m2)


def _units(
    gpus: str, formats: tuple[FloatFormat, ...], terms: int, bits: int, kept: int = 23
) -> dict[tuple[str, str], Aligned]:
    return {
        (gpu, str(one)): Aligned(terms, bits, kept, None, formats, f"{gpu} {one}")
        for gpu in gpus.split()
        for one in formats
    }


#: terms of a group, fraction bits and those kept: MMA-Sim (arXiv 2511.10909) for NVIDIA's Volta
#: (V100), Ampere (A100, A2), Ada (Ada, L40S), Hopper (H100, H200); each equals what such a GPU
#: gave (north-numerical-computing/MATLAB-tensor-core, model_validation), e5m2's of which none is
#: recorded excepted
_UNITS = {
    **_units("V100", (fp16,), 4, 23),
    **_units("A100 A2 Ada L40S", _HALVES, 8, 24),
    **_units("A100 A2 Ada L40S", (tf32,), 4, 24),
    **_units("H100 H200", _HALVES, 16, 25),
    **_units("H100 H200", (tf32,), 8, 25),
    **_units("Ada L40S", _EIGHTS, 16, 13, 13),
    **_units("H100 H200", _EIGHTS, 32, 13, 13),
}


def names() -> list[tuple[str, str]]:
    """(GPU, format) of the units that have a name."""
    return list(_UNITS)


def get(gpu: str, format: str | FloatFormat, *, promote: int | None = None) -> Aligned:
    """The unit of a GPU for operands of a format, such as get("H100", "e4m3").

    promote   as `Aligned`'s, a matter of the program that runs on it.  ValueError for a unit that
    is not known, with those that are.
    """
    found = _UNITS.get((gpu, str(format)))
    if found is None:
        known = "; ".join(
            f"{one}: {', '.join(name for own, name in _UNITS if own == one)}"
            for one in dict.fromkeys(own for own, _ in _UNITS)
        )
        gpus = dict.fromkeys(own for own, _ in _UNITS)
        near = "" if gpu in gpus else checks.suggestion(gpu, gpus)
        raise ValueError(
            f"unknown unit {checks.shown(gpu)}, {checks.shown(str(format))}{near}; known: {known}"
        )
    return found if promote is None else replace(found, promote=promote)
