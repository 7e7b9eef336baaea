"""Recipes by name, and what to give for names that none has."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from quantizers import IntFormat, formats
from quantizers.checks import suggestion

from .. import checks
from ..recipe import Recipe
from .accumulated import ibm_fp8, lba
from .affine import banner2018, int8
from .baselines import bf16, fp16, fp32
from .fp4 import four_over_six, fp4_all_the_way, nvfp4, quartet2
from .fp8 import coat, deepseek_v3, fp8, fp8_delayed, hfp8
from .hbfp import hbfp4, hbfp6
from .integer import in_hindsight, jetfire, statquant, switchback, unified_int8
from .learned import lsq
from .luq import luq
from .mx import mxfp4, mxfp4_e3m0, mxfp6, mxfp8, mxint8, tetrajet

_NAMED: dict[str, Callable[[], Recipe]] = {
    made.__name__.replace("_", "-"): made
    for made in (
        fp32, bf16, fp16,
        int8, banner2018, switchback, jetfire, statquant, in_hindsight, unified_int8,
        fp8, fp8_delayed, deepseek_v3, coat, hfp8, ibm_fp8,
        mxfp8, mxfp6, mxint8, mxfp4, mxfp4_e3m0, tetrajet,
        nvfp4, four_over_six, fp4_all_the_way, quartet2,
        hbfp4, hbfp6, luq, lba, lsq,
    )
}  # fmt: skip

#: what else recipes are called, or asked for by -> what to give
_OTHER_NAMES = {
    "nvfp8": "NVFP is of 4 bits, 'nvfp4'; of 8 there are 'mxfp8' and 'fp8'",
    "mxint4": "MX has no int4; 'hbfp4' is int4 in blocks with a power of two",
    "int4": "did you mean 'int8' at 4 bits? quantize(model, 4), recipes.int8(4), --bits 4 in the "
    "shell; published recipes of 4 bits: 'hbfp4', 'luq', 'nvfp4', 'mxfp4'",
    "accuracy-booster": "that is 'hbfp4', and 'hbfp6' in the last epoch and in the first and last "
    "layers: Schedule({0.0: 'hbfp4', 1 - 1 / epochs: 'hbfp6'}), overrides={'conv1': 'hbfp6'}",
    "4over6": "did you mean 'four-over-six'?",
}
_OTHER_NAMES |= {"accuracybooster": _OTHER_NAMES["accuracy-booster"]}


def names() -> list[str]:
    """The registered recipes' names."""
    return list(_NAMED)


def takes_bits(name: str) -> bool:
    """Whether the named recipe takes bits=."""
    return _made(name).with_bits is not None


def hint(name: object, known: Iterable[str]) -> str:
    """What to give in place of a name that no recipe has: "; did you mean ...?" and the like, or
    nothing.  known: the names that there are."""
    if not isinstance(name, str):
        return suggestion(name, known)
    low, known = name.lower().replace("_", "-"), list(known)
    if low in _OTHER_NAMES:
        return f"; {_OTHER_NAMES[low]}"
    if low in known:
        return f"; did you mean {low!r}?"
    parts = [one for one in known if len(low) > 1 and low in one]
    if len(parts) > 1:
        *others, last = map(repr, parts)
        return f"; did you mean {', '.join(others)} or {last}?"
    if low not in formats.NAMED:
        return suggestion(low, known)
    number_format = formats.get(low)
    if isinstance(number_format, IntFormat) and number_format.signed:
        bits = number_format.bits
        return (
            f"; did you mean 'int8' at {bits} bits? quantize(model, {bits}), recipes.int8({bits}), "
            f"--bits {bits} in the shell"
        )
    return f"; that is a number format: Quantizer(format={low!r}) is one of a Recipe"


def _made(name: str) -> Recipe:
    if not isinstance(name, str) or name not in _NAMED:
        near = hint(name, _NAMED)
        raise ValueError(
            f"unknown recipe {checks.shown(name)}{near}; `qtrain recipes`, and recipes.names(), "
            f"list all; any other is a Recipe of your own, of quantizers such as "
            f"Quantizer(format=e4m3), or a file's path"
        )
    return _NAMED[name]()


def get(name: str, bits: int | None = None) -> Recipe:
    """The named recipe, at `bits` bits where it takes them.

    Raises ValueError for an unknown name (the nearest is suggested), for bits it does not take or
    that are not from 2 to 16; TypeError for bits that are no integer.
    """
    recipe = _made(name)
    return recipe if bits is None else recipe.at(bits)
