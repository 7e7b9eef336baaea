"""Tables of what there is to choose from, for the shell."""

from __future__ import annotations

from tabulate import tabulate

from quantizers.formats import NAMED, Format, IntFormat

from . import recipes
from .training.named import TRAINING_RECIPES


def formats_table() -> str:
    """One row per named format: bits, bounds, what lies beyond them."""
    headers = [
        "format", "bits", "largest", "smallest\nnormal", "smallest\nsubnormal", "inf", "NaN",
        "overflow",
    ]  # fmt: skip
    rows = [[name, *_format_row(number_format)] for name, number_format in NAMED.items()]
    return tabulate(rows, headers=headers, disable_numparse=True, colalign=["left", "right"])


def _format_row(number_format: Format) -> list[str]:
    if isinstance(number_format, IntFormat):
        bounds = f"{number_format.low} to {number_format.high}"
        return [str(number_format.bits), bounds, "1", "-", "no", "no", "clips"]
    f = number_format
    subnormal = f"{f.smallest:.6g}" if f.smallest < f.smallest_normal else "-"
    return [
        str(f.bits),
        f"{f.largest:.8g}",
        f"{f.smallest_normal:.6g}",
        subnormal,
        "yes" if f.has_inf else "no",
        "yes" if f.has_nan else "no",
        f.on_overflow,
    ]


def recipes_table() -> str:
    """The quantization recipes in full, then the named training runs."""
    lines = ["Quantization recipes (every product operand that is rounded, and how):", ""]
    lines += [f"  {recipes.get(name)}" for name in recipes.names()]
    lines += ["", "Training runs (a recipe with a model, data and settings):", ""]
    for name, settings in TRAINING_RECIPES.items():
        lines.append(f"  {name}: {', '.join(f'{k}={v}' for k, v in settings.items())}")
    return "\n".join(lines)
