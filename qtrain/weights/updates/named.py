"""Updates by name, and as YAML files, as recipes have them."""

from __future__ import annotations

import os
from pathlib import Path

from quantizers import Quantizer, bf16, dynamic8, e4m3, groups, stochastic, udynamic8

from ... import checks
from ...files.whole import text_in
from ...recipe_file import is_file, is_text, made_of, text_of, written
from .expansion import Expanded
from .update import Update

_MIN_SIZE = 4096
_FP8 = Quantizer(format=e4m3, granularity=groups(256))
#: adam-: of Adam's two moments, as 8-bit optimizers (Dettmers et al. 2021, arXiv 2110.02861),
#: torchao's AdamFp8 and COAT (arXiv 2410.19313) keep them; the first two leave those of fewer than
#: 4096 elements in fp32 (bitsandbytes' min_8bit_size, torchao's _new_buffer)
NAMED = {
    "bf16": Update(weight=bf16),
    "bf16-stochastic": Update(weight=bf16, rounding=stochastic(16)),
    "bf16-kahan": Update(weight=bf16, compensation=bf16),
    "adam-8bit": Update(
        states={
            "exp_avg": Quantizer(format=dynamic8, granularity=groups(256)),
            "exp_avg_sq": Quantizer(format=udynamic8, granularity=groups(256)),
        },
        min_size=_MIN_SIZE,
    ),
    "adam-fp8": Update(states={"exp_avg": _FP8, "exp_avg_sq": _FP8}, min_size=_MIN_SIZE),
    "adam-coat": Update(states={"exp_avg": Expanded(), "exp_avg_sq": Expanded()}),
}


def find(name: str) -> Update:
    """The update of a name, of a .yaml file, by its path, or of such a file's text: each field that
    is not the default, `weight: bf16`.  ValueError for anything else, naming the place."""
    if is_text(name):
        return made_of(name, Update)
    if not is_file(name):
        return NAMED[checks.choice("update", name, NAMED)]
    with text_in(Path(name), "update") as text:
        return made_of(text, Update)


def lasting(name: str) -> str:
    """The same update without its file: a name where it has one, else the file's text."""
    found = find(name)
    known = [other for other, own in NAMED.items() if own == found]
    return known[0] if known else text_of(found)


def short(name: str) -> str:
    """What runs call it: its name, or that it is of a file."""
    return "own-update" if is_text(name) else name


def save_update(update: Update, path: str | os.PathLike[str]) -> Path:
    """Write an update to a .yaml file, atomically; `qtrain train --update FILE` takes it.

    ValueError for another ending, and for an object of a class that is not ours.
    """
    checks.instance("update", update, Update, "an Update such as Update(weight='bf16')")
    return written(update, "save_update", path)
